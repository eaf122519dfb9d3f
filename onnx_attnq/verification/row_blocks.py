"""Rows of probabilities, a few at a time: what is compared in float64 stays in the cache, and needs no second model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy.typing as npt

from onnx_attnq.scheme import QuantScheme, SiteScheme

BLOCK: Final = 2**18
"""Probabilities that are compared at a time."""

Place: TypeAlias = tuple[slice, ...]
"""Which rows: a slice of the first axis, and one of the queries' axis, of probabilities without their last axis."""

_ALL: Final = slice(None)


def blocks(shape: tuple[int, ...], scheme: SiteScheme) -> Iterator[Place]:
    """Parts of an array of probabilities: rows of the batch, or queries of one row where that is too large.

    Heads stay together, since each may have a scheme of its own.

    Args:
        shape: (..., L_q, L_k).
        scheme: What they are quantized with.

    >>> from onnx_attnq.scheme import preset
    >>> len(list(blocks((8, 12, 128, 128), preset())))
    8
    >>> [place[-1] for place in blocks((1, 16, 256, 128), preset())]
    [slice(0, 128, None), slice(128, 256, None)]
    """
    rows, size = shape[:-1], math.prod(shape)
    if not rows or size <= BLOCK:
        yield (_ALL,) * len(rows)
        return
    # In three axes the first may be that of batch and heads together.
    splits_first = len(rows) > 2 or (len(rows) == 2 and isinstance(scheme, QuantScheme))
    of_first = size // rows[0] if splits_first else size
    step = max(1, BLOCK // of_first)
    for first in range(0, rows[0], step) if splits_first else (0,):
        leading = (
            (slice(first, first + step), *(_ALL,) * (len(rows) - 2)) if splits_first else (_ALL,) * (len(rows) - 1)
        )
        queries = rows[-1] if of_first <= BLOCK else max(1, BLOCK // (of_first // rows[-1]))
        for query in range(0, rows[-1], queries):
            yield (*leading, slice(query, query + queries) if queries < rows[-1] else _ALL)


def part(array: npt.NDArray[Any], place: Place, *, queries: bool = True) -> npt.NDArray[Any]:
    """The part of an array that belongs to some rows; axes of size 1 are broadcast and stay.

    Args:
        array: (..., L_q, X), or with fewer axes what is broadcast to it.
        place: As `blocks` gives it.
        queries: Whether the last axis but one is that of the queries.
    """
    missing = len(place) + 1 - array.ndim
    chosen = [
        _ALL if array.shape[axis] == 1 or (axis == array.ndim - 2 and not queries) else place[axis + missing]
        for axis in range(max(0, -missing), array.ndim - 1)
    ]
    return array[tuple(chosen)]


__all__ = ["BLOCK", "Place", "blocks", "part"]
