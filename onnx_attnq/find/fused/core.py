"""The one attention that all four fused ops become, in named stages.

    product       (query @ keyᵀ) · scale
    capped        softcap · tanh(product / softcap)
    masked        capped + mask
    probabilities softmax of masked, with a sink column that is cut off again
    context       probabilities @ value

Shapes: query (B, N, L_q, D), key (B, N, L_k, D), value (B, N, L_k, D_v). Key and value may have fewer heads than the
query: head n of the query then belongs to head n // (N / N_kv) of theirs, and the queries of a group are rows of one
matrix, so that no key is copied. float16 and bfloat16 models get
their scores and softmax in float32, as in the kernels of onnxruntime: a mask value of -10000 is harmless
there, and -3.4e38 is outside of float16's range.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnx_attnq.find.fused.builder import Extent, FusedBuilder
from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import dimension, size_of, width_of


@dataclasses.dataclass(frozen=True, slots=True)
class Scoring:
    """How scores become probabilities.

    Attributes:
        dtype: Element type of query, key, value and context.
        scale: Factor on the product; None for 1/√D.
        softcap: 0 for none.
        mask: Added to the scores; in `score_type`, broadcastable to (B, N, L_q, L_k).
        sink: Logits in `score_type`, broadcastable to (B, N, L_q, 1), that take part in the softmax and
            belong to no key.
        empty_rows: bool, broadcastable to (B, N, L_q, 1): rows whose probabilities are all 0.
        precision: Element type of the softmax; None for that of the scores.
    """

    dtype: ir.DataType
    scale: float | None = None
    softcap: float = 0.0
    mask: ir.Value | None = None
    sink: ir.Value | None = None
    empty_rows: ir.Value | None = None
    precision: ir.DataType | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stages:
    """The values of one attention.

    ``product``, ``capped`` and ``masked`` are in `score_type`, ``probabilities`` and ``context`` in the
    model's type. All are (B, N, L_q, L_k) but ``context``, which is (B, N, L_q, D_v).
    """

    product: ir.Value
    capped: ir.Value
    masked: ir.Value
    softmax: ir.Node
    probabilities: ir.Value
    context: ir.Value


def score_type(dtype: ir.DataType) -> ir.DataType:
    """The element type of the scores: float32, or double in a double model."""
    return ir.DataType.DOUBLE if dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def lowest(dtype: ir.DataType) -> float:
    """The lowest finite score. It masks as well as -inf, and a row of it is no NaN."""
    return float(np.finfo(score_type(dtype).numpy()).min)


def attend(b: FusedBuilder, query: ir.Value, key: ir.Value, value: ir.Value, how: Scoring, rank: int = 4) -> Stages:
    """Adds the nodes of one attention.

    Of rank 5 the query is (B, N_kv, N / N_kv, L_q, D), and key and value have 1 in the middle, so that they broadcast.
    """
    scores, last = score_type(how.dtype), rank - 1
    shape = [*(dimension(query, axis) for axis in range(last)), dimension(key, last - 1)]

    def typed(stage: ir.Value, dtype: ir.DataType = scores) -> ir.Value:
        stage.dtype, stage.shape = dtype, ir.Shape(shape)
        return stage

    heads, kv_heads = size_of(query, 1), size_of(key, 1)
    grouped = heads is not None and kv_heads is not None and heads != kv_heads
    batch, queries = (b.extent(query, axis) for axis in (0, 2)) if grouped else (0, 0)
    rows = b.times(queries, (heads or 0) // (kv_heads or 1))
    transposed = b.transpose(b.cast(key, scores, how.dtype), *range(last - 1), last, last - 1)
    left = b.cast(query, scores, how.dtype)
    if grouped:
        left = b.exactly(left, batch, kv_heads or 0, rows, b.extent(query, 3))
    product = b.Mul(b.MatMul(left, transposed), _scale(b, query, how, last))
    if grouped:
        product = b.exactly(product, batch, heads or 0, queries, b.extent(key, 2))
    product = capped = typed(product)
    if how.softcap:
        softcap = b.constant(how.softcap, scores)
        capped = typed(b.Mul(b.Tanh(b.Div(product, softcap)), softcap))
    masked = capped if how.mask is None else typed(b.Add(capped, how.mask))

    precision = how.precision or scores
    logits = typed(b.cast(masked, precision, scores), precision)
    if how.sink is not None:
        column = b.vector(b.extent(query, 0), b.extent(query, 1), b.extent(query, 2), 1)
        logits = b.Concat(logits, b.Expand(b.cast(how.sink, precision, scores), column), axis=3)
        logits.dtype = precision
    probabilities = b.Softmax(logits, axis=-1)
    softmax, probabilities.dtype = b.nodes[-1], precision
    if how.sink is not None:
        probabilities = b.slice(probabilities, 3, 0, -1)
    probabilities = typed(probabilities, precision)
    if how.empty_rows is not None:
        zero = b.constant(0.0, precision)
        probabilities = typed(b.Where(how.empty_rows, zero, probabilities), precision)
    probabilities = typed(b.cast(probabilities, how.dtype, precision), how.dtype)
    right = probabilities
    if grouped:
        right = b.exactly(probabilities, batch, kv_heads or 0, rows, b.extent(value, 2))
    context = b.MatMul(right, value)
    if grouped:
        context = b.exactly(context, batch, heads or 0, queries, b.extent(value, 3))
    context.dtype, context.shape = how.dtype, ir.Shape([*shape[:last], dimension(value, last)])
    return Stages(product, capped, masked, softmax, probabilities, context)


def _scale(b: FusedBuilder, query: ir.Value, how: Scoring, last: int) -> ir.Value:
    scores = score_type(how.dtype)
    if how.scale is not None:
        return b.constant(how.scale, scores)
    head_size = b.extent(query, last)
    if head_size == 0:
        raise Decline("its query has no width: the head size is 0")
    if isinstance(head_size, int):
        return b.constant(head_size**-0.5, scores)
    return b.Div(b.constant(1.0, scores), b.Sqrt(b.cast(head_size, scores)))


# Heads.


def split_heads(b: FusedBuilder, hidden: ir.Value, heads: int) -> ir.Value:
    """(B, L, N·D) to (B, N, L, D)."""
    width = width_of(hidden)
    head_size = None if width is None else width // heads
    if head_size:
        parts = b.reshape(hidden, 0, 0, heads, head_size)
    else:
        computed = b.Div(b.vector(b.extent(hidden, 2)), b.ints(heads))
        parts = b.exactly(hidden, b.extent(hidden, 0), b.extent(hidden, 1), heads, computed)
    split = b.transpose(parts, 0, 2, 1, 3)
    return b.describe(split, hidden, dimension(hidden, 0), heads, dimension(hidden, 1), head_size)


def merge_heads(b: FusedBuilder, context: ir.Value) -> ir.Value:
    """(B, N, L, D) to (B, L, N·D)."""
    heads, head_size = b.extent(context, 1), b.extent(context, 3)
    rows = b.transpose(context, 0, 2, 1, 3)
    if isinstance(heads, int) and isinstance(head_size, int):
        return b.reshape(rows, 0, 0, heads * head_size)
    width = b.Mul(b.vector(heads), b.vector(head_size))
    return b.exactly(rows, b.extent(context, 0), b.extent(context, 2), width)


def repeat_heads(b: FusedBuilder, cache: ir.Value, heads: Extent, kv_heads: Extent) -> ir.Value:
    """(B, N_kv, L, D) to (B, N, L, D): head n of the result is head n // (N / N_kv)."""
    if heads == kv_heads:
        return cache
    if isinstance(heads, int) and isinstance(kv_heads, int):
        group: Extent = heads // kv_heads
    else:
        group = b.Div(b.vector(heads), b.vector(kv_heads))
    grouped = b.Expand(b.unsqueeze(cache, 2), b.vector(1, 1, group, 1, 1))
    repeated = b.exactly(grouped, b.extent(cache, 0), heads, b.extent(cache, 2), b.extent(cache, 3))
    batch, _, length, head_size = (dimension(cache, axis) for axis in range(4))
    return b.describe(repeated, cache, batch, heads if isinstance(heads, int) else None, length, head_size)


def by_group(b: FusedBuilder, query: ir.Value, kv_heads: int) -> ir.Value:
    """(B, N, L, D) to (B, N_kv, N / N_kv, L, D); N is known."""
    heads = size_of(query, 1) or kv_heads
    batch, _, length, head_size = (dimension(query, axis) for axis in range(4))
    outer, inner = b.extent(query, 0), (b.extent(query, 2), b.extent(query, 3))
    split = b.exactly(query, outer, kv_heads, heads // kv_heads, *inner)
    return b.describe(split, query, batch, kv_heads, heads // kv_heads, length, head_size)


def for_group(b: FusedBuilder, cache: ir.Value) -> ir.Value:
    """(B, N_kv, L, D) to (B, N_kv, 1, L, D)."""
    batch, kv_heads, length, head_size = (dimension(cache, axis) for axis in range(4))
    return b.describe(b.unsqueeze(cache, 2), cache, batch, kv_heads, 1, length, head_size)


# Past and masks.


def append(b: FusedBuilder, past: ir.Value | None, new: ir.Value) -> ir.Value:
    """The past keys or values, (B, N, P, D), followed by the new ones, (B, N, L, D)."""
    if past is None:
        return new
    batch, heads, _, head_size = (dimension(new, axis) for axis in range(4))
    old_length, new_length = size_of(past, 2), size_of(new, 2)
    length = None if old_length is None or new_length is None else old_length + new_length
    return b.describe(b.Concat(past, new, axis=2), new, batch, heads, length, head_size)


def distance(b: FusedBuilder, queries: Extent, keys: Extent, offset: Extent | ir.Value) -> ir.Value:
    """Position of the key less position of the query, int64: (L_q, L_k), or (B, 1, L_q, L_k).

    Args:
        b: Builder.
        queries: L_q.
        keys: L_k.
        offset: Position of the first query among the keys: one number, or (B, 1, 1, 1).
    """
    rows = b.Add(b.unsqueeze(b.arange(queries), 1), b.vector(offset))
    return b.Sub(b.arange(keys), rows)


def select(b: FusedBuilder, condition: ir.Value, where_true: float, where_false: float, dtype: ir.DataType) -> ir.Value:
    """An additive mask of two values, in `score_type`."""
    scores = score_type(dtype)
    return b.Where(condition, b.constant(where_true, scores), b.constant(where_false, scores))


def exceeds(b: FusedBuilder, value: ir.Value, bound: int, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """True where the value is above the bound."""
    return b.Greater(value, b.constant(bound, dtype))


__all__ = [
    "Scoring",
    "Stages",
    "append",
    "attend",
    "by_group",
    "distance",
    "exceeds",
    "for_group",
    "lowest",
    "merge_heads",
    "repeat_heads",
    "score_type",
    "select",
    "split_heads",
]
