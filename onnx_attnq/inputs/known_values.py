"""What is known about a value before anything runs: its type and shape, and what it holds if that is small."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Shape: TypeAlias = tuple[int | None, ...]

_SMALL: Final = 4096
"""The most elements of a value that is computed; those that shapes depend on are smaller."""

_FEW: Final = 64
"""The same for real numbers, which are rarely sizes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What is known about a value.

    Attributes:
        type: Element type and perhaps shape.
        value: What it holds.
    """

    type: onnx.TypeProto | None = None
    value: npt.NDArray[Any] | None = None

    @property
    def shape(self) -> Shape | None:
        """The sizes of its axes, None for one that is unknown."""
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in self.type.tensor_type.shape.dim)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, 0 where that is unknown."""
        shape = self.shape
        if self.type is None or shape is None or None in shape:
            return 0
        kind = ir.DataType(self.type.tensor_type.elem_type)
        bits = 0 if kind in (ir.DataType.UNDEFINED, ir.DataType.STRING) else int(kind.bitwidth)
        return math.prod(size or 0 for size in shape) * bits // 8


UNKNOWN: Final = Known()


def of_array(array: npt.NDArray[Any]) -> Known:
    """An array, which is forgotten if it is large."""
    return Known(type_of(array.dtype, array.shape), array if is_small(array) else None)


def of_tensor(tensor: ir.TensorProtocol) -> Known:
    """A weight, which is read only if it is small."""
    shape = tensor.shape.numpy()
    small = math.prod(shape) <= _SMALL and tensor.dtype not in (ir.DataType.STRING, None)
    array = np.asarray(tensor.numpy()) if small else None
    kind = onnx.helper.make_tensor_type_proto(int(tensor.dtype), tuple(shape))
    return Known(kind, array if array is not None and is_small(array) else None)


def type_of(dtype: np.dtype, shape: Iterable[int]) -> onnx.TypeProto:
    """A tensor's type as onnx's inference takes it."""
    return onnx.helper.make_tensor_type_proto(int(ir.DataType.from_numpy(dtype)), tuple(shape))


def is_small(array: npt.NDArray[Any]) -> bool:
    """Whether an array is kept: sizes are computed from it."""
    return array.size <= (_SMALL if array.dtype.kind in "biu" else _FEW if array.dtype.kind == "f" else 0)


def is_few(shape: Shape | None) -> bool:
    """Whether a value of this shape is computed."""
    return shape is not None and None not in shape and math.prod(size or 0 for size in shape) <= _SMALL


__all__ = ["UNKNOWN", "Known", "Shape", "is_few", "is_small", "of_array", "of_tensor", "type_of"]
