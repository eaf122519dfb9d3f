"""The only place where numerics become ONNX: bodies of standard ops for every op of domain ``onnx_attnq``.

The ops, their attributes and shapes are specified in custom_ops/README.md; numerics.py says what they
compute. Each body here computes the same in float32 with the standard ops of the model's own opset, so
that any runtime can run the rewritten model. The cost is memory traffic, once for every pass over the scores
(benchmarks/body.py), so the bodies have few of them and keep few of their results: row-max schemes need no softmax,
codes are made by QuantizeLinear, which divides, rounds and saturates at once and writes one byte, pruning comes
after that, and all that scales a row is one factor at the end.

Codes have no NaN, and onnxruntime's ReduceMax overlooks it. So something that has seen NaN, mostly the sum of a row's
distances from its maximum, is one argument of a Max in every row's factor: NaN in, NaN out.

Where pruned values share what they summed to, their sum is that of all levels, continued below the threshold, less that
of the kept: one reduction more. Codes then start TAIL_NATS below 1, where saturation leaves nothing that counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.graph import OWN_DOMAIN
from onnx_attnq.rewriting.body import Body
from onnx_attnq.scheme import (
    TAIL_NATS,
    Normalize,
    Pruned,
    QuantScheme,
    Reference,
    Rounding,
    SiteScheme,
    Spacing,
    numerics,
    schemes_of,
)

DOMAIN: Final = OWN_DOMAIN
DOMAIN_VERSION: Final = 1

# Levels in log spacing are exp(code * step) times a common factor: 1 is pruned, exp(step) kept, this is between.
_PRUNED: Final = 1.0005
# Below this threshold, exp(code * step) would leave the range of float32.
_LOWEST_THRESHOLD: Final = 1e-18
# Stands in for a sum of zero where a whole row was pruned; less than any sum of levels that are kept.
_TINY: Final = float(np.finfo(np.float32).tiny)
# 1 from MASKED_NATS on, 0 below it, in one pass: the slope is that of one step from one float32 number to the next.
_UNMASKED: Final = {"alpha": 2.0**17, "beta": 1.0 - 2.0**17 * numerics.MASKED_NATS}


def softmax_op(scheme: QuantScheme) -> str:
    """Name of the op that takes scores.

    >>> from onnx_attnq.scheme import preset
    >>> softmax_op(preset("row-log")), softmax_op(preset("ji2021")), softmax_op(preset("prune-only"))
    ('QuantizedSoftmax', 'QuantizedSoftmax_absolute_log_floor_none', 'PrunedSoftmax_absolute_none')
    >>> softmax_op(preset("row-log-mean"))
    'QuantizedSoftmax_mean'
    """
    return ("PrunedSoftmax" if scheme.bits is None else "QuantizedSoftmax") + _suffix(scheme)


def probabilities_op(scheme: QuantScheme) -> str:
    """Name of the op that takes probabilities."""
    return ("PruneProbabilities" if scheme.bits is None else "QuantizeProbabilities") + _suffix(scheme)


def attention_op(scheme: QuantScheme, *, capped: bool = False) -> str:
    """Name of the op that takes query, key, value and mask; ``capped`` if tanh keeps its scores within bounds."""
    base = "PrunedAttention" if scheme.bits is None else "QuantizedAttention"
    return base + _suffix(scheme) + ("_softcap" if capped else "")


def form(scheme: QuantScheme) -> str:
    """The fields of a scheme, as the attribute ``form`` of an op spells them whose name does not.

    >>> from onnx_attnq.scheme import preset
    >>> form(preset("row-log")), form(preset("row-log-mean")), form(preset("prune-only"))
    ('row_max_log_nearest_unit', 'row_max_log_nearest_unit_mean', 'absolute_none')
    """
    fields = (scheme.reference, scheme.spacing, scheme.rounding, scheme.normalize)
    named = "_".join(field.replace("-", "_") for field in fields if field is not None)
    return named + ("_mean" if scheme.pruned is Pruned.MEAN else "")


def _suffix(scheme: QuantScheme) -> str:
    return ("_" + form(scheme)).replace("_row_max_log_nearest_unit", "", 1)


def scheme_attributes(scheme: SiteScheme, shape: Sequence[int] = (1,)) -> list[ir.Attr]:
    """The attributes of a node that carry its scheme's numbers: float32 tables of a shape.

    Args:
        scheme: One scheme, or one for each head.
        shape: (1,), or that of `table_shape`, (H, 1, 1).
    """
    schemes = schemes_of(scheme)
    numbers = {"threshold": [one.threshold for one in schemes]}
    if schemes[0].bits is not None:
        numbers |= {
            "step": [one.step for one in schemes],
            "offset": [one.offset for one in schemes],
            "levels": [one.levels for one in schemes],
        }
    return [
        ir.AttrTensor(name, ir.tensor(np.array(values, np.float32).reshape(shape), name=name))
        for name, values in numbers.items()
    ]


def softmax_function(scheme: QuantScheme, opset: int, *, by_head: bool = False) -> ir.Function:
    """The body of `softmax_op`: scores (..., L_q, L_k) to probabilities of the same shape.

    Args:
        scheme: Of the family; its threshold decides how careful the body must be.
        opset: The model's.
        by_head: Whether nodes may have a table for each head, which costs two passes more.
    """
    body = Body(opset, by_head=by_head)
    scores = body.input("scores")
    if scheme.reference is Reference.ABSOLUTE:
        # The runtime's own fused ops do in one pass what Sub, Exp, ReduceSum and Div do in four.
        log = functools.cache(lambda: body.LogSoftmax(scores, axis=-1))
        rows = _RowValues(
            nan=lambda: body.nan_of(body.row("ReduceSum", log())),
            x=lambda: body.Softmax(scores, axis=-1),
            log=log,
            probabilities=lambda: body.Softmax(scores, axis=-1),
            total=lambda: body.number(1.0),
            peak=lambda: body.number(1.0),
        )
    else:
        distance = body.Sub(scores, body.column(body.row("ReduceMax", scores)))
        rows = _RowValues(
            nan=lambda: body.nan_of(body.row("ReduceSum", distance)),
            x=lambda: body.Exp(distance),
            log=lambda: distance,
            probabilities=lambda: body.Softmax(scores, axis=-1),
            total=lambda: body.number(1.0),
            peak=lambda: body.Reciprocal(body.row("ReduceSum", body.Exp(distance))),
        )
    result = _probabilities(body, rows, scheme)
    return body.function(DOMAIN, softmax_op(scheme), result, scheme_attributes(scheme))


def probabilities_function(scheme: QuantScheme, opset: int, *, by_head: bool = False) -> ir.Function:
    """The body of `probabilities_op`: probabilities (..., L_q, L_k) to probabilities of the same shape."""
    body = Body(opset, by_head=by_head)
    probabilities = body.input("probabilities")
    x, peak = probabilities, body.number(1.0)
    if scheme.reference is Reference.ROW_MAX:
        # A row of zeros, such as a guard leaves of a masked row, stays zero.
        peak = body.Max(body.row("ReduceMax", probabilities), body.number(_TINY))
        x = body.Div(probabilities, body.column(peak))
    rows = _RowValues(
        nan=lambda: body.nan_of(body.Mul(body.row("ReduceSum", x), body.number(0.0))),  # also of infinite ones
        x=lambda: x,
        log=lambda: body.Log(x),
        probabilities=lambda: probabilities,
        total=lambda: body.row("ReduceSum", probabilities),
        peak=lambda: peak,
    )
    result = _probabilities(body, rows, scheme)
    return body.function(DOMAIN, probabilities_op(scheme), result, scheme_attributes(scheme))


def attention_function(scheme: QuantScheme, opset: int, *, by_head: bool = False, capped: bool = False) -> ir.Function:
    """The body of `attention_op`: query, key, value and mask to the context."""
    body = Body(opset, by_head=by_head)
    query, key, value, mask = (body.input(name) for name in ("query", "key", "value", "mask"))
    scaled = body.Mul(body.transpose(query, "q_perm"), body.constant_of("scale"))
    product = body.MatMul(scaled, body.transpose(key, "k_perm"))
    if capped:
        softcap = body.constant_of("softcap")
        product = body.Mul(body.Tanh(body.Div(product, softcap)), softcap)
    scores = body.Add(product, mask)
    row_max = body.Max(body.row("ReduceMax", scores), body.constant_of("row_max_floor"))
    distance = functools.cache(lambda: body.Sub(scores, body.column(row_max)))
    exp = functools.cache(lambda: body.Exp(distance()))
    total = functools.cache(lambda: body.Max(body.row("ReduceSum", exp()), body.number(_TINY)))
    probabilities = functools.cache(lambda: body.Div(exp(), body.column(total())))

    absolute = scheme.reference is Reference.ABSOLUTE
    rows = _RowValues(
        nan=lambda: body.nan_of(body.row("ReduceSum", distance())),
        x=probabilities if absolute else exp,
        log=lambda: body.Sub(distance(), body.column(body.Log(total()))) if absolute else distance(),
        probabilities=probabilities,
        total=lambda: body.number(1.0),
        peak=lambda: body.number(1.0) if absolute else body.Reciprocal(total()),
    )
    values = body.transpose(value, "v_perm")
    if scheme.pruned is Pruned.ZERO:
        quantized = _quantized(body, rows, scheme, None)
        context = body.MatMul(quantized.weights, values)
    else:
        stride = body.stride(scores)
        sample = body.HardSigmoid(body.every(rows.log(), -1, stride), **_UNMASKED)
        quantized = _quantized(body, rows, scheme, body.row("ReduceSum", sample))
        assert quantized.share is not None
        of_sample = body.MatMul(sample, body.every(values, -2, stride))
        shared = body.Mul(of_sample, body.column(quantized.share))
        context = body.Add(body.MatMul(quantized.weights, values), shared)
    result = body.transpose(body.Mul(context, body.column(quantized.factor)), "out_perm")
    layout = attention_attributes(1.0, (), (), (), (), zeroes_masked_rows=False, softcap=1.0 if capped else 0.0)
    return body.function(DOMAIN, attention_op(scheme, capped=capped), result, [*scheme_attributes(scheme), *layout])


def attention_attributes(
    scale: float,
    q_perm: Sequence[int],
    k_perm: Sequence[int],
    v_perm: Sequence[int],
    out_perm: Sequence[int],
    *,
    zeroes_masked_rows: bool,
    int16_products: bool = False,
    softcap: float = 0.0,
) -> list[ir.Attr]:
    """The attributes of an attention node beside those of its scheme; softcap 0 is none."""
    floor = float(np.finfo(np.float32).min) if zeroes_masked_rows else -np.inf
    numbers = {"scale": scale, "row_max_floor": floor} | ({"softcap": softcap} if softcap else {})
    perms = {"q_perm": q_perm, "k_perm": k_perm, "v_perm": v_perm, "out_perm": out_perm}
    return [
        *(ir.AttrTensor(name, ir.tensor(np.array([value], np.float32), name=name)) for name, value in numbers.items()),
        *(ir.AttrInt64s(name, tuple(perm)) for name, perm in perms.items()),
        ir.AttrInt64("qk", int(int16_products)),
    ]


@dataclasses.dataclass(frozen=True)
class _RowValues:
    """What a scheme needs to know of the rows it quantizes; a call adds the nodes that compute it.

    Attributes:
        nan: NaN for each row whose result shall be NaN, else -inf.
        x: The probabilities measured against the scheme's reference.
        log: ln(x).
        probabilities: The probabilities themselves.
        total: What a row of probabilities sums to.
        peak: The probability that x = 1 stands for.
    """

    nan: Callable[[], ir.Value]
    x: Callable[[], ir.Value]
    log: Callable[[], ir.Value]
    probabilities: Callable[[], ir.Value]
    total: Callable[[], ir.Value]
    peak: Callable[[], ir.Value]


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """Quantized rows, not yet scaled.

    Attributes:
        weights: The level of each kept key, 0 where it is pruned.
        share: What each key of the sample gets on top, one number for each row; None where pruned values are zero. Of
            a row whose sample is empty nothing gets it.
        factor: What makes both probabilities, one number for each row.
    """

    weights: ir.Value
    share: ir.Value | None
    factor: ir.Value


def _probabilities(body: Body, rows: _RowValues, scheme: QuantScheme) -> ir.Value:
    """The quantized probabilities of every key."""
    if scheme.pruned is Pruned.ZERO:
        quantized = _quantized(body, rows, scheme, None)
        return body.Mul(quantized.weights, body.column(quantized.factor))
    unmasked = body.HardSigmoid(rows.log(), **_UNMASKED)
    sample = body.Mul(unmasked, body.at_multiples(unmasked, body.stride(unmasked)))
    quantized = _quantized(body, rows, scheme, body.row("ReduceSum", sample))
    assert quantized.share is not None
    shared = body.Mul(sample, body.column(quantized.share))
    return body.Mul(body.Add(quantized.weights, shared), body.column(quantized.factor))


def _quantized(body: Body, rows: _RowValues, scheme: QuantScheme, sample_size: ir.Value | None) -> _Quantized:
    base = None
    if scheme.bits is None:
        levels = rows.x()
    elif scheme.spacing is Spacing.LINEAR:
        levels = _linear_levels(body, rows.x())
    else:
        exponent, base_exponent = _log_exponents(body, rows, scheme)
        if scheme.threshold >= _LOWEST_THRESHOLD:
            base = body.Exp(base_exponent)
        else:
            exponent = body.Add(exponent, base_exponent)
        levels = body.Exp(exponent)
    if base is not None:
        weights = body.ThresholdedRelu(levels, alpha=_PRUNED)
    else:
        kept = body.Not(body.Less(levels, body.constant_of("threshold")))
        weights = body.Mul(levels, body.Cast(kept, to=ir.DataType.FLOAT.value))
    # NaN ends in codes; and where the row's maximum is needed anyway, summing the levels is one pass more.
    from_codes = scheme.spacing is Spacing.LOG and scheme.rounding is Rounding.NEAREST
    nan_aware = from_codes or scheme.reference is Reference.ROW_MAX
    nan = rows.nan() if nan_aware else body.nan_of(body.row("ReduceSum", levels))

    total = functools.cache(lambda: body.row("ReduceSum", weights))
    share = None
    if sample_size is not None:
        # Where nothing was pruned, both sums are of the same numbers, and the same. An empty sample takes nothing.
        tail = body.Sub(body.row("ReduceSum", levels), total())
        share = body.Div(tail, body.Max(sample_size, body.number(1.0)))
        kept_total, given = total(), body.Mul(share, sample_size)
        total = functools.cache(lambda: body.Add(kept_total, given))
    return _Quantized(weights, share, _factor(body, rows, scheme, weights, total, base, nan))


def _factor(
    body: Body,
    rows: _RowValues,
    scheme: QuantScheme,
    weights: ir.Value,
    total: Callable[[], ir.Value],
    base: ir.Value | None,
    nan: ir.Value,
) -> ir.Value:
    if scheme.normalize is Normalize.NONE:
        return body.Max(rows.peak() if base is None else body.Mul(rows.peak(), body.per_row(base)), nan)
    if scheme.normalize is Normalize.UNIT:
        target = rows.total()
    else:
        target = body.row("ReduceSum", body.Mul(rows.probabilities(), body.Sign(weights)))
    return body.Div(target, body.Max(total(), body.number(_TINY), nan))


def _log_exponents(body: Body, rows: _RowValues, scheme: QuantScheme) -> tuple[ir.Value, ir.Value]:
    """For each x code * step, negative or 0 where it is pruned; and what has to be added to get ln(level)."""
    step, offset, levels = body.constant_of("step"), body.constant_of("offset"), body.constant_of("levels")
    if scheme.rounding is Rounding.NEAREST:
        # code = round(ln(x) / step) + n. QuantizeLinear saturates, so Exp need not go where it underflows and is slow.
        top, zero = levels, None
        if scheme.pruned is Pruned.MEAN:
            top = body.Max(levels, body.Ceil(body.Div(body.number(TAIL_NATS), step)))
            zero = body.Sub(top, levels)
        if body.by_head:
            # QuantizeLinear takes a scale for each index of one axis, not a table that broadcasts.
            codes = body.QuantizeLinear(body.affine(rows.log(), step, top), body.number(1.0), body.byte(None))
            exponent = body.products(codes, step, zero)
        else:
            scale = body.Squeeze(step)
            codes = body.QuantizeLinear(rows.log(), scale, body.byte(top))
            exponent = body.dequantize(codes, scale, zero)
    else:
        code = body.Floor(body.affine(rows.log(), step, body.Add(offset, body.number(1.0))))
        exponent = body.Mul(body.Min(code, levels), step)  # x = 1 stays in the top bin
    return exponent, body.Neg(body.Mul(body.Add(offset, body.number(0.5)), step))


def _linear_levels(body: Body, x: ir.Value) -> ir.Value:
    """The level of each x, as if none were pruned: threshold + (code - 1/2) * step."""
    step, offset = body.constant_of("step"), body.constant_of("offset")
    top = body.Sub(body.constant_of("levels"), body.number(1.0))
    code = body.Min(body.Floor(body.affine(x, step, offset)), top)
    return body.Mul(body.Add(code, body.Sub(body.number(0.5), offset)), step)
