"""The definition: what every scheme does to attention values, in numpy and float64.

Everything else that computes quantized attention (the ONNX function bodies, the native kernels) is
tested against these few functions. Shapes: scores and probabilities are (..., L_q, L_k) or any
shape with the softmax over ``axis``.

Where a scheme says that pruned values share what they summed to (``pruned`` is ``mean``), a row is made of the
levels of its kept keys plus, on each key of its sample, an equal share of its tail:

* A key is unmasked where ln x >= `MASKED_NATS`; below that, exp of the distance to the row's maximum leaves the
  normal numbers of float32. A masked key is recognized by its score alone; the error is below 1e-37 of the maximum.
* The tail is the sum of the `continued_levels` of the pruned, unmasked keys: those that the scheme would have if
  they continued below the threshold, so that one table and no exponential serve kept and pruned keys. A scheme
  without levels keeps values as they are, and sums them as they are.
* The sample is every unmasked key, kept or pruned, whose index is a multiple of `sample_stride`. The mean over it
  stands for that over all pruned keys: SparQ attention (Ribar et al. 2023, arXiv 2312.04985), read from few keys.
* A row without pruned keys has no tail. A row whose sample is empty is left as if pruned values were zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.scheme.quant_scheme import Normalize, Pruned, QuantScheme, Reference, Spacing

FloatArray = npt.NDArray[np.float64]
CodeArray = npt.NDArray[np.int16]

NAN_CODE: Final = -1
"""The code of a NaN, which is neither pruned nor quantized; NaN in, NaN out."""

EDGE_ULPS: Final = 32
"""How near an edge, in float32 ULPs of x relative to the edge, two executions may choose different codes.

An execution in float32 computes u = ln x with u down to about -14 (8 bits, threshold 1e-6) in three
rounded operations; an error of 3 * 2**-24 * 14 in u is 2.5e-6 of x, or 21 ULPs.
"""

MASKED_NATS: Final = -87.0
"""Where ln x is lower, a key is masked; exp(-87) is 1.6e-38, and float32's smallest normal number 1.2e-38."""

SMALLEST_SAMPLE: Final = 128
"""Of fewer keys than twice this many, every one is in the sample that shares what pruned values summed to."""


def edges(scheme: QuantScheme) -> FloatArray:
    """The n ascending edges of a scheme with bits, on the scale of x; edges[0] is the prune threshold.


    >>> from onnx_attnq.scheme import preset
    >>> edges(preset("row-log")).round(4).tolist()
    [0.01, 0.0203, 0.0412, 0.0838, 0.1701, 0.3455, 0.7017]
    """
    table = _unscale(scheme, scheme.scale(scheme.threshold) + scheme.step * np.arange(scheme.levels))
    table[0] = scheme.threshold  # exp(ln t) may be one float64 ULP off
    return table


def levels(scheme: QuantScheme) -> FloatArray:
    """The n ascending non-zero levels of a scheme with bits; code c > 0 stands for levels[c - 1].

    >>> from onnx_attnq.scheme import preset
    >>> levels(preset("ji2021")).round(5).tolist()
    [0.00164, 0.00439, 0.01179, 0.03162, 0.08483, 0.22758, 0.61054]
    """
    return _unscale(scheme, scheme.scale(scheme.threshold) + scheme.step * (np.arange(scheme.levels) + 0.5))


def codes(x: npt.ArrayLike, scheme: QuantScheme) -> CodeArray:
    """The number of edges at or below each x, int16: 0 is pruned, n the top bin, -1 a NaN.

    For a prune-only scheme the one edge is the threshold: 0 is pruned, 1 kept.

    >>> from onnx_attnq.scheme import preset
    >>> codes([0.0, 0.0099, 0.01, 0.5, 1.0, float("nan")], preset("row-log")).tolist()
    [0, 0, 1, 6, 7, -1]
    """
    x = np.asarray(x, dtype=np.float64)
    table = np.array([scheme.threshold]) if scheme.bits is None else edges(scheme)
    found = np.searchsorted(table, x, side="right").astype(np.int16)
    return np.where(np.isnan(x), np.int16(NAN_CODE), found)


def values(x: npt.ArrayLike, scheme: QuantScheme) -> FloatArray:
    """Each x replaced by its level; 0 where pruned, x itself where a prune-only scheme keeps it.

    >>> from onnx_attnq.scheme import preset
    >>> values([0.001, 0.3, 1.0], preset("row-log")).round(3).tolist()
    [0.0, 0.242, 1.0]
    """
    x = np.asarray(x, dtype=np.float64)
    return _values(x, codes(x, scheme), scheme)


def continued_levels(x: npt.ArrayLike, scheme: QuantScheme) -> FloatArray:
    """The level below the lowest edge that each x would have if edges and levels continued there in the same steps.

    A key that is kept gets the highest of them. A scheme without levels leaves x as it is.

    >>> from onnx_attnq.scheme import preset
    >>> continued_levels([0.05, 0.01, 0.5, 0.0], preset("row-log-mean", bits=2, threshold=0.1)).round(4).tolist()
    [0.0631, 0.01, 0.0631, 0.0]
    """
    x = np.asarray(x, dtype=np.float64)
    if scheme.bits is None:
        return x
    with np.errstate(divide="ignore"):
        code = np.minimum(np.floor(np.log(x) / scheme.step + scheme.offset) + 1.0, 0.0)
    return np.asarray(np.exp((code - 0.5 - scheme.offset) * scheme.step))


def unmasked(x: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which keys are not masked: ln x >= `MASKED_NATS`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(np.asarray(x, dtype=np.float64)) >= MASKED_NATS)


def sample_stride(keys: int) -> int:
    """The largest power of two that leaves 128 keys or more: 1 up to 255 keys, 2 up to 511.

    >>> [sample_stride(keys) for keys in (0, 1, 255, 256, 511, 512, 8192)]
    [1, 1, 1, 2, 2, 4, 64]
    """
    return 1 << max(0, (keys // SMALLEST_SAMPLE).bit_length() - 1)


def sampled(x: npt.ArrayLike, axis: int = -1) -> npt.NDArray[np.bool_]:
    """Which keys share the sum of the pruned values: unmasked ones whose index is a multiple of `sample_stride`.

    >>> sampled([1.0, 0.5, 0.0]).tolist()
    [True, True, False]
    """
    return _in_sample(unmasked(x), axis)


def shares(x: npt.ArrayLike, scheme: QuantScheme, axis: int = -1) -> FloatArray:
    """What each key gets of the sum of its row's pruned values, on the scale of x; 0 with pruned ``zero``.

    >>> from onnx_attnq.scheme import preset
    >>> shares([1.0, 0.05, 0.01, 0.0], preset("row-log-mean", bits=2, threshold=0.1)).round(4).tolist()
    [0.0244, 0.0244, 0.0244, 0.0]
    """
    x = np.asarray(x, dtype=np.float64)
    return _shares(x, codes(x, scheme), scheme, axis)


def near_edge(x: npt.ArrayLike, scheme: QuantScheme, score_error: npt.ArrayLike = 0.0) -> npt.NDArray[np.bool_]:
    """True where x is so near an edge that an execution in float32 may choose the code next to it.

    Args:
        x: Values measured against the scheme's reference.
        scheme: Any scheme.
        score_error: Absolute error that the scores behind x may have beside `EDGE_ULPS`; of x it is the relative error.

    >>> from onnx_attnq.scheme import preset
    >>> near_edge([0.01, 0.010001], preset("row-log")).tolist()
    [True, False]
    """
    x = np.asarray(x, dtype=np.float64)
    table = np.array([scheme.threshold]) if scheme.bits is None else edges(scheme)
    upper = np.clip(np.searchsorted(table, x), 0, table.size - 1)
    lower = np.clip(upper - 1, 0, table.size - 1)
    width = EDGE_ULPS * float(np.finfo(np.float32).eps) + np.asarray(score_error)
    return np.asarray(
        (np.abs(x - table[upper]) <= width * table[upper]) | (np.abs(x - table[lower]) <= width * table[lower])
    )


def softmax(scores: npt.ArrayLike, axis: int = -1) -> FloatArray:
    """The softmax over ``axis`` in float64; a row of -inf gives NaN, as ONNX Softmax does.

    >>> softmax([0.0, 0.0]).tolist()
    [0.5, 0.5]
    """
    exp = relative_scores(scores, axis)
    return np.asarray(exp / exp.sum(axis=axis, keepdims=True))


def relative_scores(scores: npt.ArrayLike, axis: int = -1) -> FloatArray:
    """exp(s - max s) over ``axis``: the probabilities divided by the row's maximum, without the softmax sum.

    >>> relative_scores([0.0, -np.log(4.0)]).round(6).tolist()
    [1.0, 0.25]
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[axis] == 0:
        return scores.copy()
    with np.errstate(invalid="ignore"):  # -inf - -inf in a fully masked row is the NaN that is wanted
        return np.asarray(np.exp(scores - scores.max(axis=axis, keepdims=True)))


def relative(probabilities: npt.ArrayLike, scheme: QuantScheme, axis: int = -1) -> FloatArray:
    """x: the probabilities measured against the scheme's reference.

    A row of zeros stays zero, and a row with a NaN is all NaN.

    >>> from onnx_attnq.scheme import preset
    >>> relative([0.25, 0.5], preset("row-log")).tolist()
    [0.5, 1.0]
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape[axis] == 0:
        return p.copy()
    peak = p.max(axis=axis, keepdims=True)
    if scheme.reference is Reference.ABSOLUTE:
        return np.where(np.isnan(peak), np.nan, p)
    return np.asarray(p / np.where(peak == 0.0, 1.0, peak))


def quantize_probabilities(probabilities: npt.ArrayLike, scheme: QuantScheme, axis: int = -1) -> FloatArray:
    """Prune and quantize probabilities that exist already: op ``QuantizeProbabilities``.

    Args:
        probabilities: Non-negative, any shape. Rows along ``axis`` need not sum to 1; ``unit`` keeps
            the sum that they have, so that attention sinks and head masks keep their meaning.
        scheme: Any scheme.
        axis: The axis of the keys.

    Returns:
        float64 of the same shape. A row in which everything was pruned is all zero, unless pruned values share
        what they summed to.

    >>> from onnx_attnq.scheme import preset
    >>> quantize_probabilities([0.75, 0.2495, 0.0005], preset("ji2021")).round(3).tolist()
    [0.611, 0.228, 0.0]
    """
    p = np.asarray(probabilities, dtype=np.float64)
    x = relative(p, scheme, axis)
    return with_codes(p, x, codes(x, scheme), scheme, axis)


def with_codes(p: FloatArray, x: FloatArray, code: CodeArray, scheme: QuantScheme, axis: int = -1) -> FloatArray:
    """What `quantize_probabilities` makes of probabilities whose `relative` values and `codes` are known.

    >>> from onnx_attnq.scheme import preset
    >>> p = np.array([0.25, 0.75])
    >>> with_codes(p, p / 0.75, np.array([6, 7], np.int16), preset("row-log")).round(3).tolist()
    [0.33, 0.67]
    """
    quantized = _values(x, code, scheme)
    if scheme.pruned is not Pruned.ZERO:
        quantized += _shares(x, code, scheme, axis)
    if scheme.normalize is Normalize.NONE:
        if scheme.reference is Reference.ROW_MAX and p.shape[axis]:
            return np.asarray(quantized * p.max(axis=axis, keepdims=True))
        return quantized
    total = quantized.sum(axis=axis, keepdims=True)
    kept = p if scheme.normalize is Normalize.UNIT else np.where(code == 0, 0.0, p)
    target = kept.sum(axis=axis, keepdims=True)
    return np.asarray(quantized * (target / np.where(total == 0.0, 1.0, total)))


def quantize_scores(scores: npt.ArrayLike, scheme: QuantScheme, axis: int = -1) -> FloatArray:
    """Softmax, pruned and quantized: op ``QuantizedSoftmax``.

    The same as `quantize_probabilities` of `softmax`, up to the rounding of float64. A row of equal
    scores, however low, is a flat row; a row of -inf is NaN, as the original softmax gives.

    >>> from onnx_attnq.scheme import preset
    >>> quantize_scores([0.0, -0.1, -2.0, -9.0], preset("row-log")).round(4).tolist()
    [0.4718, 0.4718, 0.0563, 0.0]
    >>> quantize_scores([0.0, -0.1, -2.0, -4.0, -90.0], preset("row-log-mean", bits=2, threshold=0.1)).round(4).tolist()
    [0.4608, 0.4608, 0.0755, 0.0029, 0.0]
    """
    return quantize_probabilities(softmax(scores, axis), scheme, axis)


def quantized_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    scheme: QuantScheme,
    mask: npt.ArrayLike = 0.0,
    scale: float = 1.0,
) -> FloatArray:
    """Attention with quantized probabilities: op ``QuantizedAttention``.

    Args:
        query: (..., L_q, D).
        key: (..., L_k, D).
        value: (..., L_k, D_v).
        scheme: Any scheme.
        mask: Added to the scaled scores; broadcast to (..., L_q, L_k).
        scale: Factor on the scores, usually D ** -0.5.

    Returns:
        The context, (..., L_q, D_v), float64.

    >>> from onnx_attnq.scheme import preset
    >>> eye = np.eye(2)
    >>> quantized_attention(eye, eye, eye, preset("row-log"), scale=10.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    query, key, value = (np.asarray(a, dtype=np.float64) for a in (query, key, value))
    scores = query @ np.swapaxes(key, -1, -2) * scale + np.asarray(mask, dtype=np.float64)
    return np.asarray(quantize_scores(scores, scheme) @ value)


def _values(x: FloatArray, code: CodeArray, scheme: QuantScheme) -> FloatArray:
    if scheme.bits is None:
        return np.where(code == 0, 0.0, x)
    table = np.concatenate([[0.0], levels(scheme), [np.nan]])  # code -1 indexes the NaN at the end
    return table[code]


def _shares(x: FloatArray, code: CodeArray, scheme: QuantScheme, axis: int) -> FloatArray:
    if scheme.pruned is Pruned.ZERO:
        return np.zeros_like(x)
    counts = unmasked(x)
    sample = _in_sample(counts, axis)
    tail = np.where((code == 0) & counts, continued_levels(x, scheme), 0.0).sum(axis=axis, keepdims=True)
    return np.where(sample, tail / np.maximum(sample.sum(axis=axis, keepdims=True), 1), 0.0)


def _in_sample(counts: npt.NDArray[np.bool_], axis: int) -> npt.NDArray[np.bool_]:
    """Of the unmasked keys those whose index is a multiple of the stride."""
    index = np.arange(counts.shape[axis]).reshape(-1, *(1,) * (counts.ndim - 1 - axis % counts.ndim))
    return np.asarray(counts & (index % sample_stride(counts.shape[axis]) == 0))


def _unscale(scheme: QuantScheme, y: npt.ArrayLike) -> FloatArray:
    return np.asarray(np.exp(y) if scheme.spacing is Spacing.LOG else y, dtype=np.float64)


__all__ = [
    "EDGE_ULPS",
    "MASKED_NATS",
    "NAN_CODE",
    "SMALLEST_SAMPLE",
    "CodeArray",
    "FloatArray",
    "codes",
    "continued_levels",
    "edges",
    "levels",
    "near_edge",
    "quantize_probabilities",
    "quantize_scores",
    "quantized_attention",
    "relative",
    "relative_scores",
    "sample_stride",
    "sampled",
    "shares",
    "softmax",
    "unmasked",
    "values",
    "with_codes",
]
