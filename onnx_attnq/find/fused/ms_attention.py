"""com.microsoft Attention: the projection to query, key and value is part of the op.

Source: the operator's text (onnxruntime, docs/ContribOperators.md) and its CPU kernel. A 4-D mask and a
shared cache exist in CUDA kernels only; they follow the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_attnq.find.fused import core
from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.find.fused.ms_mask import Lengths, additive_mask
from onnx_attnq.find.fused.node import FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dimension, size_of


def build(b: FusedBuilder, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Value | None]]:
    """Adds the nodes; returns the softmax and the values of the outputs output, present."""
    fused = FusedNode(node)
    if fused.integer("do_rotary"):
        raise Decline("do_rotary of com.microsoft Attention rotates in CUDA kernels only; use GroupQueryAttention")
    if fused.get("past") is not None and fused.get("attention_bias") is not None:
        raise Decline("com.microsoft Attention defines no attention_bias together with past")
    if fused.get("past") is not None and not fused.wants(1):
        raise Decline("com.microsoft Attention defines past only together with the output present")
    dtype = fused.element_type("weights", "input", "bias", "past", "attention_bias")

    query, key, value = _project(b, fused)
    queries = b.extent(query, 2)
    past_length, past_keys, past_values = _past(b, fused)
    keys, values = core.append(b, past_keys, key), core.append(b, past_values, value)
    lengths = Lengths(b.extent(query, 0), queries, past_length, b.add(past_length, queries), square=True)
    mask = additive_mask(b, fused, "mask_index", lengths, dtype)
    stages = core.attend(
        b, query, keys, values, core.Scoring(dtype=dtype, scale=fused.number("scale") or None, mask=mask)
    )
    present = _present(b, fused, keys, values, lengths.keys) if fused.wants(1) else None
    return stages.softmax, (core.merge_heads(b, stages.context), present)


def _project(b: FusedBuilder, fused: FusedNode) -> list[ir.Value]:
    """Query, key and value, each (B, N, L, D)."""
    hidden, weights, heads = fused.require("input"), fused.require("weights"), fused.positive("num_heads")
    width = size_of(weights, 1)
    sizes: Sequence[int | None] = fused.integers("qkv_hidden_sizes")
    if not sizes:
        sizes = (None if width is None else width // 3,) * 3
    elif len(sizes) != 3 or sizes[0] != sizes[1]:
        raise Decline(f"qkv_hidden_sizes {list(sizes)} does not give query and key the same size")
    if any(size is not None and size % heads for size in sizes):
        raise Decline(f"the hidden sizes {list(sizes)} are no multiples of {heads} heads")

    projected = b.MatMul(hidden, weights)
    if (bias := fused.get("bias")) is not None:
        projected = b.Add(projected, bias)
    fixed = [size for size in sizes if size is not None]
    parts = b.split(projected, 2, fixed if len(set(fixed)) > 1 else 3)
    for part, size in zip(parts, sizes, strict=True):
        b.describe(part, weights, dimension(hidden, 0), dimension(hidden, 1), size)
    return [core.split_heads(b, part, heads) for part in parts]


def _past(b: FusedBuilder, fused: FusedNode) -> tuple[Extent, ir.Value | None, ir.Value | None]:
    """P, and the past keys and values, (B, N, P, D), out of one tensor (2, B, N, P or more, D)."""
    past = fused.get("past")
    if past is None:
        return 0, None, None
    keys, values = (b.squeeze(half, 0) for half in b.split(past, 0, 2))
    if not fused.integer("past_present_share_buffer"):
        return b.extent(past, 3), keys, values
    length = b.reshape(b.cast(fused.require("past_sequence_length"), ir.DataType.INT64), 1)
    return length, b.slice(keys, 2, 0, length), b.slice(values, 2, 0, length)


def _present(b: FusedBuilder, fused: FusedNode, keys: ir.Value, values: ir.Value, length: Extent) -> ir.Value:
    present = b.Concat(b.unsqueeze(keys, 0), b.unsqueeze(values, 0), axis=0)
    past = fused.get("past")
    if past is None or not fused.integer("past_present_share_buffer"):
        return present
    return b.Concat(present, b.slice(past, 3, length, b.extent(past, 3)), axis=3)


__all__ = ["build"]
