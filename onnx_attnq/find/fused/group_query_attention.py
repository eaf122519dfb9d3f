"""com.microsoft GroupQueryAttention: causal, with a cache whose entries may differ in length.

Source: the operator's text (onnxruntime, docs/ContribOperators.md) and its CPU kernel. Batch entry b has
T = seqlens_k[b] + 1 keys and Q queries, query_seqlens[b] or else L_q. Query i is at the position
min(max(T - Q, 0) + i, T - 1) and sees the keys up to there, or the last ``local_window_size`` of them; with
``causal`` 0 it sees all. The keys before the first query are in the cache. A layer without keys of its own
(L = 0) reads the cache of another layer, and finds all T there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnx_attnq.find.fused import core
from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.find.fused.node import FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.find.fused.quantized_cache import cache_scales, dequantized, quantized
from onnx_attnq.find.fused.rotary import Rotation, rotate, rotation
from onnx_attnq.graph import dimension, same_tokens, size_of, width_of


@dataclasses.dataclass(frozen=True, slots=True)
class _Lengths:
    """B, L_q, L and the greatest T; per batch entry, (B, 1, 1): T, position of the first query, cached keys, new keys.

    ``new`` is None where every batch entry has L.
    """

    batch: Extent
    queries: Extent
    new_rows: Extent
    total: ir.Value
    keys: ir.Value
    first: ir.Value
    cached: ir.Value
    new: ir.Value | None


def build(b: FusedBuilder, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Value | None]]:
    """Adds the nodes; returns the softmax and the values of output, present_key, present_value, output_qk."""
    fused = FusedNode(node)
    _refuse(fused)
    caches = () if fused.integer("kv_cache_bit_width") else ("past_key", "past_value")
    dtype = fused.element_type("query", "key", "value", *caches, "cos_cache", "head_sink")
    past = fused.both_or_none("past_key", "past_value")
    if past and not (fused.wants(1) and fused.wants(2)):
        raise Decline("onnxruntime ignores past_key where the output present_key is not wanted; name that output")
    heads, kv_heads = fused.positive("num_heads"), fused.positive("kv_num_heads")
    if heads % kv_heads:
        raise Decline(f"{heads} query heads cannot share {kv_heads} key heads evenly")

    lengths = _lengths(b, fused)
    query, key, value = _heads(b, fused, lengths, heads, kv_heads)
    scales = cache_scales(b, fused, kv_heads)
    # The cache may be longer than what is in it: from here on, all costs follow what is in it.
    if scales is None:
        present = _present(b, past, (key, value), kv_heads, lengths, dtype)
        keys, values = (_filled(b, x, lengths) for x in present)
    else:
        fused.refuse("query_seqlens", "together with a quantized cache it is not decomposed; use a float cache")
        fresh = quantized(b, key, dtype, scales[0]), quantized(b, value, dtype, scales[1])
        present = _present(b, past, fresh, kv_heads, lengths, scales[0].dtype)
        keys, values = (
            dequantized(b, _filled(b, cache, lengths), like, dtype, scale)
            for cache, like, scale in zip(present, (key, value), scales, strict=True)
        )
    visible = _visible(b, fused, lengths)
    mask = core.select(b, visible, 0.0, core.lowest(dtype), dtype)
    if (bias := fused.get("attention_bias")) is not None:
        mask = b.Add(mask, b.cast(bias, core.score_type(dtype), dtype))
    scoring = core.Scoring(
        dtype=dtype,
        scale=fused.number("scale") or None,
        softcap=fused.number("softcap"),
        mask=mask,
        sink=_sink(b, fused, dtype),
    )
    stages = core.attend(b, query, keys, values, scoring)
    shown = None
    if fused.wants(3) and fused.integer("qk_output") == 2:
        shown = stages.probabilities
    elif fused.wants(3) and fused.integer("qk_output") == 1:
        zero = b.constant(0.0, core.score_type(dtype))
        shown = b.cast(b.Where(visible, stages.masked, zero), dtype, core.score_type(dtype))
    return stages.softmax, (core.merge_heads(b, stages.context), *present, shown)


def _refuse(fused: FusedNode) -> None:
    for name in ("q_norm_weight", "k_norm_weight"):
        fused.refuse(name, "the norm of query and key must stay in front of the op to be seen")
    if fused.get("query_seqlens") is not None:
        fused.refuse("position_ids", "together with query_seqlens it is not defined")
    if fused.integer("sliding_window_cache"):
        raise Decline(
            "sliding_window_cache keeps only the last keys and moves them to the front; use a full cache: set the "
            "attribute to 0 and give past and present room for the whole text; local_window_size stays"
        )
    window = fused.integer("local_window_size", -1)
    if window == 0 or (window > 0 and not fused.integer("causal", 1)):
        raise Decline(f"local_window_size {window} is not defined, or not without causal")


def _lengths(b: FusedBuilder, fused: FusedNode) -> _Lengths:
    query = fused.require("query")
    key = fused.get("key") or query  # or packed into it
    queries = b.extent(query, 1)
    new_rows = queries if same_tokens(query, key) else b.extent(key, 1)
    keys = b.reshape(b.cast(fused.require("seqlens_k"), ir.DataType.INT64), -1, 1, 1)
    keys = b.Add(keys, b.ints(1))
    total = b.reshape(b.cast(fused.require("total_sequence_length"), ir.DataType.INT64), 1)

    def before(count: ir.Value) -> ir.Value:
        return b.maximum(b.Sub(keys, count), b.ints(0))

    if (valid := fused.get("query_seqlens")) is not None:
        new = b.reshape(b.cast(valid, ir.DataType.INT64), -1, 1, 1)
        first = cached = before(new)
    else:
        new = None
        cached = before(b.vector(new_rows))
        first = cached if same_tokens(query, key) else before(b.vector(queries))
    batch = size_of(query, 0)
    return _Lengths(b.extent(keys, 0) if batch is None else batch, queries, new_rows, total, keys, first, cached, new)


def _heads(
    b: FusedBuilder, fused: FusedNode, lengths: _Lengths, heads: int, kv_heads: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query (B, N, L_q, D), key and value (B, N_kv, L, D), rotated where the op does that.

    The op has no input of another rank than 3 to make them of. Query and key are rotated as one tensor.
    """
    packed, by = fused.require("query"), _rotation(b, fused, lengths)
    pair = fused.both_or_none("key", "value")
    if pair and by is not None and (joined := _joined(b, packed, *pair)) is not None:
        packed, pair = joined, None
    if pair:
        query, key, value = core.split_heads(b, packed, heads), *(core.split_heads(b, x, kv_heads) for x in pair)
        if by is not None and lengths.new_rows != 0:
            key = rotate(b, key, by)
        if by is not None:
            query = rotate(b, query, by)
    else:
        together, value = _parts(b, core.split_heads(b, packed, heads + 2 * kv_heads), heads + kv_heads, kv_heads)
        query, key = _parts(b, together if by is None else rotate(b, together, by), heads, kv_heads)
    b.note_extents(query, {0: lengths.batch, 2: lengths.queries})
    for one in (key, value):
        b.note_extents(one, {0: lengths.batch, 2: lengths.new_rows})
    return query, key, value


def _joined(b: FusedBuilder, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value | None:
    """The three packed into one, if they are known to be of as many tokens: one rotation is fewer nodes than two."""
    widths = [width_of(x) for x in (query, key, value)]
    if None in widths or not (same_tokens(query, key) and same_tokens(query, value)):
        return None
    width = sum(width for width in widths if width is not None)
    joined = b.Concat(query, key, value, axis=2)
    return b.describe(joined, query, dimension(query, 0), dimension(query, 1), width)


def _parts(b: FusedBuilder, x: ir.Value, *counts: int) -> Sequence[ir.Value]:
    """So many of the heads of (B, N, L, D), and the rest."""
    batch, _, length, head_size = (dimension(x, axis) for axis in range(4))
    parts = b.split(x, 1, counts)
    return [b.describe(part, x, batch, count, length, head_size) for part, count in zip(parts, counts, strict=True)]


def _rotation(b: FusedBuilder, fused: FusedNode, lengths: _Lengths) -> Rotation | None:
    if not fused.integer("do_rotary"):
        return None
    caches = fused.both_or_none("cos_cache", "sin_cache")
    if caches is None:
        raise Decline("do_rotary needs the inputs cos_cache and sin_cache")
    steps = b.arange(lengths.queries)
    positions = b.Add(lengths.first, steps)
    if (given := fused.get("position_ids")) is not None:
        # At the first prompt the kernel counts on from the very first position that is given.
        start = b.slice(b.reshape(given, -1), 0, 0, 1)
        prompt = b.Equal(lengths.total, b.vector(lengths.queries))
        positions = b.Where(prompt, b.Add(start, steps), given)
        positions = b.unsqueeze(b.Expand(positions, b.vector(lengths.batch, 1)), 1)
    dtype = fused.element_type("query", "cos_cache", "sin_cache")
    return rotation(b, caches, positions, dtype, interleaved=bool(fused.integer("rotary_interleaved")))


def _present(
    b: FusedBuilder,
    past: tuple[ir.Value, ir.Value] | None,
    new: tuple[ir.Value, ir.Value],
    kv_heads: int,
    lengths: _Lengths,
    dtype: ir.DataType,
) -> Sequence[ir.Value]:
    """The caches, (B, N_kv, C, D): what was cached, with the new rows written behind that.

    C is the length of the past cache, or the greatest number of keys if that is more. What is behind the last key
    is not defined.
    """
    if past is None:
        return new
    if lengths.new_rows == 0:
        return past
    if lengths.new is not None:
        return _merged(b, past, new, kv_heads, lengths, lengths.new, dtype)
    # (entry, head, row) of every new row; what does not depend on the rows is the same in all layers.
    entries = b.Mul(b.reshape(b.arange(lengths.batch), -1, 1, 1, 1), b.ints(1, 0, 0))
    places = b.Add(entries, b.constant([[[0, head, 0]] for head in range(kv_heads)], ir.DataType.INT64))
    rows = b.unsqueeze(b.Add(lengths.cached, b.arange(lengths.new_rows)), 3)
    index = b.Add(places, b.Mul(rows, b.ints(0, 0, 1)))
    before = b.vector(b.extent(past[0], 2))
    # Where old and result are one buffer, onnxruntime's ScatterND writes nothing but the new rows.
    fits, longer = b.branch(), b.branch()
    results = [fits.ScatterND(old, index, fresh) for old, fresh in zip(past, new, strict=True)]
    grown = []
    for old, fresh in zip(past, new, strict=True):
        more = longer.Sub(lengths.total, before)
        zeros = longer.ConstantOfShape(longer.vector(lengths.batch, kv_heads, more, longer.extent(fresh, 3)))
        padded = longer.Concat(old, longer.cast(zeros, dtype, ir.DataType.FLOAT), axis=2)
        grown.append(longer.ScatterND(padded, index, fresh))
    present = b.choose(b.Less(before, lengths.total), longer, grown, fits, results)
    for cache, fresh in zip(present, new, strict=True):
        size, _, _, head_size = (dimension(fresh, axis) for axis in range(4))
        b.describe(cache, fresh, size, kv_heads, None, head_size)
    return present


def _merged(
    b: FusedBuilder,
    past: tuple[ir.Value, ir.Value],
    fresh: tuple[ir.Value, ir.Value],
    kv_heads: int,
    lengths: _Lengths,
    new: ir.Value,
    dtype: ir.DataType,
) -> Sequence[ir.Value]:
    """The same where batch entries have different numbers of new rows; zeros follow the last key.

    Of the P rows of the past and the new rows, one after the other, row j of the cache is row j while that is
    cached, then row P + j - cached.
    """
    before = b.extent(past[0], 2)
    rows = b.arange(b.maximum(lengths.total, b.vector(before)))
    behind = b.Sub(rows, lengths.cached)  # (B, 1, rows)
    used = b.Less(behind, new)
    index = b.Where(b.Less(behind, b.ints(0)), rows, b.Add(behind, b.vector(before)))
    index = b.Where(used, index, b.ints(0))
    # All heads of all batch entries one under the other, so that one Gather copies whole rows.
    heads = b.arange(b.times(lengths.batch, kv_heads))
    top = b.Mul(heads, b.vector(b.add(before, lengths.new_rows)))
    index = b.Add(b.reshape(top, -1, kv_heads, 1), index)
    used = b.unsqueeze(used, 3)
    present = []
    for old, appended in zip(past, fresh, strict=True):
        flat = b.reshape(core.append(b, old, appended), -1, b.extent(appended, 3))
        cache = b.Where(used, b.Gather(flat, index, axis=0), b.constant(0.0, dtype))
        batch, _, _, head_size = (dimension(appended, axis) for axis in range(4))
        present.append(b.describe(cache, appended, batch, kv_heads, None, head_size))
    return present


def _filled(b: FusedBuilder, cache: ir.Value, lengths: _Lengths) -> ir.Value:
    """The rows of a cache that hold a key of some batch entry."""
    batch, kv_heads, _, head_size = (dimension(cache, axis) for axis in range(4))
    filled = b.describe(b.slice(cache, 2, 0, lengths.total), cache, batch, kv_heads, None, head_size)
    b.note_extents(filled, {0: lengths.batch, 2: lengths.total})
    return filled


def _visible(b: FusedBuilder, fused: FusedNode, lengths: _Lengths) -> ir.Value:
    """The keys that a query sees: bool, (B, 1, L_q, total)."""
    last_key = b.Sub(lengths.keys, b.ints(1))
    position = last_key
    if fused.integer("causal", 1):
        position = b.minimum(b.Add(lengths.first, b.arange(lengths.queries)), last_key)
    keys, position = b.arange(lengths.total), b.unsqueeze(position, 3)
    visible = b.Less(b.Sub(keys, b.ints(1)), position)
    window = fused.integer("local_window_size", -1)
    if window > 0:
        visible = b.And(visible, b.Less(b.Sub(position, b.ints(window)), keys))
    return visible


def _sink(b: FusedBuilder, fused: FusedNode, dtype: ir.DataType) -> ir.Value | None:
    """A logit per head, or 0 for all: (1, N, 1, 1)."""
    if (sink := fused.get("head_sink")) is not None:
        return b.cast(b.reshape(sink, 1, -1, 1, 1), core.score_type(dtype), dtype)
    if fused.integer("smooth_softmax"):
        return b.constant([[[[0.0]]]], core.score_type(dtype))
    return None


__all__ = ["build"]
