"""Export by optimum-onnx, which knows the inputs, outputs and past key/values of about a hundred architectures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onnx_attnq.errors import ExportFailed, InvalidModel
from onnx_attnq.export.result import ATOL, AttentionImplementation

WITH_PAST = "-with-past"


def infer_task(config: Any) -> str:
    """The task of the model class that a configuration names; with past key/values where it can have them.

    Raises:
        InvalidModel: It does not follow from the configuration.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    name = (config.architectures or ["none"])[0]
    try:
        task = TasksManager.infer_task_from_model(getattr(transformers, name))
    except (AttributeError, KeyError, ValueError) as error:
        raise InvalidModel(f"no task is known for the model class {name!r} of config.json; give --task") from error
    if task == "fill-mask" and config.is_encoder_decoder:
        task = "text2text-generation"  # the class of BART does both; optimum lists both and exports this one
    return task + WITH_PAST if supports(config.model_type, task + WITH_PAST) else str(task)


def supports(architecture: str, task: str) -> bool:
    """Whether optimum can export this architecture (``model_type``) for this task."""
    import optimum.exporters.onnx.model_configs  # noqa: F401  (registers the architectures)
    from optimum.exporters.tasks import TasksManager

    try:
        known = TasksManager.get_supported_tasks_for_model_type(architecture, "onnx", library_name="transformers")
    except KeyError:
        return False
    return TasksManager.map_from_synonym(task) in known


def export_by_optimum(
    source: str, output: Path, task: str, opset: int | None, attention: AttentionImplementation | None, local_only: bool
) -> str:
    """Write the ONNX files, config.json and tokenizer to ``output``; returns the task as optimum spells it.

    Raises:
        ExportFailed: The export failed, or an output is further than `ATOL` from PyTorch's.
    """
    import torch
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    task = TasksManager.map_from_synonym(task)
    try:
        model = TasksManager.get_model_from_task(
            task.removesuffix(WITH_PAST),
            source,
            framework="pt",
            library_name="transformers",
            dtype=torch.float32,
            attn_implementation=attention and str(attention),
            local_files_only=local_only or Path(source).is_dir(),
        )
        model.config.use_cache = task.endswith(WITH_PAST)
        with _warnings_of("optimum.exporters.onnx.convert") as warned:
            onnx_export_from_model(model, output, opset=opset, atol=ATOL, task=task)
    except Exception as error:  # whatever transformers, torch or optimum raise becomes one line for the user
        raise ExportFailed(f"{source}: optimum could not export it for {task}: {_last_line(error)}") from error
    # optimum reports outputs that deviate from PyTorch's only as a warning
    if deviations := [text for text in warned if "succeeded with the warning" in text]:
        raise ExportFailed(f"{source}: the export differs from PyTorch: {' '.join(deviations[0].split())}")
    return str(task)


@contextmanager
def _warnings_of(logger_name: str) -> Iterator[list[str]]:
    """Collects the warnings that a logger gets, in place of showing them."""
    texts: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    logger, handler = logging.getLogger(logger_name), Collect(logging.WARNING)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # whatever level is above it
    logger.propagate = False
    try:
        yield texts
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _last_line(error: Exception) -> str:
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


__all__ = ["export_by_optimum", "infer_task", "supports"]
