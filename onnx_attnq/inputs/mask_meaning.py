"""What a mask's elements mean, by what the graph makes of a 0 and of a 1.

Exporters agree neither on names nor on polarity: in PyTorch's ``key_padding_mask`` a True hides a key, in the masks of
transformers a 1 shows it. So a 0 and a 1 are followed together through casts, Not, comparisons and arithmetic with
constants, to the Where that takes a constant in place of a score, or to what is added to the scores.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.graph import Holds, input_holds
from onnx_attnq.inputs.uses import Use, walk

HIDES: Final = -100.0
"""What is added to a score, or put in its place, hides a key from here on: exp(-100) is nothing."""

_Pair = npt.NDArray[Any]


class Meaning(enum.Enum):
    """What is fed for keys that may be attended to, and for those that may not."""

    ONE_IS_VISIBLE = enum.auto()
    ONE_IS_HIDDEN = enum.auto()
    ADDED = enum.auto()
    """0, and a large negative number."""


_UNARY: Final[Mapping[str, Callable[[_Pair], _Pair]]] = MappingProxyType(
    {
        "Not": np.logical_not,
        "Neg": np.negative,
        "Log": np.log,
        "Exp": np.exp,
        "Abs": np.abs,
        "Sign": np.sign,
        "Floor": np.floor,
        "Ceil": np.ceil,
        "Clip": np.asarray,
    }
)
_BINARY: Final[Mapping[str, Callable[[_Pair, _Pair], _Pair]]] = MappingProxyType(
    {
        "Add": np.add,
        "Sub": np.subtract,
        "Mul": np.multiply,
        "Div": np.divide,
        "Min": np.minimum,
        "Max": np.maximum,
        "Equal": np.equal,
        "Less": np.less,
        "LessOrEqual": np.less_equal,
        "Greater": np.greater,
        "GreaterOrEqual": np.greater_equal,
        "And": np.logical_and,
        "Or": np.logical_or,
        "Xor": np.logical_xor,
    }
)
_COMBINES: Final = frozenset({"And", "Or", "Mul", "Min", "Max", "Add", "Concat"})
"""Where two masks are combined, each keeps its meaning."""


def mask_meaning(model: ir.Model, value: ir.Value) -> Meaning | None:
    """What the elements of an input mean for attention; None if the graph does not tell.

    >>> mask = ir.val("mask", ir.DataType.BOOL, ["keys"])
    >>> scores = ir.val("scores", ir.DataType.FLOAT, ["keys"])
    >>> lowest = ir.val("lowest", const_value=ir.tensor([-np.inf], dtype=ir.DataType.FLOAT))
    >>> where = ir.node("Where", [mask, lowest, scores])
    >>> graph = ir.Graph([mask, scores], where.outputs, nodes=[where], initializers=[lowest], opset_imports={"": 17})
    >>> mask_meaning(ir.Model(graph, ir_version=10), mask)
    <Meaning.ONE_IS_HIDDEN: 2>
    """
    counted: Meaning | None = None
    start = np.array([False, True]) if value.dtype is ir.DataType.BOOL else np.array([0.0, 1.0])
    real = value.dtype is not None and value.dtype.is_floating_point()
    added = False
    for use, pair in walk(model, value, start, _step):
        op = use.node.op_type
        match input_holds(use.node, use.index):
            case Holds.MASK | Holds.ADDED if pair.dtype != np.bool_:
                return Meaning.ADDED if np.array_equal(pair, start) else _lower(pair)
            case Holds.MASK | Holds.VISIBLE:
                return _turned(Meaning.ONE_IS_VISIBLE, pair)
        if op == "Where" and use.index == 0 and (hidden := _where_hides(use, pair)) is not None:
            return hidden
        if op in ("Add", "Sum", "Min", "Where") and pair.dtype != np.bool_ and (low := _lower(pair)) is not None:
            return low
        added |= op == "Add" and real and np.array_equal(pair, start) and _uniform(use, 1 - use.index) is None
        if op == "Softmax" and added:
            return Meaning.ADDED
        if op in ("ReduceSum", "CumSum") and use.index == 0 and counted is None and not real:
            counted = _turned(Meaning.ONE_IS_VISIBLE, pair)  # how many there are, of those that count
    return counted


def _step(use: Use, pair: _Pair) -> _Pair | None:
    """The pair behind a node, or None to end there."""
    node = use.node
    if node.domain not in ("", "ai.onnx"):
        return None
    if use.is_layout:
        return _cast(node, pair) if node.op_type == "Cast" else pair
    with np.errstate(all="ignore"):
        if node.op_type in _UNARY and use.index == 0:
            return _UNARY[node.op_type](pair)
        if node.op_type == "Where":
            return _through_where(use, pair)
        if node.op_type in _BINARY and len(node.inputs) == 2:
            other = _uniform(use, 1 - use.index)
            if other is None:
                return pair if node.op_type in _COMBINES else None
            operands = (pair, other) if use.index == 0 else (other, pair)
            if node.op_type in ("Sub", "Neg") and pair.dtype == np.bool_:
                return None
            return _BINARY[node.op_type](*operands)
    return pair if node.op_type in ("Concat", "Gather", "GatherND", "Softmax", "Pad") and use.index == 0 else None


def _through_where(use: Use, pair: _Pair) -> _Pair | None:
    if use.index > 0:
        return pair
    true, false = _uniform(use, 1), _uniform(use, 2)
    return None if true is None or false is None else np.where(pair, true, false)


def _where_hides(use: Use, pair: _Pair) -> Meaning | None:
    """Where one side is a constant far below any score."""
    sides = _uniform(use, 1), _uniform(use, 2)
    for chosen, side in zip((True, False), sides, strict=True):
        if side is not None and float(side[0]) <= HIDES and pair[0] != pair[1]:
            return Meaning.ONE_IS_HIDDEN if bool(pair[1]) is chosen else Meaning.ONE_IS_VISIBLE
    return None


def _lower(pair: _Pair) -> Meaning | None:
    """Which of the two hides, being far lower than the other."""
    if np.isnan(pair).any() or not float(pair.min()) <= HIDES < float(pair.max()):
        return None
    return Meaning.ONE_IS_HIDDEN if pair[1] < pair[0] else Meaning.ONE_IS_VISIBLE


def _turned(meaning: Meaning | None, pair: _Pair) -> Meaning | None:
    """The meaning of the input, from that of what was made of it."""
    if meaning in (Meaning.ADDED, None) or bool(pair[0]) == bool(pair[1]) or bool(pair[1]):
        return meaning
    return Meaning.ONE_IS_HIDDEN if meaning is Meaning.ONE_IS_VISIBLE else Meaning.ONE_IS_VISIBLE


def _uniform(use: Use, index: int) -> _Pair | None:
    """The one number that a constant input holds."""
    tensor = use.tensor(index)
    if tensor is None or tensor.size == 0 or tensor.size > 2**20 or tensor.dtype is ir.DataType.STRING:
        return None
    array = np.asarray(tensor.numpy()).ravel()
    array = array if array.dtype.kind in "biu" else array.astype(np.float64)
    return array[:1] if (array == array[0]).all() else None


def _cast(node: ir.Node, pair: _Pair) -> _Pair:
    to = ir.DataType(node.attributes.get_int("to", 1))
    return pair.astype(np.bool_) if to is ir.DataType.BOOL else pair.astype(np.float64)


__all__ = ["HIDES", "Meaning", "mask_meaning"]
