"""What a tensor holds, wherever it is stored: hashed as a stream, compared in blocks."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel

HASH_DIGITS: Final = 32
"""Hexadecimal digits kept of a tensor's SHA-256: 128 bits, enough against a second preimage."""

_BLOCK: Final = 1 << 20  # elements compared at a time, so that two large weights need 16 MB and not their size


@dataclasses.dataclass(frozen=True, slots=True)
class ValueDifference:
    """How far two tensors of the same dtype and shape are apart.

    Attributes:
        count: Elements that differ, 0 when only the bits of equal numbers do (0.0 and -0.0).
        size: Elements in all.
        max_abs: Largest absolute difference; inf where only one of the two is NaN or infinite; None for strings.
    """

    count: int
    size: int
    max_abs: float | None

    def __str__(self) -> str:
        if self.count == 0:
            return "equal numbers, different bits"
        largest = "" if self.max_abs is None else f", max abs difference {self.max_abs:.6g}"
        return f"{self.count} of {self.size} values differ{largest}"


def content_hash(tensor: ir.TensorProtocol) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a tensor's bytes, as ONNX `raw_data` lays them out.

    External data is read in pieces. Strings are hashed each behind its length (8 bytes, little-endian).

    Raises:
        InvalidModel: The data is missing, too short, or lies outside the model's directory.

    >>> content_hash(ir.tensor(np.zeros(2, dtype=np.float32)))
    'af5570f5a1810b7af78caf4bc70a660f'
    """
    sink = _Sink()
    if tensor.dtype == ir.DataType.STRING:
        for text in strings(tensor):
            sink.write(len(text).to_bytes(8, "little") + text)
        return sink.sha256.hexdigest()[:HASH_DIGITS]
    expected = tensor.nbytes
    try:
        if expected:
            tensor.tofile(sink) if hasattr(tensor, "tofile") else sink.write(tensor.tobytes())
    except (OSError, ValueError) as error:
        raise InvalidModel(f"tensor {tensor.name!r} cannot be read: {error}") from error
    if sink.nbytes != expected:
        raise InvalidModel(f"tensor {tensor.name!r} holds {sink.nbytes} bytes, its type needs {expected}")
    return sink.sha256.hexdigest()[:HASH_DIGITS]


def strings(tensor: ir.TensorProtocol) -> tuple[bytes, ...]:
    """The elements of a string tensor in row-major order."""
    return tuple(item if isinstance(item, bytes) else str(item).encode() for item in tensor.numpy().reshape(-1))


def value_difference(a: ir.TensorProtocol, b: ir.TensorProtocol) -> ValueDifference | None:
    """How far two tensors are apart; None when their dtypes or shapes differ.

    NaN equals NaN. Works in blocks of a million elements.

    >>> value_difference(ir.tensor([1.0, 2.0, 3.0]), ir.tensor([1.0, 2.5, 3.0]))
    ValueDifference(count=1, size=3, max_abs=0.5)
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return None
    if a.dtype == ir.DataType.STRING:
        pairs = list(zip(strings(a), strings(b), strict=True))
        return ValueDifference(sum(x != y for x, y in pairs), len(pairs), None)
    left, right = a.numpy().reshape(-1), b.numpy().reshape(-1)
    count, largest = 0, 0.0
    for start in range(0, left.size, _BLOCK):
        x, y = _wide(left[start : start + _BLOCK]), _wide(right[start : start + _BLOCK])
        differs = (x != y) & ~(np.isnan(x) & np.isnan(y))
        if differs.any():
            count += int(differs.sum())
            with np.errstate(invalid="ignore"):
                apart = np.abs(x[differs] - y[differs])
            largest = max(largest, float(np.where(np.isnan(apart), math.inf, apart).max()))
    return ValueDifference(count, left.size, largest)


def _wide(block: Any) -> Any:
    """A block in a type in which differences do not wrap around: longdouble holds every int64 exactly."""
    if np.iscomplexobj(block):
        return block.astype(np.complex128)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return block.astype(np.longdouble if block.dtype.itemsize == 8 and block.dtype.kind in "iu" else np.float64)


class _Sink:
    """A file to write to that keeps the hash and the number of the bytes."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.nbytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.nbytes += len(data)
        return len(data)


__all__ = ["HASH_DIGITS", "ValueDifference", "content_hash", "strings", "value_difference"]
