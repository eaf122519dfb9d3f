"""Rotary position embedding as com.microsoft GroupQueryAttention defines it (RoFormer, arXiv 2104.09864).

The first 2·C of the D entries of a head, C the columns of the caches, are rotated in pairs: (x, y) becomes
(x·cos - y·sin, x·sin + y·cos). A pair is the entries i and i + C or, interleaved, 2·i and 2·i + 1. Every entry is thus
itself times a cosine, plus the other of its pair times a sine that is negated for the first of the two.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.graph import dimension


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """By what the first 2·C entries of every token are rotated.

    Attributes:
        cos: (B, 1, L, 2·C).
        sin: The same, with the sign of its place in the pair.
        partner: The place of the other of its pair, int64 (2·C,).
        size: 2·C.
    """

    cos: ir.Value
    sin: ir.Value
    partner: ir.Value
    size: Extent


def rotation(
    b: FusedBuilder, caches: tuple[ir.Value, ir.Value], positions: ir.Value, dtype: ir.DataType, *, interleaved: bool
) -> Rotation:
    """Looks up positions, int64 (B, 1, L), in the caches of cosines and sines, (number of positions, C)."""
    columns = b.extent(caches[0], 1)
    size = b.add(columns, columns)
    column, partner, sign = _pairs(b, columns, size, interleaved=interleaved)
    cos, sin = (b.Gather(b.Gather(cache, positions, axis=0), column, axis=3) for cache in caches)
    return Rotation(cos, b.Mul(sin, b.cast(sign, dtype)), partner, size)


def _pairs(b: FusedBuilder, columns: Extent, size: Extent, *, interleaved: bool) -> tuple[ir.Value, ir.Value, ir.Value]:
    """For each of 2·C entries its column of the caches, its partner, and -1 or 1 for the first and second: int64."""
    if isinstance(columns, int):
        index = np.arange(2 * columns)
        if interleaved:
            column, partner, second = index // 2, index ^ 1, index % 2
        else:
            column, partner, second = index % columns, (index + columns) % (2 * columns), index // columns
        return b.ints(*column), b.ints(*partner), b.ints(*(2 * second - 1))
    every, one, two = b.arange(size), b.ints(1), b.ints(2)
    if interleaved:
        sign = b.Sub(b.Mul(b.Mod(every, two), two), one)
        return b.Div(every, two), b.Sub(every, sign), sign
    sign = b.Sub(b.Mul(b.Div(every, columns), two), one)
    return b.Mod(every, columns), b.Mod(b.Add(every, columns), b.vector(size)), sign


def rotate(b: FusedBuilder, x: ir.Value, by: Rotation) -> ir.Value:
    """Rotates every head of (B, N, L, D)."""
    head_size = b.extent(x, 3)
    whole = by.size == head_size
    turned = x if whole else b.slice(x, 3, 0, by.size)
    rotated = b.Add(b.Mul(turned, by.cos), b.Mul(b.Gather(turned, by.partner, axis=3), by.sin))
    if not whole:
        rotated = b.Concat(rotated, b.slice(x, 3, by.size, head_size), axis=3)
    return b.describe(rotated, x, *(dimension(x, axis) for axis in range(4)))


__all__ = ["Rotation", "rotate", "rotation"]
