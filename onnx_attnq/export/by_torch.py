"""Export by torch.onnx (dynamo), for architectures that optimum does not know: text and image models in one part.

A decoder is exported without past key/values, an image model for the size of image that its configuration names.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnx_attnq.errors import ExportFailed, first_line
from onnx_attnq.export.result import ATOL, AttentionImplementation
from onnx_attnq.run import Session

OPSET: Final = 18
"""The opset that torch.onnx writes without a conversion."""
TRACED: Final = (2, 16)
"""Batch and tokens of the inputs that are traced."""
CHECKED: Final = (3, 11)
"""Other sizes: the export must have kept the axes dynamic."""


def export_by_torch(
    source: str, output: Path, task: str, opset: int | None, attention: AttentionImplementation | None, local_only: bool
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
    except Exception as error:  # whatever transformers raises becomes one line for the user
        raise ExportFailed(f"{source}: transformers could not load it for {task}: {first_line(error)}") from error
    if model.config.is_encoder_decoder or model.main_input_name not in ("input_ids", "pixel_values"):
        raise ExportFailed(
            f"{source}: optimum does not know the architecture {model.config.model_type!r}, and by torch.onnx only "
            "text and image models in one part are exported"
        )
    try:
        model.config.use_cache = False
        wrapped = _named_outputs(model)
        names = list(_inputs(model, TRACED))
        torch.onnx.export(
            wrapped,
            tuple(_inputs(model, TRACED).values()),
            output / "model.onnx",
            dynamo=True,
            opset_version=opset or OPSET,
            input_names=names,
            output_names=wrapped.names,
            dynamic_shapes=(tuple(_dynamic_axes(name) for name in names),),
            verbose=False,
            external_data=False,
        )
    except Exception as error:  # whatever torch raises, too
        raise ExportFailed(f"{source}: torch.onnx could not export it for {task}: {first_line(error)}") from error
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


def _dynamic_axes(name: str) -> dict[int, Any]:
    import torch

    batch = {0: torch.export.Dim("batch")}
    return batch if name == "pixel_values" else batch | {1: torch.export.Dim("sequence")}


def _inputs(model: Any, shape: tuple[int, int]) -> dict[str, Any]:
    """Random pixels; or random token ids, no padding, and token types where the model takes them.

    Args:
        model: The PyTorch model.
        shape: Batch and tokens; images take their size from the configuration.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.randn(shape[0], model.config.num_channels, height, width, generator=generator)}
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


__all__ = ["export_by_torch"]
