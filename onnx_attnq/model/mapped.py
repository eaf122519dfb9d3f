"""A model whose weights lie in a file, from which onnxruntime maps them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import onnx_ir as ir

from onnx_attnq.model.files import load, save, tensors

LARGE_WEIGHTS: Final = 2**24
"""Bytes from which on a session from memory, which needs several copies of the weights for a while, is avoided."""

LARGE_TENSOR: Final = 2**12
"""Bytes of an initializer that is worth a place in the data file."""


def load_mapped(path: str | os.PathLike[str], folder: Path, name: str = "model") -> ir.Model:
    """Load a model; if its weights are many and in the model file itself, write them to a data file in ``folder``.

    Args:
        path: The model; never changed.
        folder: For temporary files; the model needs them as long as it is used.
        name: Of the temporary files.

    Raises:
        InvalidModel: As by `load`.
        CannotWrite: The folder is full.
    """
    model = load(path)
    held = [tensor for tensor in tensors(model) if not isinstance(tensor, ir.StringTensor)]
    in_file = any(isinstance(tensor, ir.ExternalTensor) for tensor in held)
    if in_file or sum(tensor.nbytes for tensor in held) < LARGE_WEIGHTS:
        return model
    ir.external_data.unload_from_model(model, folder, f"{name}.weights", size_threshold_bytes=LARGE_TENSOR)
    save(model, folder / f"{name}.onnx", "keep")
    # Loaded again, because one tensor of a protobuf message keeps all of it in memory.
    return load(folder / f"{name}.onnx")


__all__ = ["LARGE_TENSOR", "LARGE_WEIGHTS", "load_mapped"]
