"""Records of arrays that merge: counts and sums per head, added field by field."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.scheme import FloatArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

IntArray = npt.NDArray[np.int64]

MERGE_TOLERANCE: Final = 1e-12
"""How far, relatively, a float sum of merged parts may be from that of the whole: rounding of sums in another order."""


def array_fields(stats: DataclassInstance) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of a record by field name, in the order of their definition."""
    fields = {field.name: getattr(stats, field.name) for field in dataclasses.fields(stats)}
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def entropy_bits(p: npt.ArrayLike) -> FloatArray:
    """The entropy over the last axis in bits; 0 log 0 is 0.

    >>> entropy_bits([0.5, 0.25, 0.25, 0.0]).tolist()
    1.5
    """
    p = np.asarray(p, dtype=np.float64)
    return np.asarray(-(p * np.log2(np.where(p > 0.0, p, 1.0))).sum(axis=-1))


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> FloatArray:
    """The quotient part / whole in float64, NaN where the whole is 0.

    >>> ratio([1, 1], [2, 0]).tolist()
    [0.5, nan]
    """
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0.0))


def added(a: DataclassInstance, b: DataclassInstance) -> dict[str, Any]:
    """The sums of the arrays of two records by field name.

    Raises:
        ValueError: The records are not of the same heads.
    """
    ours, theirs = array_fields(a), array_fields(b)
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            raise ValueError(f"{name} has {value.shape} and {theirs[name].shape} entries: not the same heads")
    return {name: np.asarray(np.add(value, theirs[name])) for name, value in ours.items()}


__all__ = ["MERGE_TOLERANCE", "FloatArray", "IntArray", "added", "array_fields", "entropy_bits", "ratio"]
