"""Arrays in and out of onnxruntime, also of types that numpy does not have, sequences and strings."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime

Array: TypeAlias = npt.NDArray[Any]

_FLOATS: Final = ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")

_EXTRA_TYPES: Final = {f"tensor({name.lower()})": np.dtype(ir.DataType[name].numpy()) for name in _FLOATS}
"""What onnxruntime calls the types that numpy has from ml_dtypes only, whole bytes each."""


def fed(array: Array) -> Any:
    """What a session takes for an array: itself, or a value where numpy has its type from ml_dtypes only.

    >>> import ml_dtypes
    >>> fed(np.ones(2, ml_dtypes.bfloat16)).data_type()
    'tensor(bfloat16)'
    """
    if array.dtype not in _EXTRA_TYPES.values():
        return array
    bare = np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bare, int(ir.DataType.from_numpy(array.dtype)))


def from_value(value: onnxruntime.OrtValue) -> Array:
    """A tensor of one of these types that a session gave, as an array of its own.

    >>> import ml_dtypes
    >>> from_value(fed(np.ones(2, ml_dtypes.bfloat16))).tolist()
    [1.0, 1.0]
    """
    dtype, shape = _EXTRA_TYPES[value.data_type()], tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", dtype).reshape(shape)


def from_numpy(value: Any) -> Array:
    """What a session gives where numpy knows its type; a sequence is an array of arrays."""
    if isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value):
        sequence = np.empty(len(value), np.object_)
        sequence[:] = value
        return sequence
    return np.asarray(value)


def is_extra_type(name: str) -> bool:
    """Whether what onnxruntime calls so is one of these types, and has to be asked for as a value."""
    return name in _EXTRA_TYPES


__all__ = ["fed", "from_numpy", "from_value", "is_extra_type"]
