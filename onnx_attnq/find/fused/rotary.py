"""Rotary position embedding as com.microsoft GroupQueryAttention defines it (RoFormer, arXiv 2104.09864).

The first 2·C of the D entries of a head, C the columns of the caches, are rotated in pairs: (x, y) becomes
(x·cos - y·sin, x·sin + y·cos). A pair is the entries i and i + C or, interleaved, 2·i and 2·i + 1.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.graph import dimension


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of every token, (B, 1, L, C), their number C, and whether pairs are neighbours."""

    cos: ir.Value
    sin: ir.Value
    columns: Extent
    interleaved: bool


def rotation(b: FusedBuilder, caches: tuple[ir.Value, ir.Value], positions: ir.Value, *, interleaved: bool) -> Rotation:
    """Looks up positions, int64 (B, L), in the caches of cosines and sines, (number of positions, C)."""
    cos, sin = (b.unsqueeze(b.Gather(cache, positions, axis=0), 1) for cache in caches)
    return Rotation(cos, sin, b.extent(caches[0], 1), interleaved)


def rotate(b: FusedBuilder, x: ir.Value, by: Rotation) -> ir.Value:
    """Rotates every head of (B, N, L, D)."""
    size = b.add(by.columns, by.columns)
    if by.interleaved:
        first, second = (b.slice(x, 3, start, size, step=2) for start in (0, 1))
    else:
        first, second = b.slice(x, 3, 0, by.columns), b.slice(x, 3, by.columns, size)
    left = b.Sub(b.Mul(first, by.cos), b.Mul(second, by.sin))
    right = b.Add(b.Mul(first, by.sin), b.Mul(second, by.cos))
    if by.interleaved:
        pairs = b.Concat(b.unsqueeze(left, 4), b.unsqueeze(right, 4), axis=4)
        parts = [b.reshape(pairs, 0, 0, 0, size)]
    else:
        parts = [left, right]
    head_size = b.extent(x, 3)
    if size != head_size:
        parts.append(b.slice(x, 3, size, head_size))
    rotated = b.Concat(*parts, axis=3)
    return b.describe(rotated, x, *(dimension(x, axis) for axis in range(4)))


__all__ = ["Rotation", "rotate", "rotation"]
