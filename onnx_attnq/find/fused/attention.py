"""ai.onnx Attention, opsets 23 to 25 (onnx/defs/nn; the operator's text in the ONNX standard).

Where a kernel and the text differ, the text counts: a row without any key is zero, and with
``nonpad_kv_seqlen`` the causal triangle ends at the last valid key of each batch entry. A causal query i sees
the keys up to i + P, also the only query of several keys, which onnxruntime lets see all. What the fourth output
shows of masked scores is onnxruntime's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnx_attnq.find.fused import core
from onnx_attnq.find.fused.builder import FusedBuilder
from onnx_attnq.find.fused.node import FLOATS, FusedNode
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dimension, dtype_of, same_size, size_of


def build(b: FusedBuilder, node: ir.Node) -> tuple[ir.Node, Sequence[ir.Value | None]]:
    """Adds the nodes; returns the softmax and the values of the outputs Y, present_key, present_value, qk."""
    fused = FusedNode(node)
    dtype = fused.element_type("Q", "K", "V")
    rank = fused.rank("Q")
    past = fused.both_or_none("past_key", "past_value")
    scale = fused.number("scale", math.nan)
    if scale <= 0.0:
        raise Decline(f"scale {scale} is not positive, which the operator does not define")
    softcap = fused.number("softcap")
    if softcap < 0.0:
        raise Decline(f"softcap {softcap} is negative, which the operator does not define")
    mode = fused.integer("qk_matmul_output_mode")
    if mode not in (0, 1, 2, 3):
        raise Decline(f"qk_matmul_output_mode {mode} is not one of 0, 1, 2, 3")
    precision = fused.integer("softmax_precision", int(dtype))
    if precision not in [int(kind) for kind in FLOATS]:
        raise Decline(f"softmax_precision {precision} is not a floating-point type")
    if past and fused.get("nonpad_kv_seqlen"):
        raise Decline("nonpad_kv_seqlen and past_key exclude each other")

    query, key, value = (fused.require(name) for name in ("Q", "K", "V"))
    if rank == 3:
        heads, kv_heads = fused.positive("q_num_heads"), fused.positive("kv_num_heads")
        if heads % kv_heads:
            raise Decline(f"{heads} query heads cannot share {kv_heads} key heads evenly")
        query = core.split_heads(b, query, heads)
        key, value = (core.split_heads(b, x, kv_heads) for x in (key, value))
    present = [core.append(b, old, new) for old, new in zip(past or (None, None), (key, value), strict=True)]
    kv_heads, grouped = size_of(key, 1) or 0, _has_groups(fused, query, key)
    if grouped:
        keys, values = (core.for_group(b, x) for x in present)
    else:
        keys, values = (core.repeat_heads(b, x, b.extent(query, 1), b.extent(key, 1)) for x in present)

    mask, empty_rows = _mask(b, fused, query, present[0], dtype, kv_heads if grouped else None)
    scoring = core.Scoring(
        dtype=dtype,
        scale=None if math.isnan(scale) else scale,
        softcap=softcap,
        mask=mask,
        empty_rows=empty_rows,
        # float32 is the least: a softmax in half precision would only be less exact.
        precision=ir.DataType.DOUBLE if precision == ir.DataType.DOUBLE else None,
    )
    if grouped:
        stages = core.attend(b, core.by_group(b, query, kv_heads), keys, values, scoring, rank=5)
        context = b.exactly(stages.context, *(b.extent(query, axis) for axis in range(3)), b.extent(value, 3))
        shape = [dimension(query, axis) for axis in range(3)]
        context = b.describe(context, query, *shape, dimension(value, 3))
    else:
        stages = core.attend(b, query, keys, values, scoring)
        context = stages.context
    shown = _shown(b, fused, stages, mode, dtype) if fused.wants(3) else None
    context = core.merge_heads(b, context) if rank == 3 else context
    return stages.softmax, (context, *present, shown)


def _has_groups(fused: FusedNode, query: ir.Value, key: ir.Value) -> bool:
    """Whether key heads serve several query heads each, and can do so without being repeated: all sizes are known."""
    heads, kv_heads = size_of(query, 1), size_of(key, 1)
    if heads is None or kv_heads is None or heads == kv_heads or heads % kv_heads or fused.wants(3):
        return False
    mask = fused.get("attn_mask")
    rank = 0 if mask is None else fused.rank("attn_mask")
    return mask is None or rank < 3 or size_of(mask, rank - 3) in (1, heads)


def _shown(b: FusedBuilder, fused: FusedNode, stages: core.Stages, mode: int, dtype: ir.DataType) -> ir.Value:
    """The fourth output: the stage that ``qk_matmul_output_mode`` asks for."""
    if mode == 3:
        return stages.probabilities
    shown = (stages.product, stages.capped, stages.masked)[mode]
    if mode == 2 and (not fused.get("attn_mask") or fused.integer("is_causal") or _is_boolean(fused)):
        # By the operator's text what is masked is -inf; onnxruntime shows the lowest finite number of the model's type,
        # unless a mask of numbers says -inf. Readers of the scores get what onnxruntime gives.
        lowest = float(dtype.min)
        shown = b.Max(shown, b.constant(lowest, core.score_type(dtype)))
    return b.cast(shown, dtype, core.score_type(dtype))


def _is_boolean(fused: FusedNode) -> bool:
    return dtype_of(fused.require("attn_mask")) == ir.DataType.BOOL


def _mask(
    b: FusedBuilder, fused: FusedNode, query: ir.Value, key: ir.Value, dtype: ir.DataType, kv_heads: int | None
) -> tuple[ir.Value | None, ir.Value | None]:
    """The additive mask of all three sources, and the rows that it leaves without a key.

    With ``kv_heads`` it has five axes, that of the heads split in two.
    """
    queries, keys = b.extent(query, 2), b.extent(key, 2)
    past_key, valid = fused.get("past_key"), fused.get("nonpad_kv_seqlen")
    terms = []
    may_be_empty = False
    if fused.get("attn_mask"):
        given = _given_mask(b, fused, key, dtype)
        terms.append(given if kv_heads is None else _mask_by_group(b, fused, given, kv_heads))
        may_be_empty = True
    if valid is not None:
        valid = b.reshape(valid, -1, *[1] * (3 if kv_heads is None else 4))
        terms.append(core.select(b, b.Less(b.arange(keys), valid), 0.0, -math.inf, dtype))
        may_be_empty = True
    left, right = fused.integer("left_window_size", -1), fused.integer("right_window_size", -1)
    if fused.integer("is_causal"):
        right = 0
    if left >= 0 or right >= 0:
        offset = b.extent(past_key, 2) if past_key is not None else 0
        if valid is not None:
            offset = b.Sub(valid, b.vector(queries))
        distance = core.distance(b, queries, keys, offset)
        if right >= 0:
            terms.append(core.select(b, core.exceeds(b, distance, right), -math.inf, 0.0, dtype))
        if left >= 0:
            earlier = b.Less(distance, b.constant(-left, ir.DataType.INT64))
            terms.append(core.select(b, earlier, -math.inf, 0.0, dtype))
            may_be_empty = True
    if not terms:
        return None, None
    mask = terms[0]
    for term in terms[1:]:
        mask = b.Add(mask, term)
    if not may_be_empty:
        return mask, None
    return mask, b.Equal(b.reduce("ReduceMax", mask, -1, keepdims=True), b.constant(-math.inf, core.score_type(dtype)))


def _mask_by_group(b: FusedBuilder, fused: FusedNode, mask: ir.Value, kv_heads: int) -> ir.Value:
    """(…, N, L_q, L_k) to (…, N_kv, N / N_kv, L_q, L_k), or 1 in the place of both."""
    given, rank = fused.require("attn_mask"), fused.rank("attn_mask")
    if rank < 3:
        return mask
    heads = size_of(given, rank - 3) or 1
    split = (1, 1) if heads == 1 else (kv_heads, heads // kv_heads)
    batch = [b.extent(given, 0)] if rank == 4 else []
    return b.exactly(mask, *batch, *split, b.extent(mask, rank - 2), b.extent(mask, rank - 1))


def _given_mask(b: FusedBuilder, fused: FusedNode, key: ir.Value, dtype: ir.DataType) -> ir.Value:
    mask = fused.require("attn_mask")
    rank = fused.rank("attn_mask")
    kind = dtype_of(mask)
    if kind == ir.DataType.BOOL:
        added = core.select(b, mask, 0.0, -math.inf, dtype)
    elif kind == dtype:
        added = b.cast(mask, core.score_type(dtype), dtype)
    else:
        raise Decline(f"attn_mask has element type {kind.name if kind else 'unknown'}, neither bool nor {dtype.name}")
    if b.opset < 24 or same_size(mask, rank - 1, key, 2):
        return added
    if size_of(mask, rank - 1) == 1:
        raise Decline("attn_mask has one column, which could mean broadcasting or padding; expand it to all keys")
    # From opset 24 on the mask may be shorter than the keys: what is missing is masked.
    missing = b.subtract(b.extent(key, 2), b.extent(mask, rank - 1))
    pads = b.vector(*[0] * (2 * rank - 1), missing)
    return b.Pad(added, pads, b.constant(-math.inf, core.score_type(dtype)))


__all__ = ["build"]
