"""Caches of 8- and 4-bit numbers, as com.microsoft GroupQueryAttention has them: multiples of a scale.

The scale is one number (PER_TENSOR), or one for each number of each head's vectors (PER_CHANNEL). Of 4-bit numbers two
share a byte, the first in its low half; 8 stands for 0.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.fused.builder import FusedBuilder
from onnx_attnq.find.fused.node import FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dimension

_TYPES: Final = {8: ir.DataType.INT8, 4: ir.DataType.UINT8}


@dataclasses.dataclass(frozen=True, slots=True)
class CacheScale:
    """What the numbers of a cache, of so many bits, are multiples of: float32, (1, N_kv or 1, 1, D or 1)."""

    scale: ir.Value
    bits: int

    @property
    def dtype(self) -> ir.DataType:
        """What the cache holds."""
        return _TYPES[self.bits]


def cache_scales(b: FusedBuilder, fused: FusedNode, kv_heads: int) -> tuple[CacheScale, CacheScale] | None:
    """Those of keys and of values; None where the cache has floats."""
    bits = fused.integer("kv_cache_bit_width")
    given = fused.both_or_none("k_scale", "v_scale")
    kinds = {fused.text(name, "NONE") for name in ("k_quant_type", "v_quant_type")}
    if not bits and given is None and kinds == {"NONE"}:
        return None
    if bits not in _TYPES or given is None or len(kinds) != 1 or not kinds <= {"PER_TENSOR", "PER_CHANNEL"}:
        found = f"{' and '.join(sorted(kinds))}, {'without' if given is None else 'with'} scales"
        raise Decline(
            f"a cache of {bits} bits, {found} is not one that onnxruntime runs; it takes 8 or 4 bits, PER_TENSOR or "
            "PER_CHANNEL, with both scales"
        )
    shape = (1, kv_heads, 1, -1) if kinds == {"PER_CHANNEL"} else (1, 1, 1, 1)
    key, value = (CacheScale(b.reshape(scale, *shape), bits) for scale in given)
    return key, value


def quantized(b: FusedBuilder, rows: ir.Value, dtype: ir.DataType, how: CacheScale) -> ir.Value:
    """Rows of keys or values, (B, N_kv, L, D), as the cache has them; halves are rounded to even."""
    whole = b.Round(b.Div(b.cast(rows, ir.DataType.FLOAT, dtype), how.scale))
    bounds = (
        b.constant(float(bound), ir.DataType.FLOAT) for bound in (-(2 ** (how.bits - 1)), 2 ** (how.bits - 1) - 1)
    )
    whole = b.Clip(whole, *bounds)
    if how.bits == 4:
        pairs = b.reshape(b.Add(whole, b.constant(8.0, ir.DataType.FLOAT)), 0, 0, 0, -1, 2)
        whole = b.MatMul(pairs, b.constant([1.0, 16.0], ir.DataType.FLOAT))
    cache = b.cast(whole, how.dtype)
    *outer, size = (dimension(rows, axis) for axis in range(4))
    cache.shape = ir.Shape([*outer, size * how.bits // 8 if isinstance(size, int) else None])
    return cache


def dequantized(b: FusedBuilder, cache: ir.Value, like: ir.Value, dtype: ir.DataType, how: CacheScale) -> ir.Value:
    """The keys or values of a cache, (B, N_kv, T, D), in an element type; ``like`` are new ones, (B, N_kv, L, D)."""
    numbers = b.cast(cache, ir.DataType.FLOAT)
    if how.bits == 4:
        sixteen = b.constant(16.0, ir.DataType.FLOAT)
        high = b.Floor(b.Div(numbers, sixteen))
        low = b.Sub(numbers, b.Mul(high, sixteen))
        pairs = b.Concat(b.unsqueeze(low, 4), b.unsqueeze(high, 4), axis=4)
        numbers = b.Sub(b.reshape(pairs, 0, 0, 0, -1), b.constant(8.0, ir.DataType.FLOAT))
    result = b.cast(b.Mul(numbers, how.scale), dtype, ir.DataType.FLOAT)
    batch, kv_heads, _, size = (dimension(like, axis) for axis in range(4))
    return b.describe(result, like, batch, kv_heads, None, size)


__all__ = ["CacheScale", "cache_scales", "dequantized", "quantized"]
