"""From a model of ``transformers`` to a folder with ONNX files, its tokenizer, and a check against PyTorch."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from onnx_attnq.atomic import new_folder
from onnx_attnq.errors import InvalidModel, first_line
from onnx_attnq.export.by_optimum import export_by_optimum, infer_task, supports
from onnx_attnq.export.by_torch import export_by_torch
from onnx_attnq.export.result import ATOL, AttentionImplementation, Exported, Exporter
from onnx_attnq.extras import OFFLINE, only_errors, quiet_hub, require


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    task: str | None = None,
    opset: int | None = None,
    attention: AttentionImplementation | None = None,
    local_only: bool = False,
) -> Exported:
    """Export a model, by optimum where it knows the architecture, by torch.onnx (dynamo) where it does not.

    Args:
        source: A folder with ``config.json`` and weights, or a model of the hub such as ``bert-base-uncased``.
        output: A folder that does not exist yet, or is empty.
        task: A task of optimum, such as ``question-answering`` or ``text-generation-with-past``; None infers it. A
            decoder gets past key/values unless a task without them is asked for.
        opset: None is the exporter's own choice.
        attention: Which implementation of attention in PyTorch is traced; None is the architecture's default.
        local_only: Never ask the hub.

    Returns:
        What was exported. Every output agreed with PyTorch within `ATOL`.

    Raises:
        MissingExtra: The extra ``export`` is not installed, or in other versions.
        InvalidModel: There is no such model, or its task cannot be inferred.
        CannotWrite: The output is not empty, or cannot be written.
        ExportFailed: The exporter failed, or the ONNX model computes something else; nothing is left in ``output``.
    """
    require("export")
    from transformers import AutoConfig

    output = Path(output)
    try:
        with quiet_hub():
            config = AutoConfig.from_pretrained(source, local_files_only=local_only or Path(source).is_dir())
    except Exception as error:  # transformers raises exceptions of any type for a damaged file
        reason = f"not a model folder, and not reached on the hub ({first_line(error)})"
        raise InvalidModel(f"{source}: {reason}; {OFFLINE}") from error
    task = task or infer_task(config)
    known = supports(config.model_type, task)  # imports optimum, which sets up its logger, before that is made quiet

    output.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(output) as made:
        with _quiet():
            if known:
                exporter = Exporter.OPTIMUM
                task = export_by_optimum(str(source), made, task, opset, attention, local_only)
            else:
                exporter = Exporter.TORCH
                export_by_torch(str(source), made, task, opset, attention, local_only)
        files = tuple(sorted(path.name for path in made.glob("*.onnx")))
    return Exported(output, files, task, exporter)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters say about their own internals from the user; deviations are raised, not logged."""
    with warnings.catch_warnings(action="ignore"), only_errors("torch.onnx", "transformers", "optimum"):
        yield


__all__ = ["ATOL", "AttentionImplementation", "Exported", "Exporter", "export"]
