"""What a graph says about a value before it runs: element type, rank, sizes of axes.

Optimized models often carry no value_info, and onnx shape inference stops at the first op of an unknown
domain. So where a value has no type or shape of its own, its producer is asked, for the ops that stand
in front of attentions. None means unknown; nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import onnx_ir as ir

from onnx_attnq.graph import constant, known_op, signature_of

_MAX_DEPTH: Final = 32
"""How many producers are asked in a row. Long enough for any layer, and a bound on hostile chains."""

_LIKE_FIRST: Final = frozenset(
    {
        *("Identity", "Dropout", "Slice", "Split", "Concat", "Clip", "Relu", "Gelu", "Tanh", "Softmax", "Not", "Neg"),
        *("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "RotaryEmbedding"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FastGelu", "BiasGelu", "QuickGelu"),
        *("MatMulNBits", "CumSum"),
    }
)
"""Ops whose first output has the element type and the rank of their first input."""

_SAME_SHAPE: Final = (_LIKE_FIRST | {"Cast"}) - {"Slice", "Split", "Concat", "MatMulNBits"}
"""Ops whose first output has the shape of their first input."""

_BROADCASTING: Final = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "MatMul", "FusedMatMul", "And", "Or"})
"""Ops whose output has their inputs' element type and the greatest of their ranks."""

_COMPARING: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_TYPE_OF_FIRST: Final = frozenset({"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Gather", "Gemm"})
_ATTENTIONS: Final = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention"})


def element_type(*values: ir.Value | None) -> ir.DataType | None:
    """The element type of the first of the values for which it is known; None if it is for none."""
    return _first_type(values, _MAX_DEPTH)


def rank(value: ir.Value) -> int | None:
    """The number of axes of a value, or None if unknown."""
    return _rank(value, _MAX_DEPTH)


def dimension(value: ir.Value, axis: int) -> int | str | None:
    """The size of an axis as a fixed number, as the name that the model gives it, or None."""
    if value.shape is None or axis >= len(value.shape):
        return None
    found = value.shape[axis]
    return found if isinstance(found, int) else found.value


def size(value: ir.Value, axis: int) -> int | None:
    """The size of an axis if it is a fixed number, or None."""
    found = dimension(value, axis)
    return found if isinstance(found, int) else None


def width(value: ir.Value) -> int | None:
    """The size of the last axis if it is a fixed number, or None. A projection gives that of its weights."""
    return _width(value, _MAX_DEPTH)


def same_size(a: ir.Value, a_axis: int, b: ir.Value, b_axis: int) -> bool:
    """True when two axes are known to be equal: the same number, or the same name."""
    left, right = dimension(a, a_axis), dimension(b, b_axis)
    return left is not None and left == right


def _first_type(values: Iterable[ir.Value | None], depth: int) -> ir.DataType | None:
    found = (_element_type(value, depth) for value in values if value is not None)
    return next((dtype for dtype in found if dtype is not None), None)


def _element_type(value: ir.Value, depth: int) -> ir.DataType | None:
    node = value.producer()
    if value.dtype is not None or node is None or depth == 0:
        return value.dtype
    op_type, first_output = known_op(node), value.index() == 0
    if op_type == "Cast" and (to := node.attributes.get("to")) is not None and not to.is_ref():
        return ir.DataType(to.as_int())
    if op_type == "EmbedLayerNormalization":
        # Its inputs begin with two tensors of ids; its second output is a mask index.
        return ir.DataType.INT32 if value.index() == 1 else _first_type(node.inputs[2:4], depth - 1)
    if op_type in _COMPARING:
        return ir.DataType.BOOL
    if op_type == "Split" or (op_type in _LIKE_FIRST | _TYPE_OF_FIRST and first_output):
        return _first_type(node.inputs[:1], depth - 1)
    if op_type in _BROADCASTING | _ATTENTIONS:
        return _first_type(node.inputs, depth - 1) if first_output else None
    return _first_type(node.inputs[1:], depth - 1) if op_type == "Where" else None


def _rank(value: ir.Value, depth: int) -> int | None:
    node = value.producer()
    if value.shape is not None:
        return len(value.shape)
    if node is None or depth == 0:
        return None
    op_type, first_output = known_op(node), value.index() == 0
    if op_type == "EmbedLayerNormalization":
        return 1 if value.index() == 1 else 3
    if (signature := signature_of(node)) is not None:
        by_place = dict(enumerate(signature.output_ranks))
        first = node.inputs[0] if node.inputs else None
        return by_place.get(value.index() or 0) or (None if first is None else _rank(first, depth - 1))
    if op_type == "Split" or (op_type in _LIKE_FIRST | {"Cast"} and first_output):
        return None if node.inputs[0] is None else _rank(node.inputs[0], depth - 1)
    if op_type in _BROADCASTING | _COMPARING | {"Where"}:
        ranks = [None if operand is None else _rank(operand, depth - 1) for operand in node.inputs]
        fixed = [found for found in ranks if found is not None]
        return max(fixed) if fixed and len(fixed) == len(ranks) else None
    if op_type == "Transpose" and (perm := node.attributes.get("perm")) is not None and not perm.is_ref():
        return len(perm.as_ints())
    target = node.inputs[1] if op_type == "Reshape" and len(node.inputs) == 2 else None
    return None if target is None else _length(target)


def _length(vector: ir.Value) -> int | None:
    """The number of entries of a shape."""
    tensor = constant(vector)
    return size(vector, 0) if tensor is None else int(tensor.size)


def _width(value: ir.Value, depth: int) -> int | None:
    if value.shape is not None and (found := size(value, len(value.shape) - 1)) is not None:
        return found
    node = value.producer()
    if node is None or depth == 0 or value.index() != 0:
        return None
    if known_op(node) == "MatMul" and (weights := node.inputs[1]) is not None:
        return _width(weights, depth - 1)
    if known_op(node) == "MatMulNBits" and (columns := node.attributes.get("N")) is not None and not columns.is_ref():
        return columns.as_int()
    if known_op(node) in ("Add", "Sub", "Mul", "Div"):
        # What broadcasts has one column; a wider operand has those of the result.
        widths = {_width(operand, depth - 1) for operand in node.inputs if operand is not None} - {None, 1}
        return widths.pop() if len(widths) == 1 else None
    first = node.inputs[0] if known_op(node) in _SAME_SHAPE else None
    return None if first is None else _width(first, depth - 1)


__all__ = ["dimension", "element_type", "rank", "same_size", "size", "width"]
