"""Rank and dtype of values in exports that carry no shapes and types, as TorchScript's often do not."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from typing import Final, TypeAlias

import onnx_ir as ir

from onnx_attnq.graph.constants import constant
from onnx_attnq.graph.dataflow import Dataflow
from onnx_attnq.graph.ops import known_op

_MOST_DEPTH: Final = 64
"""How far upstream to look; a chain from scores to the nearest Reshape or Transpose is much shorter."""

_Ranks: TypeAlias = MutableMapping[ir.Value, "int | None"]
"""What a search has found so far."""

_BROADCAST: Final = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "MatMul", "Pow", "FusedMatMul"})
_SAME: Final = frozenset(
    (
        *("Cast", "CastLike", "Identity", "Dropout", "Clip", "Tanh", "Softmax", "LogSoftmax", "Neg"),
        *("Exp", "Log", "Sqrt", "Erf", "Relu", "Sigmoid", "Gelu", "Reciprocal", "Not"),
        *("IsNaN", "LayerNormalization", "RMSNormalization", "Slice", "Split", "Pad", "Tile", "Trilu"),
        *("CumSum", "TopK", "GatherElements", "ScatterElements", "ScatterND", "QuantizeLinear", "DequantizeLinear"),
    )
)


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
        return _rank(value, _MOST_DEPTH, ChainMap({}, self._ranks))

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """`dtype_of`."""
        return dtype_of(value)


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes from the value's shape, or else from the nodes that compute it; None if unknown."""
    return _rank(value, _MOST_DEPTH, {})


def dtype_of(value: ir.Value | None) -> ir.DataType | None:
    """The element type from the value's type, or else from the nodes that compute it; None if unknown."""
    return _dtype(value, _MOST_DEPTH, {})


def branch_outputs(value: ir.Value) -> tuple[ir.Value, ...]:
    """What the branches of an If give for one of its outputs."""
    node = value.producer()
    if node is None:
        return ()
    index = node.outputs.index(value)
    branches = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
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


def _length(value: ir.Value | None, depth: int, known: _Ranks) -> int | None:
    """The number of elements of a one-dimensional value."""
    if value is None or depth <= 0:
        return None
    tensor = constant(value)
    if tensor is not None:
        return int(tensor.size)
    if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int):
        return value.shape[0]
    node = value.producer()
    if node is None:
        return None
    if known_op(node) == "Concat":
        parts = [_length(v, depth - 1, known) for v in node.inputs]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)
    if known_op(node) == "Unsqueeze":
        return 1  # a scalar made a part of a shape
    if known_op(node) == "Gather":
        return _length(node.inputs[1], depth - 1, known)
    if known_op(node) == "Shape":
        rank = _rank(node.inputs[0], depth - 1, known)
        ends = [None if (a := node.attributes.get(name)) is None else a.as_int() for name in ("start", "end")]
        return None if rank is None else len(range(rank)[ends[0] : ends[1]])
    if known_op(node) == "Slice":
        length = _length(node.inputs[0], depth - 1, known)
        start, end, step = (_whole_number(node, index, default) for index, default in ((1, None), (2, None), (4, 1)))
        return len(range(length)[start:end:step]) if length is not None and None not in (start, end) and step else None
    if known_op(node) in ("Cast", "Identity"):
        return _length(node.inputs[0], depth - 1, known)
    return None


def _whole_number(node: ir.Node, index: int, default: int | None) -> int | None:
    """What an input holds that is a constant of one element; the default where there is no such input."""
    if len(node.inputs) <= index or node.inputs[index] is None:
        return default
    tensor = constant(node.inputs[index])
    return int(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _rank(value: ir.Value | None, depth: int, known: _Ranks) -> int | None:
    """`rank_of`; ``known`` keeps a graph whose branches meet again and again from being walked once for each path."""
    if value is None or depth == 0:
        return None
    if value.shape is not None:
        return len(value.shape)
    if value not in known:
        known[value] = None
        known[value] = _computed_rank(value, depth - 1, known)
    return known[value]


def _computed_rank(value: ir.Value, depth: int, known: _Ranks) -> int | None:
    tensor = constant(value)
    if tensor is not None:
        return len(tensor.shape)
    node = value.producer()
    if node is None:
        return None
    if known_op(node) == "If":
        return max((r for v in branch_outputs(value) if (r := _rank(v, depth, known)) is not None), default=None)
    if known_op(node) in _BROADCAST or known_op(node) == "Concat":
        ranks = {v: _rank(v, depth, known) for v in node.inputs if v is not None}
        if None in ranks.values():
            # The scores are never of lower rank than their mask; a weight, a bias or a scale that is computed says
            # nothing of what it meets.
            ranks = {v: rank for v, rank in ranks.items() if rank is not None and rank > 1 and constant(v) is None}
        return max((rank for rank in ranks.values() if rank is not None), default=None)
    if known_op(node) in _SAME:
        return _rank(node.inputs[0], depth, known)
    if known_op(node) == "Einsum" and (equation := node.attributes.get("equation")) is not None:
        _, arrow, output = equation.as_string().replace(" ", "").partition("->")
        return len(output) if arrow and "." not in output else None
    if known_op(node) == "Gather":
        data, indices = (_rank(v, depth, known) for v in node.inputs[:2])
        return None if data is None or indices is None else data + indices - 1
    if known_op(node) == "Transpose":
        perm = node.attributes.get("perm")
        return _rank(node.inputs[0], depth, known) if perm is None else len(perm.as_ints())
    if known_op(node) == "Reshape":
        return _length(node.inputs[1], depth, known)
    if known_op(node) in ("Unsqueeze", "Squeeze"):
        rank, axes = _rank(node.inputs[0], depth, known), axes_of(node)
        if rank is None or axes is None:
            return None
        return rank + len(axes) if known_op(node) == "Unsqueeze" else rank - len(axes)
    return None


def _dtype(value: ir.Value | None, depth: int, known: dict[ir.Value, ir.DataType | None]) -> ir.DataType | None:
    """`dtype_of`, with ``known`` as in `_rank`."""
    if value is None or depth == 0:
        return None
    if value not in known:
        known[value] = None
        known[value] = _computed_dtype(value, depth - 1, known)
    return known[value]


def _computed_dtype(value: ir.Value, depth: int, known: dict[ir.Value, ir.DataType | None]) -> ir.DataType | None:
    if value.dtype is not None:
        return value.dtype
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype
    node = value.producer()
    if node is None or not node.inputs:
        return None
    if known_op(node) == "Cast":
        to = node.attributes.get("to")
        return None if to is None else ir.DataType(to.as_int())
    match node.op_type:
        case "If":
            candidates: Sequence[ir.Value | None] = branch_outputs(value)
        case "DequantizeLinear" | "CastLike":
            candidates = node.inputs[1:2]
        case "QuantizeLinear":
            candidates = ()
        case _:  # the rest computes in the type of its numbers; conditions, indices and codes are none
            candidates = node.inputs
    types = (_dtype(v, depth, known) for v in candidates)
    return next((d for d in types if d is not None and d.is_floating_point()), None)
