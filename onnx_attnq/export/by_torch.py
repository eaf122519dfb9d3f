"""Export by torch.onnx (dynamo), for architectures that optimum does not know: one file, no past key/values."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnx_attnq.errors import ExportFailed
from onnx_attnq.export.result import ATOL, Attention
from onnx_attnq.runtime import Session

OPSET: Final = 18
"""The opset that torch.onnx writes without a conversion."""
TRACED: Final = (2, 16)
"""Batch and tokens of the inputs that are traced."""
CHECKED: Final = (3, 11)
"""Other sizes: the export must have kept both axes dynamic."""


def export_by_torch(
    source: str, output: Path, task: str, opset: int | None, attention: Attention | None, local_only: bool
) -> None:
    """Write ``model.onnx``, config.json and the tokenizer, if there is one, to ``output``.

    Raises:
        ExportFailed: The export failed, or an output is further than `ATOL` from PyTorch's.
    """
    import torch
    from optimum.exporters.tasks import TasksManager
    from optimum.utils.save_utils import maybe_save_preprocessors

    if task.endswith("-with-past"):
        raise ExportFailed(f"{source}: optimum does not know this architecture with past key/values; drop -with-past")
    try:
        model = TasksManager.get_model_from_task(
            task,
            source,
            framework="pt",
            library_name="transformers",
            dtype=torch.float32,
            attn_implementation=attention and str(attention),
            local_files_only=local_only or Path(source).is_dir(),
        ).eval()
        model.config.use_cache = False
        wrapped = _named_outputs(model)
        batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence")
        names = list(_inputs(model, TRACED))
        torch.onnx.export(
            wrapped,
            tuple(_inputs(model, TRACED).values()),
            output / "model.onnx",
            dynamo=True,
            opset_version=opset or OPSET,
            input_names=names,
            output_names=wrapped.names,
            dynamic_shapes=(tuple({0: batch, 1: length} for _ in names),),
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # whatever transformers or torch raise becomes one line for the user
        raise ExportFailed(f"{source}: torch.onnx could not export it for {task}: {_first_line(error)}") from error
    _check(wrapped, _inputs(model, CHECKED), output / "model.onnx")
    model.config.save_pretrained(output)
    maybe_save_preprocessors(source, output)


def _named_outputs(model: Any) -> Any:
    """The model with positional inputs and a tuple of its tensor outputs, whose names are in ``names``."""
    import torch

    inputs = _inputs(model, TRACED)
    with torch.no_grad():
        outputs = model(**inputs)

    class NamedOutputs(torch.nn.Module):  # type: ignore[misc]  # torch is skipped, hence Any
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.names = [name for name, value in outputs.items() if isinstance(value, torch.Tensor)]

        def forward(self, *tokens: Any) -> tuple[Any, ...]:
            found = self.model(**dict(zip(inputs, tokens, strict=True)))
            return tuple(found[name] for name in self.names)

    return NamedOutputs().eval()


def _inputs(model: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """Random token ids, no padding, and token types where the model takes them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, shape, generator=generator)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        tokens["token_type_ids"] = torch.zeros_like(ids)
    return tokens


def _check(wrapped: Any, inputs: dict[str, Any], path: Path) -> None:
    import torch

    with torch.no_grad():
        expected = wrapped(*inputs.values())
    found = Session(path).run({name: value.numpy() for name, value in inputs.items()})
    for name, value in zip(wrapped.names, expected, strict=True):
        deviation = float(np.abs(found[name] - value.numpy()).max())
        if not deviation <= ATOL:
            raise ExportFailed(
                f"{path.name}: output {name!r} deviates from PyTorch's by {deviation:.2g}, over {ATOL:g}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


__all__ = ["export_by_torch"]
