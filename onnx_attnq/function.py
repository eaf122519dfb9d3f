"""The only place where numerics become ONNX: bodies of standard ops for every op of domain ``onnx_attnq``.

The ops, their attributes and shapes are specified in custom_ops/README.md; numerics.py says what they
compute. Each body here computes the same in float32 with the standard ops of the model's own opset, so
that any runtime can run the rewritten model. Elementwise passes over the scores are what costs
(benchmarks/body.py), so the bodies have as few as possible: row-max schemes need no softmax, pruning comes after
rounding, and all that scales a row is one factor at the end.

Two traps of onnxruntime shape them: ReduceMax overlooks NaN, and ThresholdedRelu turns NaN into 0. The sum of
what was not pruned yet, times zero, is therefore part of every row's factor: NaN in, NaN out.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.scheme import Normalize, QuantScheme, Reference, Rounding, Spacing

DOMAIN: Final = "onnx_attnq"
DOMAIN_VERSION: Final = 1

# Weights in log spacing are multiples of the lowest level: 1 is kept, exp(-step) is pruned, and this is between.
_KEPT: Final = 0.9995
# Below this threshold, weights relative to the lowest level would leave the range of float32.
_LOWEST_THRESHOLD: Final = 1e-30
# Stands in for a sum of zero where a whole row was pruned; less than any sum of levels that are kept.
_TINY: Final = float(np.finfo(np.float32).tiny)


def softmax_op(scheme: QuantScheme) -> str:
    """Name of the op that takes scores.

    >>> from onnx_attnq.scheme import preset
    >>> softmax_op(preset("row-log")), softmax_op(preset("ji2021")), softmax_op(preset("prune-only"))
    ('QuantizedSoftmax', 'QuantizedSoftmax_absolute_log_floor_none', 'PrunedSoftmax_absolute_none')
    """
    return ("PrunedSoftmax" if scheme.bits is None else "QuantizedSoftmax") + _suffix(scheme)


def probabilities_op(scheme: QuantScheme) -> str:
    """Name of the op that takes probabilities."""
    return ("PruneProbabilities" if scheme.bits is None else "QuantizeProbabilities") + _suffix(scheme)


def attention_op(scheme: QuantScheme) -> str:
    """Name of the op that takes query, key, value and mask."""
    return ("PrunedAttention" if scheme.bits is None else "QuantizedAttention") + _suffix(scheme)


def _suffix(scheme: QuantScheme) -> str:
    fields = (scheme.reference, scheme.spacing, scheme.rounding, scheme.normalize)
    if fields == (Reference.ROW_MAX, Spacing.LOG, Rounding.NEAREST, Normalize.UNIT):
        return ""
    return "".join(f"_{field.replace('-', '_')}" for field in fields if field is not None)


def scheme_attributes(scheme: QuantScheme) -> list[ir.Attr]:
    """The attributes of a node that carry its scheme's numbers, float32, one table for all heads."""
    numbers = {"threshold": scheme.threshold}
    if scheme.bits is not None:
        numbers |= {"step": scheme.step, "offset": scheme.offset, "levels": scheme.levels}
    return [ir.AttrTensor(name, ir.tensor(np.array([value], np.float32), name=name)) for name, value in numbers.items()]


def softmax_function(scheme: QuantScheme, opset: int) -> ir.Function:
    """The body of `softmax_op`: scores (..., L_q, L_k) to probabilities of the same shape."""
    body = _Body(opset)
    scores = body.input("scores")
    if scheme.reference is Reference.ABSOLUTE:
        # The runtime's own fused ops do in one pass what Sub, Exp, ReduceSum and Div do in four.
        rows = _Rows(
            x=lambda: body.op("Softmax", scores, axis=-1),
            steps=lambda step, shift: body.affine(body.op("LogSoftmax", scores, axis=-1), step, shift),
            probabilities=lambda: body.op("Softmax", scores, axis=-1),
            total=lambda: body.number(1.0),
            peak=lambda: body.number(1.0),
        )
    else:
        distance = body.op("Sub", scores, body.row("ReduceMax", scores))
        rows = _Rows(
            x=lambda: body.op("Exp", distance),
            steps=lambda step, shift: body.affine(distance, step, shift),
            probabilities=lambda: body.op("Softmax", scores, axis=-1),
            total=lambda: body.number(1.0),
            peak=lambda: body.op("Reciprocal", body.row("ReduceSum", body.op("Exp", distance))),
        )
    weights, factor = _quantized(body, rows, scheme)
    return body.function(softmax_op(scheme), body.op("Mul", weights, factor), scheme_attributes(scheme))


def probabilities_function(scheme: QuantScheme, opset: int) -> ir.Function:
    """The body of `probabilities_op`: probabilities (..., L_q, L_k) to probabilities of the same shape."""
    body = _Body(opset)
    probabilities = body.input("probabilities")
    x, peak = probabilities, body.number(1.0)
    if scheme.reference is Reference.ROW_MAX:
        # A row of zeros, such as a guard leaves of a masked row, stays zero.
        peak = body.op("Max", body.row("ReduceMax", probabilities), body.number(_TINY))
        x = body.op("Div", probabilities, peak)
    rows = _Rows(
        x=lambda: x,
        steps=lambda step, shift: body.affine(body.op("Log", x), step, shift),
        probabilities=lambda: probabilities,
        total=lambda: body.row("ReduceSum", probabilities),
        peak=lambda: peak,
    )
    weights, factor = _quantized(body, rows, scheme)
    return body.function(probabilities_op(scheme), body.op("Mul", weights, factor), scheme_attributes(scheme))


def attention_function(scheme: QuantScheme, opset: int) -> ir.Function:
    """The body of `attention_op`: query, key, value and mask to the context."""
    body = _Body(opset)
    query, key, value, mask = (body.input(name) for name in ("query", "key", "value", "mask"))
    scaled = body.op("Mul", body.transpose(query, "q_perm"), body.constant_of("scale"))
    scores = body.op("Add", body.op("MatMul", scaled, body.transpose(key, "k_perm")), mask)
    row_max = body.op("Max", body.row("ReduceMax", scores), body.constant_of("row_max_floor"))
    distance = functools.cache(lambda: body.op("Sub", scores, row_max))
    exp = functools.cache(lambda: body.op("Exp", distance()))
    total = functools.cache(lambda: body.op("Max", body.row("ReduceSum", exp()), body.number(_TINY)))
    probabilities = functools.cache(lambda: body.op("Div", exp(), total()))

    def steps(step: ir.Value, shift: ir.Value) -> ir.Value:
        if scheme.reference is Reference.ABSOLUTE:
            return body.affine(body.op("Sub", distance(), body.op("Log", total())), step, shift)
        if scheme.normalize is Normalize.NONE:
            return body.affine(distance(), step, shift)
        # Shifting the row's maximum saves a pass; the products have rounded the scores as much already.
        shifted = body.op("Sub", row_max, body.op("Mul", shift, step))
        return body.op("Mul", body.op("Sub", scores, shifted), body.op("Reciprocal", step))

    absolute = scheme.reference is Reference.ABSOLUTE
    rows = _Rows(
        x=probabilities if absolute else exp,
        steps=steps,
        probabilities=probabilities,
        total=lambda: body.number(1.0),
        peak=lambda: body.number(1.0) if absolute else body.op("Reciprocal", total()),
    )
    weights, factor = _quantized(body, rows, scheme)
    context = body.op("Mul", body.op("MatMul", weights, body.transpose(value, "v_perm")), factor)
    result = body.transpose(context, "out_perm")
    layout = attention_attributes(1.0, (), (), (), (), zeroes_masked_rows=False)
    return body.function(attention_op(scheme), result, [*scheme_attributes(scheme), *layout])


def attention_attributes(
    scale: float,
    q_perm: Sequence[int],
    k_perm: Sequence[int],
    v_perm: Sequence[int],
    out_perm: Sequence[int],
    *,
    zeroes_masked_rows: bool,
    int16_products: bool = False,
) -> list[ir.Attr]:
    """The attributes of an attention node beside those of its scheme."""
    floor = float(np.finfo(np.float32).min) if zeroes_masked_rows else -np.inf
    numbers = {"scale": scale, "row_max_floor": floor}
    perms = {"q_perm": q_perm, "k_perm": k_perm, "v_perm": v_perm, "out_perm": out_perm}
    return [
        *(ir.AttrTensor(name, ir.tensor(np.array([value], np.float32), name=name)) for name, value in numbers.items()),
        *(ir.AttrInt64s(name, tuple(perm)) for name, perm in perms.items()),
        ir.AttrInt64("qk", int(int16_products)),
    ]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What a scheme needs to know of the rows it quantizes; a call adds the nodes that compute it.

    Attributes:
        x: The probabilities measured against the scheme's reference.
        steps: Given step and shift, ln(x) / step + shift.
        probabilities: The probabilities themselves.
        total: What a row of probabilities sums to.
        peak: The probability that x = 1 stands for.
    """

    x: Callable[[], ir.Value]
    steps: Callable[[ir.Value, ir.Value], ir.Value]
    probabilities: Callable[[], ir.Value]
    total: Callable[[], ir.Value]
    peak: Callable[[], ir.Value]


def _quantized(body: _Body, rows: _Rows, scheme: QuantScheme) -> tuple[ir.Value, ir.Value]:
    """Weights, and the factor of each row that makes them the quantized probabilities."""
    lowest = None
    if scheme.bits is None:
        levels = rows.x()
    elif scheme.spacing is Spacing.LINEAR:
        levels = _linear_levels(body, rows.x())
    else:
        levels, lowest = _log_levels(body, rows, scheme)
    if lowest is not None and scheme.threshold >= _LOWEST_THRESHOLD:
        weights = body.op("ThresholdedRelu", levels, alpha=_KEPT)
    else:
        if lowest is not None:
            levels, lowest = body.op("Mul", levels, lowest), None
        pruned = body.op("Less", levels, body.constant_of("threshold"))
        weights = body.op("Where", pruned, body.number(0.0), levels)
    poison = body.op("Mul", body.row("ReduceSum", levels), body.number(0.0))
    return weights, body.op("Add", _factor(body, rows, scheme, weights, lowest), poison)


def _factor(body: _Body, rows: _Rows, scheme: QuantScheme, weights: ir.Value, lowest: ir.Value | None) -> ir.Value:
    if scheme.normalize is Normalize.NONE:
        return rows.peak() if lowest is None else body.op("Mul", rows.peak(), lowest)
    if scheme.normalize is Normalize.UNIT:
        target = rows.total()
    else:
        target = body.row("ReduceSum", body.op("Mul", rows.probabilities(), body.op("Sign", weights)))
    total = body.row("ReduceSum", weights)
    return body.op("Div", target, body.op("Max", total, body.number(_TINY)))


def _log_levels(body: _Body, rows: _Rows, scheme: QuantScheme) -> tuple[ir.Value, ir.Value]:
    """The level of each x, as if none were pruned, as a multiple of the lowest level; and the lowest level.

    code - 1 = floor(ln(x) / step + offset), which Round computes when half a step less is added.
    """
    step, offset, half = body.constant_of("step"), body.constant_of("offset"), body.number(0.5)
    if scheme.rounding is Rounding.NEAREST:
        code = body.op("Round", rows.steps(step, body.op("Sub", offset, half)))
    else:
        top = body.op("Sub", body.constant_of("levels"), body.number(1.0))
        code = body.op("Min", body.op("Floor", rows.steps(step, offset)), top)  # x = 1 stays in the top bin
    lowest = body.op("Exp", body.op("Mul", body.op("Sub", half, offset), step))
    return body.op("Exp", body.op("Mul", code, step)), lowest


def _linear_levels(body: _Body, x: ir.Value) -> ir.Value:
    """The level of each x, as if none were pruned: threshold + (code - 1/2) * step."""
    step, offset = body.constant_of("step"), body.constant_of("offset")
    top = body.op("Sub", body.constant_of("levels"), body.number(1.0))
    code = body.op("Min", body.op("Floor", body.affine(x, step, offset)), top)
    return body.op("Mul", body.op("Add", code, body.op("Sub", body.number(0.5), offset)), step)


class _Body:
    """The nodes of a function under construction, written for one opset."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._constants: dict[float | str, ir.Value] = {}

    def input(self, name: str) -> ir.Value:
        value = ir.Value(name=name)
        self._inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        node = ir.Node(
            "", op_type, inputs, ir.convenience.convert_attributes(attributes), name=f"{op_type}_{len(self._nodes)}"
        )
        node.outputs[0].name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def affine(self, value: ir.Value, step: ir.Value, shift: ir.Value) -> ir.Value:
        """The quotient value / step, plus shift, without a division for each element."""
        return self.op("Add", self.op("Mul", value, self.op("Reciprocal", step)), shift)

    def transpose(self, value: ir.Value, parameter: str) -> ir.Value:
        """The value with its axes permuted by an attribute of the function."""
        return self.op("Transpose", value, perm=ir.RefAttr("perm", parameter, ir.AttributeType.INTS))

    def row(self, reduction: str, value: ir.Value) -> ir.Value:
        """ReduceMax or ReduceSum over the last axis, which stays with size 1."""
        if self._opset >= (13 if reduction == "ReduceSum" else 18):
            return self.op(reduction, value, self._constant("last axis", np.array([-1], np.int64)), keepdims=1)
        return self.op(reduction, value, axes=[-1], keepdims=1)

    def number(self, value: float) -> ir.Value:
        """A float32 constant."""
        return self._constant(value, np.array(value, np.float32))

    def constant_of(self, attribute: str) -> ir.Value:
        """The tensor that an attribute of the function holds."""
        if attribute not in self._constants:
            reference = ir.RefAttr("value", attribute, ir.AttributeType.TENSOR)
            self._constants[attribute] = self.op("Constant", value=reference)
        return self._constants[attribute]

    def _constant(self, key: float | str, array: np.ndarray[Any, Any]) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=ir.AttrTensor("value", ir.tensor(array)))
        return self._constants[key]

    def function(self, name: str, output: ir.Value, attributes: list[ir.Attr]) -> ir.Function:
        """The finished function; its attributes are parameters without a default."""
        graph = ir.Graph(self._inputs, [output], nodes=self._nodes, opset_imports={"": self._opset}, name=name)
        parameters = [ir.Attr(a.name, a.type, None) for a in attributes]
        return ir.Function(DOMAIN, name, graph=graph, attributes=parameters)
