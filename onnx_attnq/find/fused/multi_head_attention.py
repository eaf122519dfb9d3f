"""com.microsoft MultiHeadAttention, self and cross, in every layout of its inputs.

Source: the operator's text (onnxruntime, docs/ContribOperators.md) and its CPU kernel. The packed layouts
exist in CUDA kernels only; they follow the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from onnx_attnq.find.fused import core
from onnx_attnq.find.fused.builder import FusedBuilder
from onnx_attnq.find.fused.ms_mask import Lengths, additive_mask
from onnx_attnq.find.fused.node import FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dimension, same_size, size_of, width_of


def build(b: FusedBuilder, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Value | None]]:
    """Adds the nodes; returns the softmax and the values of output, present_key, present_value, qk."""
    fused = FusedNode(node)
    fused.refuse("past_sequence_length", "a cache that is changed in place cannot be told from one that grows")
    fused.refuse("cache_indirection", "the beams that it follows are no part of an attention")
    dtype = fused.element_type("query", "key", "value", "bias", "attention_bias", "past_key", "past_value")
    past = fused.both_or_none("past_key", "past_value")
    if past and not (fused.wants(1) and fused.wants(2)):
        raise Decline("onnxruntime ignores past_key where the output present_key is not wanted; name that output")

    query, key, value = _heads(b, fused, packed=past is None)
    keys, values = (core.append(b, old, new) for old, new in zip(past or (None, None), (key, value), strict=True))
    past_length = b.extent(past[0], 2) if past else 0
    queries, new_keys = b.extent(query, 2), b.extent(key, 2)
    square = same_size(query, 2, key, 2)
    lengths = Lengths(b.extent(query, 0), queries, past_length, b.add(past_length, new_keys), square=square)
    mask = additive_mask(b, fused, "key_padding_mask", lengths, dtype)
    scoring = core.Scoring(dtype=dtype, scale=fused.number("scale") or None, mask=mask)
    stages = core.attend(b, query, keys, values, scoring)
    shown = b.cast(stages.masked, dtype, core.score_type(dtype)) if fused.wants(3) else None
    return stages.softmax, (core.merge_heads(b, stages.context), keys, values, shown)


def _heads(b: FusedBuilder, fused: FusedNode, *, packed: bool) -> list[ir.Value]:
    """Query, key and value, each (B, N, L, D), with their share of the bias."""
    heads = fused.positive("num_heads")
    query, key, value = fused.require("query"), fused.get("key"), fused.get("value")
    if key is not None and value is not None:
        fused.rank("query", (3,))
        parts = [query, key, value]
    elif packed and key is not None:
        fused.rank("query", (3,))
        fused.rank("key", (5,))
        fused.refuse("bias", "with packed keys and values it is not defined")
        parts = [query, *_unpack(b, key, 2)]
    elif packed and value is None:
        fused.rank("query", (5,))
        parts = _unpack(b, query, 3)
    else:
        raise Decline("MultiHeadAttention defines neither a value without a key nor packed inputs with past_key")

    in_heads = [False, False, False]
    if key is not None and value is not None:
        in_heads[1:] = [fused.rank(name, (3, 4)) == 4 for name in ("key", "value")]
    biases = _biases(b, fused.get("bias"), parts[0])
    return [
        part if done else core.split_heads(b, _biased(b, part, bias), heads)
        for part, bias, done in zip(parts, biases, in_heads, strict=True)
    ]


def _unpack(b: FusedBuilder, packed: ir.Value, count: int) -> list[ir.Value]:
    """(B, L, N, count, D) to count times (B, L, N·D)."""
    heads, head_size = size_of(packed, 2), size_of(packed, 4)
    width = heads * head_size if heads is not None and head_size is not None else None
    extents = [b.extent(packed, axis) for axis in range(5)]
    outer, computed = extents[:2], b.Mul(b.vector(extents[2]), b.vector(extents[4])) if width is None else width
    parts = [b.exactly(part, *outer, computed) for part in b.split(packed, 3, count)]
    for part in parts:
        b.describe(part, packed, dimension(packed, 0), dimension(packed, 1), width)
    return parts


def _biases(b: FusedBuilder, bias: ir.Value | None, query: ir.Value) -> Sequence[ir.Value | None]:
    """Bias of query (N·D), key (N·D) and value (N·D_v)."""
    if bias is None:
        return None, None, None
    width, end = width_of(query) or b.extent(query, 2), b.extent(bias, 0)
    starts = (0, width, b.add(width, width), end)
    return [b.slice(bias, 0, start, stop) for start, stop in itertools.pairwise(starts)]


def _biased(b: FusedBuilder, part: ir.Value, bias: ir.Value | None) -> ir.Value:
    if bias is None:
        return part
    return b.describe(b.Add(part, bias), part, dimension(part, 0), dimension(part, 1), width_of(part))


__all__ = ["build"]
