"""Is it implemented right? Compare the codes that an execution chose with those of numerics.py."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.scheme import (
    FloatArray,
    HeadSchemes,
    Normalize,
    Pruned,
    QuantScheme,
    Reference,
    SiteScheme,
    numerics,
    split_heads,
)

MAX_DISAGREEMENT_SHARE: Final = 1e-4
"""Largest share of codes that may differ, all of them next to an edge.

An edge is `numerics.EDGE_ULPS` wide on either side, 4e-6 of its value; with 255 edges and values spread
evenly between them, one value in 5,000 lies there, and fewer than half of these flip.
"""

LEVEL_TOLERANCE: Final = 1e-5
"""Relative error of a value against its level: a dozen float32 roundings, and those of a row's sum."""

SHARE_TOLERANCE: Final = 1e-5
"""Error of what pruned values summed to, against the sum of the row: that of float32 sums of up to a million numbers
of which the kept ones are taken off again, and what lies more than TAIL_NATS below the row's maximum.
"""

UNDERFLOW_NATS: Final = 104.0
"""So far below a row's maximum, exp is zero in float32."""

_MASK_EDGE: Final = 1e-4
"""How near MASKED_NATS, in nats, a key may count as masked or not: ten roundings of a distance of 87."""

_TINY: Final = float(np.finfo(np.float32).tiny)
_EPS: Final = float(np.finfo(np.float32).eps)
_ZERO: Final[FloatArray] = np.zeros(())


@dataclasses.dataclass(frozen=True)
class CodeCheck:
    """The result of comparing codes: sums, so that samples and sites merge.

    Attributes:
        codes: Number of values compared.
        disagreements: Codes that differ by one, next to an edge: rounding.
        errors: Codes that differ otherwise, or values that are no level: a bug.
        pruned: Values above zero that became zero.
        positive: Values above zero before; masked positions are not among them.
        rows: Number of rows that count.
        telling: Those among them that are neither uniform nor one-hot nor NaN.
        not_finite: Values that are NaN both in what entered and in what left; on one side only, they are errors.
    """

    codes: int = 0
    disagreements: int = 0
    errors: int = 0
    pruned: int = 0
    positive: int = 0
    rows: int = dataclasses.field(default=0, repr=False)
    telling: int = dataclasses.field(default=0, repr=False)
    not_finite: int = dataclasses.field(default=0, repr=False)

    @property
    def passed(self) -> bool:
        """No errors, and no more disagreements than rounding explains."""
        return self.errors == 0 and self.disagreements <= max(3.0, MAX_DISAGREEMENT_SHARE * self.codes)

    def merge(self, other: CodeCheck) -> CodeCheck:
        """Both together."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return CodeCheck(*(a + b for a, b in pairs))


def check_rows(
    source: npt.ArrayLike,
    result: npt.ArrayLike,
    scheme: SiteScheme,
    *,
    is_scores: bool,
    counted: npt.NDArray[np.bool_] | None = None,
    score_error: npt.ArrayLike = 0.0,
    tail_error: npt.ArrayLike = 0.0,
) -> CodeCheck:
    """Compare what entered and what left a quantized op, the keys on the last axis.

    Args:
        source: Scores, or probabilities.
        result: Quantized probabilities of the same shape.
        scheme: What the op was told to do; with a scheme for each head, heads are on the axes before the queries.
        is_scores: Whether ``source`` are scores.
        counted: Rows (shape without the last axis) that count as real tokens for the share of pruned values.
        score_error: How far the scores that the op saw may be from ``source``.
        tail_error: How far those may be, if not less, that it took for what the pruned keys sum to.

    >>> from onnx_attnq.scheme import preset
    >>> scores = np.array([[0.0, -1.0, -9.0]])
    >>> check_rows(scores, numerics.quantize_scores(scores, preset()), preset(), is_scores=True)
    CodeCheck(codes=3, disagreements=0, errors=0, pruned=1, positive=3)
    """
    source, result = np.asarray(source, np.float64), np.asarray(result, np.float64)
    if isinstance(scheme, HeadSchemes):
        real = np.ones(source.shape[:-1], np.bool_) if counted is None else counted
        more = (real[..., None], score_error, tail_error)
        arrays = (source, result, *(np.broadcast_to(array, source.shape) for array in more))
        total = CodeCheck()
        for one, (x, y, tokens, error, of_tail) in split_heads(scheme, *arrays):
            counts = tokens[..., 0]
            total = total.merge(
                check_rows(x, y, one, is_scores=is_scores, counted=counts, score_error=error, tail_error=of_tail)
            )
        return total
    if source.shape[-1] == 0:
        return CodeCheck()
    p = numerics.softmax(source) if is_scores else source
    if is_scores and scheme.reference is Reference.ROW_MAX:
        x = numerics.relative_scores(source)
    else:
        x = numerics.relative(p, scheme)
    expected = np.where(x < _TINY, np.int16(0), numerics.codes(x, scheme))  # nothing left, even by a threshold of 0
    found, misses = expected.copy(), np.zeros(expected.shape, np.bool_)
    # Most rows are what the definition gives; only the others have to be read.
    wanted = numerics.with_codes(p, x, expected, scheme)
    rest = ~(np.abs(result - wanted) <= LEVEL_TOLERANCE * wanted).all(axis=-1)
    if rest.any():
        error, of_tail = (np.broadcast_to(array, x.shape)[rest] for array in (score_error, tail_error))
        found[rest], misses[rest] = _read_codes(result[rest], p[rest], x[rest], expected[rest], error, of_tail, scheme)

    both_nan = (expected == numerics.NAN_CODE) & np.isnan(result)
    differ = (found != expected) & ~both_nan
    excused = differ & (np.abs(found - expected) == 1)
    excused[excused] = numerics.near_edge(x[excused], scheme, np.broadcast_to(score_error, x.shape)[excused])
    errors = (differ & ~excused) | (misses & ~both_nan)

    # float32 has no probability below this: the position was masked.
    positive = p > _TINY
    if counted is not None:
        positive &= np.broadcast_to(counted[..., None], positive.shape)
    return CodeCheck(
        codes=int(expected.size),
        disagreements=int(excused.sum()),
        errors=int(errors.sum()),
        pruned=int((positive & (found == 0)).sum()),
        positive=int(positive.sum()),
        rows=int(positive[..., 0].size if counted is None else np.broadcast_to(counted, positive.shape[:-1]).sum()),
        telling=int(_telling(p, positive).sum()),
        not_finite=int(both_nan.sum()),
    )


def _read_codes(
    result: FloatArray,
    p: FloatArray,
    x: FloatArray,
    expected: numerics.CodeArray,
    score_error: FloatArray,
    tail_error: FloatArray,
    scheme: QuantScheme,
) -> tuple[numerics.CodeArray, npt.NDArray[np.bool_]]:
    """The code that each value of these rows stands for, and where a value stands for none."""
    tolerance = _value_tolerance(p, score_error, scheme)
    if scheme.pruned is Pruned.ZERO:
        return _codes_of(result, p, x, expected, scheme, tolerance)
    tail_error = np.maximum(score_error, tail_error)
    return _codes_with_share(result, p, x, expected, scheme, score_error, tail_error, tolerance)


def _value_tolerance(p: FloatArray, score_error: FloatArray, scheme: QuantScheme) -> FloatArray:
    """Relative error of each value: what scores are off by moves those that are kept as they are, and, unless a row is
    made to sum to 1, the factor of a row.
    """
    if scheme.bits is not None and scheme.normalize is Normalize.UNIT:
        return np.asarray(LEVEL_TOLERANCE)
    of_row = (np.nan_to_num(p) * score_error).sum(axis=-1, keepdims=True)
    return np.asarray(LEVEL_TOLERANCE + of_row + (score_error if scheme.bits is None else 0.0))


def _telling(p: FloatArray, positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Rows with at least two different values above zero, on which schemes differ."""
    high = np.where(positive, p, 0.0).max(-1)
    low = np.where(positive, p, np.inf).min(-1)
    return np.asarray((positive.sum(-1) > 1) & (high > low * (1.0 + LEVEL_TOLERANCE)))


def _codes_with_share(
    result: FloatArray,
    p: FloatArray,
    x: FloatArray,
    expected: numerics.CodeArray,
    scheme: QuantScheme,
    score_error: FloatArray,
    tail_error: FloatArray,
    tolerance: FloatArray,
) -> tuple[numerics.CodeArray, npt.NDArray[np.bool_]]:
    """The codes of rows in which the keys of a sample share what the pruned summed to; a wrong share is a miss.

    What each key of the sample has is read from one that must be pruned. Where there is none, it has to be what the
    row's expected codes make it, or those with the other code for keys at the lowest edge: whichever explains the row.
    Then the error of that sum is one of every key of the sample, on top of its level's.
    """
    # Of masked keys both errors are beyond all.
    width, of_tail = (
        np.minimum(numerics.EDGE_ULPS * _EPS + error, UNDERFLOW_NATS) for error in (score_error, tail_error)
    )
    with np.errstate(divide="ignore"):
        at_mask = np.abs(np.log(x) - numerics.MASKED_NATS) <= _MASK_EDGE + score_error
    on = np.arange(x.shape[-1]) % numerics.sample_stride(x.shape[-1]) == 0
    sample = on & np.where(at_mask, result > 0.0, numerics.unmasked(x))
    size = sample.sum(axis=-1, keepdims=True)
    unit = scheme.normalize is Normalize.UNIT
    peak = p.max(axis=-1, keepdims=True) if scheme.reference is Reference.ROW_MAX else np.ones(1)
    whole = p.sum(axis=-1, keepdims=True)

    allowed = SHARE_TOLERANCE * (whole if unit else np.maximum(whole, peak))
    at_lowest = np.abs(x - scheme.threshold) <= width * scheme.threshold

    def shared(code: numerics.CodeArray, sign: float = 0.0) -> FloatArray:
        """What pruned values sum to in the result, if these are the codes and x is off by its error times the sign."""
        level = numerics.continued_levels(x * np.exp(sign * of_tail), scheme)
        if sign > 0 and scheme.bits is not None:  # a key at the lowest edge may be pruned and have the level above it
            level = np.where(at_lowest, numerics.levels(scheme)[0], level)
        tail = np.where((code == 0) & numerics.unmasked(x) & (size > 0), level, 0.0).sum(axis=-1, keepdims=True)
        kept = numerics.values(x, scheme) if scheme.bits is None else np.append(0.0, numerics.levels(scheme))[code]
        total = np.where(code > 0, kept, 0.0).sum(axis=-1, keepdims=True) + tail
        return np.asarray(tail * whole / np.maximum(total, _TINY) if unit else tail * peak)

    flipped = np.where(at_lowest, np.where(expected == 0, 1, 0), expected).astype(np.int16)
    surely_pruned = sample & (expected == 0) & ~at_lowest
    reader = np.argmax(surely_pruned, axis=-1)[..., None]
    read = np.take_along_axis(result, reader, -1)
    has_reader = np.take_along_axis(surely_pruned, reader, -1)
    unsure = np.where(sample & ~has_reader, allowed / np.maximum(size, 1), 0.0)
    best: tuple[numerics.CodeArray, npt.NDArray[np.bool_]] | None = None
    for code in (expected, flipped):
        share = np.where(has_reader, read, shared(code) / np.maximum(size, 1))
        without = np.where(sample, result - share, result)
        rounding = LEVEL_TOLERANCE * share + np.where(code == 0, unsure, 0.0)
        without = np.where(sample & (np.abs(without) <= rounding), 0.0, without)
        found, misses = _codes_of(without, p, x, expected, scheme, tolerance, share * size, unsure)
        low, high = shared(found, -1.0), shared(found, 1.0)
        misses |= ((share * size < low - allowed) | (share * size > high + allowed)) & (size > 0)
        best = (found, misses) if best is None else _fewer_misses(best, (found, misses))
    assert best is not None
    return best


def _fewer_misses(
    a: tuple[numerics.CodeArray, npt.NDArray[np.bool_]], b: tuple[numerics.CodeArray, npt.NDArray[np.bool_]]
) -> tuple[numerics.CodeArray, npt.NDArray[np.bool_]]:
    """Of two readings of each row the one with fewer values that stand for no code."""
    better = b[1].sum(axis=-1, keepdims=True) < a[1].sum(axis=-1, keepdims=True)
    return np.where(better, b[0], a[0]), np.where(better, b[1], a[1])


def _codes_of(
    result: FloatArray,
    p: FloatArray,
    x: FloatArray,
    expected: numerics.CodeArray,
    scheme: QuantScheme,
    tolerance: FloatArray,
    shared: FloatArray = _ZERO,
    unsure: FloatArray = _ZERO,
) -> tuple[numerics.CodeArray, npt.NDArray[np.bool_]]:
    """The code that each value stands for, and where a value stands for none; ``shared`` was taken off each row, and
    with it each value may be off by ``unsure``.
    """
    kept = result > 0.0
    of_share = unsure / np.maximum(result, _TINY)
    if scheme.normalize is Normalize.NONE:
        peak = p.max(axis=-1, keepdims=True) if scheme.reference is Reference.ROW_MAX else np.ones(1)
        return _read(result, peak, x, scheme, tolerance + of_share)
    target = np.where(kept | (scheme.normalize is Normalize.UNIT), p, 0.0).sum(axis=-1, keepdims=True) - shared
    if scheme.bits is None:
        scale = target / np.maximum(np.where(kept, x, 0.0).sum(axis=-1, keepdims=True), _TINY)
        return _read(result, scale, x, scheme, tolerance + of_share)
    # A row's levels were divided by their own sum. Which sum it was follows from the level of the row's
    # largest value; where that lies next to an edge, the code that explains the row best is the right one.
    table = numerics.levels(scheme)
    top = np.argmax(result, axis=-1)[..., None]
    largest, code = np.take_along_axis(result, top, -1), np.take_along_axis(expected, top, -1).astype(np.int64)
    tolerance = tolerance + np.take_along_axis(of_share, top, -1)  # of the scale, so of every value
    best: tuple[numerics.CodeArray, npt.NDArray[np.bool_]] | None = None
    shifts: tuple[int, ...] = (0, -1, 1)
    if scheme.reference is Reference.ROW_MAX:  # the row's maximum is x = 1, in the top bin
        code, shifts = np.full_like(code, scheme.levels), (0,)
    for shift in shifts:
        scale = largest / table[np.clip(code + shift, 1, scheme.levels) - 1]
        found, misses = _read(result, scale, x, scheme, tolerance + of_share)
        total = np.where(found > 0, table[np.maximum(found, 1) - 1], 0.0).sum(axis=-1, keepdims=True)
        of_row = np.max(tolerance, axis=-1, keepdims=True)
        misses = misses | (np.abs(scale * total - target) > of_row * (target + shared)) & (total > 0.0)
        best = (found, misses) if best is None else _fewer_misses(best, (found, misses))
    assert best is not None
    return best


def _read(
    result: FloatArray, scale: FloatArray, x: FloatArray, scheme: QuantScheme, tolerance: FloatArray
) -> tuple[numerics.CodeArray, npt.NDArray[np.bool_]]:
    """The nearest code of each value of rows that were multiplied by ``scale``, and whether it is far from it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        level = result / scale
        if scheme.bits is None:
            found = np.where(level >= _TINY, 1, 0)
            wanted = np.where(found == 0, 0.0, x)
        else:
            table = np.concatenate([[0.0], numerics.levels(scheme)])
            between = np.sqrt(table[1:-1] * table[2:])  # a value is off by a factor
            found = np.where(result == 0.0, 0, 1 + np.searchsorted(between, level))
            wanted = table[found]
        misses = np.abs(level - wanted) > tolerance * wanted + _TINY
    found = np.where(np.isnan(result), numerics.NAN_CODE, found)
    return found.astype(np.int16), np.asarray(misses)
