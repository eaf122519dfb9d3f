"""Recognize a softmax, whether one op or several compute it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost
from onnx_attnq.graph import Types, axes_of, axis_from_end, known_op, number_of

_NO_OPSET = 13
"""Of a model that imports no standard ops."""

_MOST_BETWEEN = 16
"""Nodes to look at between the parts of a softmax that is written as several ops."""

_MOST_THROUGH = 64
"""Layout ops in a row; real chains have a few, and a hostile graph must not make every softmax follow a long one."""


@dataclasses.dataclass(frozen=True)
class SoftmaxRoot:
    """A softmax-like computation: where its scores enter and its probabilities leave.

    Attributes:
        node: The node that gives the probabilities.
        scores: What enters, or None where it is not in floating point.
        probabilities: What leaves.
        axis: The softmax axis of both, counted from the end.
        replaceable: Whether one op that takes the scores can replace it; else only its result can be quantized.
    """

    node: ir.Node
    scores: ir.Value | None
    probabilities: ir.Value
    axis: int
    replaceable: bool


def is_softmax(node: ir.Node) -> bool:
    """True for a node that computes a softmax by itself."""
    domain = "com.microsoft" if node.op_type == "QLinearSoftmax" else ""
    return node.op_type in ("Softmax", "LogSoftmax", "QLinearSoftmax") and node.domain == domain


def may_be_decomposed(op_types: Iterable[str]) -> bool:
    """Whether there are ops enough for a softmax that is written as several."""
    present = set(op_types)
    return "Exp" in present and bool(present & {"ReduceSum", "ReduceL1", "ReduceLogSumExp"})


def softmax_root(node: ir.Node, types: Types) -> SoftmaxRoot | Lost | None:
    """The softmax that ``node`` computes; None when it computes none, Lost when it cannot be used."""
    if node.domain and not is_softmax(node):
        return None
    match node.op_type:
        case "Softmax" | "QLinearSoftmax" if is_softmax(node):
            axis = _softmax_axis(node, types)
            if isinstance(axis, Lost):
                return axis
            plain = known_op(node) == "Softmax"
            scores = node.inputs[0] if plain else None
            return SoftmaxRoot(node, scores, node.outputs[0], axis, replaceable=plain)
        case "Exp":
            inner = through(node.inputs[0], ("Cast", "Identity"))
            log = None if inner is None else inner.producer()
            if log is not None and known_op(log) == "Sub" and (total := _log_sum_of(log)) is not None:
                summed = _reduced_axis(total, log.inputs[0], types)
                if summed is None:
                    return None
                return SoftmaxRoot(node, log.inputs[0], node.outputs[0], summed, replaceable=True)
            if log is None or known_op(log) != "LogSoftmax":
                return None
            axis = _softmax_axis(log, types)
            return (
                axis
                if isinstance(axis, Lost)
                else SoftmaxRoot(node, log.inputs[0], node.outputs[0], axis, replaceable=True)
            )
        case "LogSoftmax" if not _is_exponentiated(node.outputs[0]):
            return Lost("its logarithms are used as they are, so there are no probabilities to quantize")
        case "Div" | "Mul":
            return _decomposed(node, types)
    return None


def _softmax_axis(node: ir.Node, types: Types) -> int | Lost:
    value = node.inputs[0]
    attribute = node.attributes.get("axis")
    opset = _softmax_opset(node, types)
    raw = attribute.as_int() if attribute is not None else (-1 if opset >= 13 else 1)
    rank = types.rank(value)
    axis = axis_from_end(raw, rank)
    if axis is None:
        return Lost(f"axis {raw} of a tensor of unknown rank; run onnx shape inference on the model first")
    if axis >= 0 or (rank is not None and axis < -rank):
        return Lost(f"axis {raw} of a tensor of rank {rank}, which has no such axis")
    if opset < 13 and axis != -1:
        return Lost(
            f"before opset 13, Softmax with axis {raw} runs over several axes at once, which is no attention row"
        )
    return axis


def _softmax_opset(node: ir.Node, types: Types) -> int:
    if known_op(node) == "QLinearSoftmax":
        attribute = node.attributes.get("opset")
        return 13 if attribute is None else attribute.as_int()
    return node.version or types.opset or _NO_OPSET


def _decomposed(node: ir.Node, types: Types) -> SoftmaxRoot | None:
    """Exp(s) / ReduceSum(Exp(s)), or Exp(s) * Reciprocal(ReduceSum(Exp(s))); a mask may be on both Exp(s).

    ReduceL1 is the same, as no Exp(s) is negative.
    """
    for numerator, denominator in ((0, 1), (1, 0)):
        if known_op(node) == "Div" and numerator == 1:
            break
        weights = through(node.inputs[numerator], ("Cast", "Identity"))
        below = node.inputs[denominator]
        if known_op(node) == "Mul":
            below = _inverted(below)
            if below is None:
                continue
        exp = _upstream(weights, ("Exp",), ("Cast", "Identity", "Mul", "Where"))
        total = _upstream(
            below,
            ("ReduceSum", "ReduceL1"),
            ("Cast", "Identity", "Add", "Max", "Clip", "Expand", "Unsqueeze", "Reshape"),
        )
        if exp is None or total is None or through(total.inputs[0], ("Cast", "Identity")) is not weights:
            continue
        axis = _reduced_axis(total, weights, types)
        if axis is not None:
            return SoftmaxRoot(node, exp.inputs[0], node.outputs[0], axis, replaceable=False)
    return None


def _inverted(value: ir.Value | None) -> ir.Value | None:
    """The x in a value that is 1 / x: Reciprocal(x), Div(1, x) or Pow(x, -1)."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    match node.op_type:
        case "Reciprocal":
            return node.inputs[0]
        case "Div" if number_of(node.inputs[0]) == 1.0:
            return node.inputs[1]
        case "Pow" if number_of(node.inputs[1]) == -1.0:
            return node.inputs[0]
    return None


def _log_sum_of(difference: ir.Node) -> ir.Node | None:
    """The ReduceLogSumExp in s - ReduceLogSumExp(s)."""
    subtrahend = through(difference.inputs[1], ("Cast", "Identity"))
    total = None if subtrahend is None else subtrahend.producer()
    fits = total is not None and known_op(total) == "ReduceLogSumExp" and total.inputs[0] is difference.inputs[0]
    return total if fits else None


def _reduced_axis(reduction: ir.Node, value: ir.Value | None, types: Types) -> int | None:
    """The one axis that a reduction of ``value`` runs over, counted from the end."""
    axes = axes_of(reduction)
    return None if axes is None or len(axes) != 1 else axis_from_end(axes[0], types.rank(value))


def _upstream(value: ir.Value | None, wanted: tuple[str, ...], through: tuple[str, ...]) -> ir.Node | None:
    """The nearest node of the ops ``wanted``, with nothing but the ops ``through`` between."""
    pending, seen = [value], set[ir.Value]()
    while pending and len(seen) < _MOST_BETWEEN:
        value = pending.pop(0)
        node = None if value is None else value.producer()
        if value is None or node is None or value in seen or node.domain:
            continue
        seen.add(value)
        if known_op(node) in wanted:
            return node
        if known_op(node) in through:
            pending.extend(node.inputs)
    return None


def _is_exponentiated(value: ir.Value) -> bool:
    """Whether an Exp takes the value, with nothing but Cast and Identity between."""
    pending = [value]
    for _ in range(_MOST_BETWEEN):
        if not pending:
            return False
        for use in pending.pop().uses():
            if known_op(use.node) == "Exp":
                return True
            if known_op(use.node) in ("Cast", "Identity"):
                pending.append(use.node.outputs[0])
    return False


def through(value: ir.Value | None, ops: tuple[str, ...]) -> ir.Value | None:
    """The first value upstream, along first inputs, that none of ``ops`` computes."""
    for _ in range(_MOST_THROUGH):
        node = None if value is None else value.producer()
        if node is None or known_op(node) not in ops or not node.inputs:
            break
        value = node.inputs[0]
    return value
