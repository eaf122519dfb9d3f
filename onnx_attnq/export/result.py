"""What an export takes and gives, whichever exporter does it."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any, Final

ATOL: Final = 1e-3
"""How far an output of the ONNX model may be from PyTorch's: float32 rounding that a deep model adds up."""


class AttentionImplementation(enum.StrEnum):
    """The implementation of attention in PyTorch that is traced."""

    EAGER = "eager"
    """MatMul, Softmax, MatMul, written out."""
    SDPA = "sdpa"
    """scaled_dot_product_attention, which the exporters decompose, or keep as the op Attention from opset 23."""


class Exporter(enum.StrEnum):
    """Who wrote the ONNX file."""

    OPTIMUM = "optimum"
    TORCH = "torch.onnx"


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes:
        folder: Holds the ONNX files, config.json, and the tokenizer or processor where there is one.
        files: Names of the ONNX files; ``model.onnx`` unless the model has parts.
        task: The task as optimum calls it.
        exporter: Who wrote the files.
    """

    folder: Path
    files: tuple[str, ...]
    task: str
    exporter: Exporter

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "folder": str(self.folder),
            "files": list(self.files),
            "task": self.task,
            "exporter": str(self.exporter),
        }


__all__ = ["ATOL", "AttentionImplementation", "Exported", "Exporter"]
