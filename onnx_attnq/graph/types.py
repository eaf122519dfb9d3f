"""Ranks, element types and sizes of values in models that carry none, as TorchScript's and optimized ones often do.

onnx's own inference (onnx_ir's ShapeInferencePass) is not used here: it writes what it finds into the model, which has
to stay as it is; it stops at the first op of an unknown domain; and where a shape is computed it has no rank. So the
producers are asked, one after another, for the ops that are found around attentions.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from typing import Final, TypeAlias

import onnx_ir as ir

from onnx_attnq.graph.constants import constant
from onnx_attnq.graph.dataflow import Dataflow, subgraphs
from onnx_attnq.graph.fused_ops import signature_of
from onnx_attnq.graph.ops import OWN_DOMAIN, known_op

_MOST_DEPTH: Final = 64
"""How many producers are asked in a row: more than any layer has, and a bound on hostile chains."""

_Ranks: TypeAlias = MutableMapping[ir.Value, "int | None"]
"""What a search has found so far, so that a graph whose branches meet again and again is walked once."""
_Elements: TypeAlias = dict[ir.Value, "ir.DataType | None"]

_SAME_SHAPE: Final = frozenset(
    (
        *("Cast", "CastLike", "Identity", "Dropout", "Clip", "Tanh", "Softmax", "LogSoftmax", "Neg"),
        *("Exp", "Log", "Sqrt", "Erf", "Relu", "Sigmoid", "Gelu", "Reciprocal", "Not", "IsNaN", "IsInf"),
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "RotaryEmbedding"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FastGelu", "BiasGelu", "QuickGelu"),
        *("CumSum", "ScatterElements", "ScatterND", "Trilu", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Ops whose first output has the shape of their first input."""

_SAME_RANK: Final = _SAME_SHAPE | {"Slice", "Split", "Pad", "Tile", "TopK", "GatherElements", "MatMulNBits"}

_COMPARING: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_BROADCASTING: Final = _COMPARING | frozenset(
    {*("Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "MatMul", "Pow", "FusedMatMul", "And", "Or")}
)
"""Ops whose output has the greatest of their inputs' ranks."""

_ONE_TYPE: Final = (_BROADCASTING - {"Pow"}) | {"Concat", "Range"}
"""Ops all of whose inputs have one element type, beside those that `_computed_dtype` names."""

_ONE_RANK: Final = {"Shape": 1, "Size": 0, "Range": 1, "NonZero": 2, "Flatten": 2}
"""Ops whose output always has so many axes."""

_LAYOUT: Final = frozenset({"Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Gather"})

_ALWAYS: Final = {
    **dict.fromkeys((*_COMPARING, "And", "Or", "Xor", "Not", "IsNaN", "IsInf"), ir.DataType.BOOL),
    **dict.fromkeys(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"), ir.DataType.INT64),
}
"""Element types of what does not depend on the inputs'."""


class Types:
    """Ranks and element types of a model's values, for as long as the model is not changed.

    The rank of every value is found once, in the order of the nodes, so that a question need not search.
    """

    def __init__(self, flow: Dataflow) -> None:
        self.opset = flow.opset
        self._ranks: dict[ir.Value, int | None] = {}
        for graph in flow.graphs:
            for node in graph:
                for output in node.outputs:
                    self._ranks[output] = self.rank(output)

    def rank(self, value: ir.Value | None) -> int | None:
        """`rank_of`."""
        return _Search(ChainMap({}, self._ranks)).rank(value, _MOST_DEPTH)

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """`dtype_of`."""
        return dtype_of(value)


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes from the value's shape, or else from the nodes that compute it; None if unknown.

    Of scores to which a mask of known rank is added, it is that of the mask, as none has more axes than its scores.
    """
    return _Search({}).rank(value, _MOST_DEPTH)


def certain_rank_of(value: ir.Value | None) -> int | None:
    """The same without that conclusion: None where one operand of a broadcast is unknown."""
    return _Search({}, certain=True).rank(value, _MOST_DEPTH)


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """The element type from the value's type, or else from the nodes that compute it; None if unknown."""
    return _dtype(value, _MOST_DEPTH, {})


def dimension(value: ir.Value, axis: int) -> int | str | None:
    """The size of an axis as a fixed number, as the name that the model gives it, or None.

    A negative number and an empty name, as some exporters write, are None too, as onnxruntime has it.

    >>> value = ir.val("x", ir.DataType.FLOAT, (2, "tokens", -1))
    >>> [dimension(value, axis) for axis in range(4)]
    [2, 'tokens', None, None]
    """
    if value.shape is None or axis >= len(value.shape):
        return None
    found = value.shape[axis]
    if isinstance(found, int):
        return found if found >= 0 else None
    return found.value or None


def size_of(value: ir.Value, axis: int) -> int | None:
    """The size of an axis if it is a fixed number, or None."""
    found = dimension(value, axis)
    return found if isinstance(found, int) else None


def same_size(a: ir.Value, a_axis: int, b: ir.Value, b_axis: int) -> bool:
    """True when two axes are known to be equal: the same number, or the same name."""
    left, right = dimension(a, a_axis), dimension(b, b_axis)
    return left is not None and left == right


def width_of(value: ir.Value) -> int | None:
    """The size of the last axis if it is a fixed number, or None. A projection gives that of its weights."""
    return _width(value, _MOST_DEPTH)


def branch_outputs(value: ir.Value) -> tuple[ir.Value, ...]:
    """What the branches of an If give for one of its outputs."""
    node = value.producer()
    if node is None:
        return ()
    index = node.outputs.index(value)
    branches = (graph for _, graph in subgraphs(node))
    return tuple(branch.outputs[index] for branch in branches if index < len(branch.outputs))


def axes_of(node: ir.Node) -> list[int] | None:
    """The axes of a Reduce, Squeeze or Unsqueeze, an attribute or an input by opset; None if not constant."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return [int(i) for i in attribute.as_ints()]
    tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if tensor is None else [int(i) for i in tensor.numpy().ravel()]


def axis_from_end(axis: int, rank: int | None) -> int | None:
    """A possibly non-negative axis counted from the end; None when that needs an unknown rank."""
    if axis < 0:
        return axis
    return None if rank is None else axis - rank


class _Search:
    """A search for the rank of a value."""

    def __init__(self, known: _Ranks, *, certain: bool = False) -> None:
        self._known = known
        self._certain = certain

    def rank(self, value: ir.Value | None, depth: int) -> int | None:
        if value is None or depth == 0:
            return None
        if value.shape is not None:
            return len(value.shape)
        if value not in self._known:
            self._known[value] = None
            self._known[value] = self._computed(value, depth - 1)
        return self._known[value]

    def _computed(self, value: ir.Value, depth: int) -> int | None:
        tensor = constant(value)
        if tensor is not None:
            return len(tensor.shape)
        node = value.producer()
        if node is None:
            return None
        if (signature := signature_of(node)) is not None:
            by_place = dict(enumerate(signature.output_ranks))
            return by_place.get(value.index() or 0) or self.rank(_first(node), depth)
        if node.domain == OWN_DOMAIN:  # probabilities as their scores, a context as its queries
            return self.rank(_first(node), depth) if value.index() == 0 else None
        op_type = known_op(node)
        if op_type in _BROADCASTING:
            return self._broadcast(node, depth)
        if op_type in _SAME_RANK:
            return self.rank(_first(node), depth) if value.index() == 0 or op_type in ("Split", "TopK") else None
        if op_type in _ONE_RANK:
            return _ONE_RANK[op_type]
        match op_type:
            case "If":
                ranks = (self.rank(output, depth) for output in branch_outputs(value))
                return max((rank for rank in ranks if rank is not None), default=None)
            case "Concat":
                return max((r for operand in node.inputs if (r := self.rank(operand, depth)) is not None), default=None)
            case "EmbedLayerNormalization":
                return 1 if value.index() == 1 else 3
            case "Einsum" if (equation := node.attributes.get("equation")) is not None:
                _, arrow, output = equation.as_string().replace(" ", "").partition("->")
                return len(output) if arrow and "." not in output else None
            case "Gather":
                data, indices = (self.rank(operand, depth) for operand in node.inputs[:2])
                return None if data is None or indices is None else data + indices - 1
            case "Transpose":
                perm = node.attributes.get("perm")
                return self.rank(_first(node), depth) if perm is None or perm.is_ref() else len(perm.as_ints())
            case "Reshape" if len(node.inputs) == 2:
                return self._length(node.inputs[1], depth)
            case "ConstantOfShape":
                return self._length(_first(node), depth)
            case "Expand" if len(node.inputs) == 2:
                rank, length = self.rank(_first(node), depth), self._length(node.inputs[1], depth)
                return None if rank is None or length is None else max(rank, length)
            case "Unsqueeze" | "Squeeze":
                rank, axes = self.rank(_first(node), depth), axes_of(node)
                if rank is None or axes is None:
                    return None
                return rank + len(axes) if op_type == "Unsqueeze" else rank - len(axes)
        return None

    def _broadcast(self, node: ir.Node, depth: int) -> int | None:
        ranks = {operand: self.rank(operand, depth) for operand in node.inputs if operand is not None}
        if None in ranks.values():
            # The rank of a weight, bias, scale or causal mask does not tell that of the other operand.
            computed = {operand: rank for operand, rank in ranks.items() if rank is not None and rank > 2}
            ranks = {} if self._certain else {v: rank for v, rank in computed.items() if constant(v) is None}
        return max((rank for rank in ranks.values() if rank is not None), default=None)

    def _length(self, value: ir.Value | None, depth: int) -> int | None:
        """The number of elements of a one-dimensional value."""
        if value is None or depth <= 0:
            return None
        tensor = constant(value)
        if tensor is not None:
            return int(tensor.size)
        if value.shape is not None and len(value.shape) == 1 and (size := size_of(value, 0)) is not None:
            return size
        node = value.producer()
        if node is None:
            return None
        match known_op(node):
            case "Concat":
                parts = [self._length(operand, depth - 1) for operand in node.inputs]
                return None if None in parts else sum(part for part in parts if part is not None)
            case "Unsqueeze":
                return 1  # a scalar made a part of a shape
            case "Gather":
                return self._length(node.inputs[1], depth - 1)
            case "Shape":
                rank = self.rank(node.inputs[0], depth - 1)
                ends = [None if (a := node.attributes.get(name)) is None else a.as_int() for name in ("start", "end")]
                return None if rank is None else len(range(rank)[ends[0] : ends[1]])
            case "Slice":
                length = self._length(node.inputs[0], depth - 1)
                places = ((1, None), (2, None), (4, 1))
                start, end, step = (_whole_number(node, index, default) for index, default in places)
                known = length is not None and None not in (start, end) and step
                return len(range(length or 0)[start:end:step]) if known else None
            case "Cast" | "Identity":
                return self._length(node.inputs[0], depth - 1)
            # TorchScript's expand(a, -1, b): where the size is -1, one of as many ones.
            case "Where" | "Equal" | "Mul":
                lengths = [self._length(operand, depth - 1) for operand in node.inputs]
                return None if None in lengths else max(length for length in lengths if length is not None)
            case "Reshape" if _whole_number(node, 1, None) == -1 and self.rank(_first(node), depth - 1) == 1:
                return self._length(node.inputs[0], depth - 1)
            case "ConstantOfShape" if (shape := node.inputs[0]) is not None:
                maker = shape.producer()
                of = maker.inputs[0] if maker is not None and known_op(maker) == "Shape" else None
                whole = maker is not None and not maker.attributes
                return self._length(of, depth - 1) if whole and self.rank(of, depth - 1) == 1 else None
        return None


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if node.inputs else None


def _whole_number(node: ir.Node, index: int, default: int | None) -> int | None:
    """What an input holds that is a constant of one element; the default where there is no such input."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return default
    tensor = constant(node.inputs[index])
    return int(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _dtype(value: ir.Value | None, depth: int, known: _Elements) -> ir.DataType | None:
    if value is None or depth == 0:
        return None
    if value not in known:
        known[value] = None
        known[value] = _computed_dtype(value, depth - 1, known)
    return known[value]


def _computed_dtype(value: ir.Value, depth: int, known: _Elements) -> ir.DataType | None:
    if value.dtype is not None:
        return value.dtype
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype
    node = value.producer()
    if node is None or not node.inputs:
        return None
    op_type = known_op(node)
    if op_type == "Cast":
        to = node.attributes.get("to")
        return None if to is None or to.is_ref() else ir.DataType(to.as_int())
    if op_type in _ALWAYS:
        return _ALWAYS[op_type]

    def first(candidates: Iterable[ir.Value | None]) -> ir.DataType | None:
        types = (_dtype(candidate, depth, known) for candidate in candidates)
        return next((dtype for dtype in types if dtype is not None), None)

    place = value.index()
    match op_type:
        case "If":
            return first(branch_outputs(value))
        case "DequantizeLinear" | "CastLike":
            return first(node.inputs[1:2])
        case "QuantizeLinear":
            return first(node.inputs[2:3])
        case "Where":
            return first(node.inputs[1:])
        case "EmbedLayerNormalization":  # its inputs begin with two tensors of ids; its second output is a mask index
            return ir.DataType.INT32 if place == 1 else first(node.inputs[2:4])
        case "ConstantOfShape":
            filled = node.attributes.get("value")
            if filled is None:
                return ir.DataType.FLOAT
            return None if filled.is_ref() else filled.as_tensor().dtype
        case "TopK" if place == 1:
            return ir.DataType.INT64
        case "Dropout" if place == 1:
            return ir.DataType.BOOL
    # The rest returns the type of its floating-point inputs, which conditions, indices and codes are not.
    for operand in node.inputs:
        dtype = _dtype(operand, depth, known)
        if dtype is not None and dtype.is_floating_point():
            return dtype
    if op_type in _ONE_TYPE:
        return first(node.inputs)
    # What follows may be a shape, axes, indices or a diagonal, which say nothing about the first.
    return first(node.inputs[:1]) if op_type in _SAME_RANK | _LAYOUT | {"Pow"} else None


def _width(value: ir.Value, depth: int) -> int | None:
    if value.shape and (found := size_of(value, len(value.shape) - 1)) is not None:  # a scalar has no last axis
        return found
    node = value.producer()
    if node is None or depth == 0 or value.index() != 0:
        return None
    op_type = known_op(node)
    if op_type == "MatMul" and (weights := node.inputs[1]) is not None:
        return _width(weights, depth - 1)
    if op_type == "MatMulNBits" and (columns := node.attributes.get("N")) is not None and not columns.is_ref():
        return columns.as_int()
    if op_type in ("Add", "Sub", "Mul", "Div"):
        # A broadcast operand has one column; a wider one has those of the result.
        widths = {_width(operand, depth - 1) for operand in node.inputs if operand is not None} - {None, 1}
        return widths.pop() if len(widths) == 1 else None
    first = _first(node) if op_type in _SAME_SHAPE else None
    return None if first is None else _width(first, depth - 1)
