"""The masks of com.microsoft Attention and MultiHeadAttention as one additive mask.

Source: the operators' text and onnxruntime's CPU kernels (attention_helper.h, PrepareMask). A masked key
gets ``mask_filter_value`` (default -10000), a key after the query the lowest float; both are finite, so
a row that is masked everywhere stays a softmax over its scores.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.fused import core
from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.find.fused.node import FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dtype_of, size_of

DEFAULT_FILTER: Final = -10000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """Sizes of one attention: B, L_q, P and L_k = P + new keys; square means as many new keys as queries."""

    batch: Extent
    queries: Extent
    past: Extent
    keys: Extent
    square: bool


def additive_mask(
    b: FusedBuilder, fused: FusedNode, name: str, lengths: Lengths, dtype: ir.DataType
) -> ir.Value | None:
    """Padding mask (the input of that name), causal mask and attention_bias, summed; None if there is none."""
    mask = None
    if fused.get(name) is not None:
        valid = _valid_keys(b, fused, name, fused.rank(name), lengths)
        mask = core.select(b, valid, 0.0, fused.number("mask_filter_value", DEFAULT_FILTER), dtype)
    if fused.integer("unidirectional"):
        later = _later(b, lengths)
        zero = b.constant(0.0, core.score_type(dtype))
        mask = b.Where(later, b.constant(core.lowest(dtype), core.score_type(dtype)), mask or zero)
    if (bias := fused.get("attention_bias")) is not None:
        bias = b.cast(bias, core.score_type(dtype), dtype)
        mask = bias if mask is None else b.Add(bias, mask)
    return mask


def _later(b: FusedBuilder, lengths: Lengths) -> ir.Value:
    """True for keys after the query; never for the last query, which the kernel lets see everything.

    That makes a difference only where the number of new keys is not that of the queries.
    """
    later = core.exceeds(b, core.distance(b, lengths.queries, lengths.keys, lengths.past), 0)
    if lengths.square:
        return later
    last = b.vector(b.subtract(lengths.queries, 1))
    return b.And(later, b.Less(b.unsqueeze(b.arange(lengths.queries), 1), last))


def _valid_keys(b: FusedBuilder, fused: FusedNode, name: str, rank: int, lengths: Lengths) -> ir.Value:
    """True for keys that are no padding: bool, broadcastable to (B, N, L_q, L_k)."""
    mask = fused.require(name)
    if dtype_of(mask) not in (None, ir.DataType.INT32):
        raise Decline(f"input {name!r} is not int32")
    if rank == 1:
        return _between_ends(b, mask, lengths)
    if rank == 4:
        # (B, 1, M, M): the rows of the new queries, the columns of the keys there are.
        mask = b.slice(b.slice(mask, 2, lengths.past, lengths.keys), 3, 0, lengths.keys)
    valid = core.exceeds(b, mask, 0, ir.DataType.INT32)
    if name == "mask_index" and rank == 2 and size_of(mask, 1) in (None, 1):
        # To Attention one column is a dummy, which masks nothing.
        valid = b.Or(valid, b.Equal(b.vector(b.extent(mask, 1)), b.ints(1)))
    return b.unsqueeze(valid, *range(1, 5 - rank)) if rank < 4 else valid


def _between_ends(b: FusedBuilder, mask: ir.Value, lengths: Lengths) -> ir.Value:
    """From (B) numbers of valid keys, (2·B) ends then starts, or (3·B + 2) lengths then offsets."""
    columns = b.arange(lengths.keys)
    ends_and_starts = b.cast(mask, ir.DataType.INT64)
    batch = lengths.batch

    def per_entry(vector: ir.Value) -> ir.Value:
        return b.reshape(vector, -1, 1, 1, 1)

    valid = b.Less(columns, per_entry(b.slice(ends_and_starts, 0, 0, batch)))
    if isinstance(batch, int) and size_of(mask, 0) == batch:
        return valid
    twice = b.add(batch, batch)
    none = b.Expand(b.ints(0), b.vector(batch))
    starts = b.slice(b.Concat(ends_and_starts, none, axis=0), 0, batch, twice)
    has_starts = b.Equal(b.vector(b.extent(mask, 0)), b.vector(twice))
    starts = b.Where(has_starts, starts, b.ints(0))
    return b.And(valid, b.Not(b.Less(columns, per_entry(starts))))


__all__ = ["DEFAULT_FILTER", "Lengths", "additive_mask"]
