"""The definition against independent transcriptions of the papers, and its own promises at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import schemes

from onnx_attnq.scheme import PRESETS, Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing, numerics, preset

BITS = st.integers(1, 8)
PROBABILITY = st.one_of(st.floats(0.0, 1.0), st.floats(-30.0, 0.0).map(math.exp))
ROWS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.floats(-60.0, 60.0))

ROUNDINGS = 16 * np.finfo(np.float64).eps
"""Relative difference of one quantity computed by two formulas in float64."""

EDGE = 1e-9
"""How near an edge, relative, two formulas in float64 may choose different bins; log10 of 1e-10 costs the most."""


# --- Ji et al. 2021, section 5, and FQ-ViT, transcribed from the papers for one value


def paper_log_pruned(p: float, bits: int, t: float) -> float:
    """Ji et al.: pruned log quantization; bins of equal width over [log2 t, 0], midpoints."""
    n = 2**bits - 1
    if p < t:
        return 0.0
    step = -math.log2(t) / n
    k = min(math.floor((math.log2(p) - math.log2(t)) / step), n - 1)
    return float(2.0 ** (math.log2(t) + (k + 0.5) * step))


def paper_log(p: float, bits: int, floor: float = 1e-10) -> float:
    """Ji et al.: unpruned log quantization, 2**bits bins over [log2 1e-10, 0]; under the first cut 0."""
    step = -math.log2(floor) / 2**bits
    if p < floor:
        return 0.0
    k = min(math.floor((math.log2(p) - math.log2(floor)) / step), 2**bits - 1)
    return 0.0 if k < 1 else float(2.0 ** (math.log2(floor) + (k + 0.5) * step))


def paper_linear(p: float, bits: int, t: float = 0.0) -> float:
    """Ji et al.: linear quantization over [t, 1] in 2**bits bins; under the first cut 0."""
    step = (1.0 - t) / 2**bits
    k = min(math.floor((p - t) / step), 2**bits - 1)
    return 0.0 if k < 1 else t + (k + 0.5) * step


def fq_vit_log2(p: float, bits: int) -> float:
    """FQ-ViT, equation 14: Q = clip(round(-log2 p), 0, 2**b - 1); the last code, 2**b - 1, stands for zero here."""
    if p == 0.0:
        return 0.0
    q = round(-math.log2(p))
    return 0.0 if q >= 2**bits - 1 else 2.0**-q


def is_at_edge(p: float, scheme: QuantScheme) -> bool:
    return bool((np.abs(numerics.edges(scheme) / max(p, 1e-300) - 1.0) < EDGE).any())


def agree(p: float, scheme: QuantScheme, expected: float) -> None:
    found = float(numerics.quantize_probabilities([p], scheme)[0])
    if not is_at_edge(p, scheme):
        assert found == pytest.approx(expected, rel=1e-12, abs=0.0)


@given(PROBABILITY, BITS, st.floats(1e-6, 0.1))
def test_ji2021_is_the_papers_pruned_log(p: float, bits: int, t: float) -> None:
    agree(p, preset("ji2021", bits=bits, threshold=t), paper_log_pruned(p, bits, t))


@given(PROBABILITY, BITS)
def test_ji2021_log_is_the_papers_unpruned_log(p: float, bits: int) -> None:
    agree(p, preset("ji2021-log", bits=bits), paper_log(p, bits))


@given(PROBABILITY, BITS)
def test_ji2021_linear_is_the_papers_linear(p: float, bits: int) -> None:
    agree(p, preset("ji2021-linear", bits=bits), paper_linear(p, bits))


@given(PROBABILITY, BITS, st.floats(1e-6, 0.1))
def test_ji2021_linear_pruned_is_the_papers_linear_over_what_is_left(p: float, bits: int, t: float) -> None:
    agree(p, preset("ji2021-linear-pruned", bits=bits, threshold=t), paper_linear(p, bits, t))


@given(PROBABILITY, BITS)
def test_fq_log2_rounds_to_powers_of_two(p: float, bits: int) -> None:
    agree(p, preset("fq-log2", bits=bits), fq_vit_log2(p, bits))


@given(ROWS, st.floats(1e-4, 0.3))
def test_boolean_gives_each_kept_value_the_same_share_of_the_row(scores: np.ndarray, t: float) -> None:
    p = numerics.softmax(scores)
    kept = p >= t
    count = kept.sum(axis=-1, keepdims=True)
    expected = np.where(kept, p.sum(axis=-1, keepdims=True) / np.maximum(count, 1), 0.0)
    np.testing.assert_allclose(
        numerics.quantize_probabilities(p, preset("boolean", threshold=t)), expected, rtol=ROUNDINGS, atol=0.0
    )


@given(ROWS, BITS, st.floats(1e-4, 0.3))
def test_row_log_is_the_designs_formula(scores: np.ndarray, bits: int, alpha: float) -> None:
    n = 2**bits - 1
    delta = -math.log(alpha) / (n - 0.5)
    distance = scores.max(axis=-1, keepdims=True) - scores
    j = np.round(distance / delta)
    values = np.where(j <= n - 1, np.exp(-j * delta), 0.0)
    expected = values / values.sum(axis=-1, keepdims=True)
    scheme = preset("row-log", bits=bits, threshold=alpha)
    at_edge = np.abs(distance / delta % 1.0 - 0.5).min(axis=-1, initial=1.0) < EDGE
    found = numerics.quantize_scores(scores, scheme)
    np.testing.assert_allclose(found[~at_edge], expected[~at_edge], rtol=1e-12, atol=0.0)


def test_the_papers_three_bit_levels() -> None:
    expected = [0.00164, 0.00439, 0.0118, 0.0316, 0.0848, 0.228, 0.611]
    np.testing.assert_allclose(numerics.levels(preset("ji2021")), expected, rtol=3e-3)


# --- the table


@given(schemes(BITS))
def test_edges_and_levels_ascend_and_interleave(scheme: QuantScheme) -> None:
    edges, levels = numerics.edges(scheme), numerics.levels(scheme)
    assert edges.shape == levels.shape == (scheme.levels,)
    assert edges[0] == scheme.threshold
    assert (edges < levels).all()
    assert (levels[:-1] < edges[1:]).all()
    top = levels[-1]
    assert top == pytest.approx(1.0, rel=1e-12) if scheme.rounding is Rounding.NEAREST else top < 1.0


@given(schemes(BITS))
def test_an_edge_belongs_to_the_bin_above_it_and_a_level_to_its_own(scheme: QuantScheme) -> None:
    edges = numerics.edges(scheme)
    above = np.arange(1, scheme.levels + 1)
    np.testing.assert_array_equal(numerics.codes(edges, scheme), above)
    np.testing.assert_array_equal(numerics.codes(np.nextafter(edges, 0.0), scheme), above - 1)
    np.testing.assert_array_equal(numerics.codes(numerics.levels(scheme), scheme), above)


@given(schemes(BITS))
def test_one_stays_in_the_top_bin(scheme: QuantScheme) -> None:
    assert numerics.codes(1.0, scheme) == scheme.levels
    assert numerics.values(1.0, scheme) == numerics.levels(scheme)[-1]


@given(schemes(BITS), st.lists(PROBABILITY, min_size=1))
def test_closed_form_gives_the_code_of_the_table(scheme: QuantScheme, xs: list[float]) -> None:
    x = np.array(xs)
    x = x[(x > 0.0) & ~numerics.near_edge(x, scheme)]
    scaled = np.log(x) if scheme.spacing is Spacing.LOG else x
    closed = np.clip(np.floor(scaled / scheme.step + scheme.offset), -1, scheme.levels - 1) + 1
    np.testing.assert_array_equal(numerics.codes(x, scheme), closed)


@given(schemes(), st.lists(PROBABILITY, min_size=2))
def test_codes_and_values_never_decrease(scheme: QuantScheme, xs: list[float]) -> None:
    x = np.sort(xs)
    assert (np.diff(numerics.codes(x, scheme)) >= 0).all()
    assert (np.diff(numerics.values(x, scheme)) >= 0.0).all()


@given(schemes(BITS))
def test_near_edge_is_what_lies_within_the_width(scheme: QuantScheme) -> None:
    edges, eps = numerics.edges(scheme), np.finfo(np.float32).eps
    for factor in (1.0, 1.0 + 30 * eps, 1.0 - 30 * eps):
        assert numerics.near_edge(edges * factor, scheme).all()
    outside = edges * (1.0 + 34 * eps)
    alone = np.abs(outside[:, None] / edges[None, :] - 1.0).min(axis=1) > 33 * eps
    assert not numerics.near_edge(outside, scheme)[alone].any()
    assert not numerics.near_edge([0.0, np.nan], scheme).any()


# --- rows


@given(schemes(pruned=Pruned.ZERO), ROWS)
def test_rows_sum_to_what_normalize_says(scheme: QuantScheme, scores: np.ndarray) -> None:
    p = numerics.softmax(scores)
    q = numerics.quantize_probabilities(p, scheme)
    x = numerics.relative(p, scheme)
    kept = numerics.codes(x, scheme) > 0
    match scheme.normalize:
        case Normalize.UNIT:
            expected = np.where(kept.any(axis=-1), p.sum(axis=-1), 0.0)
        case Normalize.MASS:
            expected = np.where(kept, p, 0.0).sum(axis=-1)
        case Normalize.NONE:
            peak = p.max(axis=-1) if scheme.reference is Reference.ROW_MAX else 1.0
            expected = numerics.values(x, scheme).sum(axis=-1) * peak
    np.testing.assert_allclose(q.sum(axis=-1), expected, rtol=ROUNDINGS, atol=1e-300)


@given(schemes(pruned=Pruned.ZERO), ROWS)
def test_pruned_is_exactly_zero_and_kept_is_not(scheme: QuantScheme, scores: np.ndarray) -> None:
    p = numerics.softmax(scores)
    code = numerics.codes(numerics.relative(p, scheme), scheme)
    q = numerics.quantize_probabilities(p, scheme)
    np.testing.assert_array_equal(q == 0.0, (code == 0) | (p == 0.0))


@given(schemes(), ROWS)
def test_row_max_never_empties_a_row(scheme: QuantScheme, scores: np.ndarray) -> None:
    q = numerics.quantize_scores(scores, scheme)
    if scheme.reference is Reference.ROW_MAX:
        assert (q.max(axis=-1) > 0.0).all()


@given(schemes(), ROWS, st.floats(-1e3, 1e3))
def test_scores_may_be_shifted(scheme: QuantScheme, scores: np.ndarray, shift: float) -> None:
    scores = np.round(scores * 8.0) / 8.0  # a shift by eighths is exact
    moved = scores + round(shift * 8.0) / 8.0
    np.testing.assert_array_equal(numerics.quantize_scores(scores, scheme), numerics.quantize_scores(moved, scheme))


@pytest.mark.parametrize("axis", range(3))
def test_the_sample_is_taken_along_any_axis(axis: int) -> None:
    x = np.random.default_rng(0).choice([0.0, 1.0], (2, 3, 512))
    moved = np.moveaxis(x, -1, axis)
    found = np.moveaxis(numerics.sampled(moved, axis), axis, -1)
    np.testing.assert_array_equal(found, (x > 0.0) & (np.arange(512) % 4 == 0))


@given(schemes(), ROWS)
def test_the_axis_may_be_any(scheme: QuantScheme, scores: np.ndarray) -> None:
    for axis in range(scores.ndim):
        moved = numerics.quantize_scores(np.moveaxis(scores, axis, -1), scheme)
        np.testing.assert_allclose(
            numerics.quantize_scores(scores, scheme, axis), np.moveaxis(moved, -1, axis), rtol=ROUNDINGS, atol=1e-300
        )


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_a_one_hot_row_keeps_its_one(name: str, length: int) -> None:
    scores = np.full(length, -1e30)
    scores[length // 2] = 5.0
    q = numerics.quantize_scores(scores, preset(name))
    assert np.flatnonzero(q).tolist() == [length // 2]
    if name not in ("ji2021", "ji2021-log", "ji2021-linear", "ji2021-linear-pruned"):
        assert q.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("fill", [0.0, -10_000.0, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("length", [1, 8, 100])
def test_a_row_of_equal_scores_is_flat(fill: float, length: int) -> None:
    q = numerics.quantize_scores(np.full(length, fill), preset("row-log"))
    np.testing.assert_allclose(q, 1.0 / length, rtol=ROUNDINGS)


def test_a_flat_row_below_an_absolute_threshold_is_empty() -> None:
    assert not numerics.quantize_scores(np.zeros(2000), preset("ji2021")).any()
    assert not numerics.quantize_scores(np.zeros(2000), preset("boolean")).any()


def test_a_row_without_a_peak_becomes_its_mean_when_it_is_measured_against_1() -> None:
    scores = np.linspace(0.0, 1.0, 200)  # the largest probability is .008
    np.testing.assert_allclose(numerics.quantize_scores(scores, preset("log-mean")), 1.0 / 200)
    assert (numerics.codes(numerics.relative(numerics.softmax(scores), preset()), preset()) > 0).all()
    scores[7] = 9.0  # .97 of the row
    peak = numerics.quantize_scores(scores, preset("log-mean"))
    assert peak[7] == pytest.approx(numerics.softmax(scores)[7], rel=0.02)
    np.testing.assert_allclose(np.delete(peak, 7), (1.0 - peak[7]) / 199, rtol=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_of_minus_infinity_is_nan_as_softmax_gives(name: str) -> None:
    scores = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    q = numerics.quantize_scores(scores, preset(name))
    assert np.isnan(q[0]).all()
    assert q[1, 0] > 0.0
    assert q[1, 1] == 0.0


@pytest.mark.parametrize("name", PRESETS)
def test_nan_in_gives_nan_for_its_row_only(name: str) -> None:
    q = numerics.quantize_scores([[0.0, np.nan, 1.0], [0.0, 0.5, 1.0]], preset(name))
    assert np.isnan(q[0]).all()
    assert np.isfinite(q[1]).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_of_zero_probabilities_stays_zero(name: str) -> None:
    np.testing.assert_array_equal(numerics.quantize_probabilities(np.zeros((2, 5)), preset(name)), 0.0)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (2, 0, 0)])
def test_no_keys_or_no_rows_give_an_empty_result(name: str, shape: tuple[int, ...]) -> None:
    for compute in (numerics.quantize_scores, numerics.quantize_probabilities):
        assert compute(np.zeros(shape), preset(name)).shape == shape


@given(ROWS)
def test_identity_and_threshold_zero_change_nothing(scores: np.ndarray) -> None:
    p = numerics.softmax(scores)
    for reference in Reference:
        scheme = QuantScheme(reference, Normalize.NONE, 0.0)
        np.testing.assert_allclose(numerics.quantize_probabilities(p, scheme), p, rtol=ROUNDINGS, atol=0.0)


@given(ROWS, st.floats(1e-6, 0.9))
def test_prune_only_keeps_a_value_as_it_is_or_not_at_all(scores: np.ndarray, t: float) -> None:
    p = numerics.softmax(scores)
    q = numerics.quantize_probabilities(p, preset("prune-only", threshold=t))
    np.testing.assert_array_equal(q, np.where(p < t, 0.0, p))


# --- pruned values that share what they summed to


def shared_row(scores: list[float], bits: int, alpha: float) -> list[float]:
    """One row of `row-log` with shared mass, transcribed from the formulas of the issue for single values."""
    n = 2**bits - 1
    delta = -math.log(alpha) / (n - 0.5)
    stride = 1
    while len(scores) // (2 * stride) >= 128:
        stride *= 2
    kept, tail, sample = {}, 0.0, []
    for index, score in enumerate(scores):
        distance = max(scores) - score
        if distance > 87.0:
            continue
        j = round(distance / delta)
        if j <= n - 1:
            kept[index] = math.exp(-j * delta)
        else:
            tail += math.exp(-j * delta)
        if index % stride == 0:
            sample.append(index)
    if not sample:
        tail = 0.0
    total = sum(kept.values()) + tail
    share = {index: tail / len(sample) for index in sample}
    return [(kept.get(i, 0.0) + share.get(i, 0.0)) / total for i in range(len(scores))]


@given(st.integers(1, 600), BITS.filter(lambda bits: bits <= 4), st.floats(1e-3, 0.2), st.integers(0, 2**32 - 1))
def test_shared_mass_is_the_issues_formula(length: int, bits: int, alpha: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(0.0, 4.0, length)
    scores[random.random(length) < 0.3] = random.choice([-np.inf, -10_000.0, np.finfo(np.float32).min])
    scores[random.integers(length)] = 1.0
    delta = -math.log(alpha) / (2**bits - 1.5)
    if np.abs((scores.max() - scores[scores > -1e3]) / delta % 1.0 - 0.5).min() < EDGE:
        return
    found = numerics.quantize_scores(scores, preset("row-log-mean", bits=bits, threshold=alpha))
    np.testing.assert_allclose(found, shared_row(scores.tolist(), bits, alpha), rtol=1e-11, atol=1e-300)


@given(schemes(pruned=Pruned.MEAN), ROWS)
def test_what_is_shared_is_what_was_pruned(scheme: QuantScheme, scores: np.ndarray) -> None:
    p = numerics.softmax(scores)
    x = numerics.relative(p, scheme)
    if scheme.pruned is Pruned.ZERO:
        return
    pruned = (numerics.codes(x, scheme) == 0) & numerics.unmasked(x)
    shared = numerics.shares(x, scheme)
    expected = np.where(pruned, numerics.continued_levels(x, scheme), 0.0).sum(axis=-1)
    np.testing.assert_allclose(shared.sum(axis=-1), expected, rtol=ROUNDINGS, atol=1e-300)
    assert (np.ptp(np.where(numerics.unmasked(x), shared, shared.max(axis=-1, keepdims=True)), axis=-1) == 0.0).all()
    if scheme.normalize is Normalize.UNIT:
        np.testing.assert_allclose(numerics.quantize_scores(scores, scheme).sum(axis=-1), 1.0, rtol=ROUNDINGS)


@given(schemes(BITS, pruned=Pruned.MEAN), PROBABILITY.filter(lambda p: p > 1e-37))
def test_levels_continue_below_the_threshold_within_half_a_step(scheme: QuantScheme, x: float) -> None:
    if scheme.pruned is Pruned.MEAN and x < scheme.threshold and not is_at_edge(x, scheme):
        distance = math.log(float(numerics.continued_levels(x, scheme)) / x)
        assert abs(distance) <= scheme.step / 2 * (1.0 + EDGE)


def test_masked_keys_get_nothing_and_an_empty_sample_leaves_the_row_as_it_was() -> None:
    scheme = preset("row-log-mean", bits=2, threshold=0.1)
    for mask in (-np.inf, -10_000.0, float(np.finfo(np.float32).min), -87.5):
        found = numerics.quantize_scores([0.0, -4.0, mask], scheme)
        assert found[2] == 0.0
        assert found[1] > 0.0
    scores = np.full(512, -np.inf)
    scores[[1, 2, 3]] = 0.0, -1.0, -5.0  # none of them at a multiple of 4
    zero = numerics.quantize_scores(scores, preset("row-log-mean", bits=2, threshold=0.1, pruned=Pruned.ZERO))
    np.testing.assert_array_equal(numerics.quantize_scores(scores, scheme), zero)
    scores[0] = -5.0
    assert numerics.quantize_scores(scores, scheme)[[0, 3]].tolist() == [pytest.approx(0.0141, rel=1e-2), 0.0]


@given(ROWS)
def test_rows_without_pruned_keys_are_as_without_sharing(scores: np.ndarray) -> None:
    scores = scores * (2.0 / 120.0)  # within 2 nats, above the threshold
    zero = numerics.quantize_scores(scores, preset("row-log-mean", bits=2, threshold=0.1, pruned=Pruned.ZERO))
    np.testing.assert_array_equal(numerics.quantize_scores(scores, preset("row-log-mean", bits=2, threshold=0.1)), zero)


ATTENTION: list[tuple[str, Callable[[np.random.Generator], tuple[np.ndarray, ...]]]] = [
    ("batched", lambda r: (r.normal(size=(2, 3, 5, 4)), r.normal(size=(2, 3, 7, 4)), r.normal(size=(2, 3, 7, 6)))),
    ("broadcast", lambda r: (r.normal(size=(2, 3, 5, 4)), r.normal(size=(2, 1, 7, 4)), r.normal(size=(2, 1, 7, 6)))),
]


@pytest.mark.parametrize(("name", "make"), ATTENTION, ids=[name for name, _ in ATTENTION])
def test_attention_with_identity_is_attention(
    name: str, make: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
) -> None:
    q, k, v = make(np.random.default_rng(0))
    mask = np.where(np.arange(7) < 5, 0.0, -np.inf)
    found = numerics.quantized_attention(q, k, v, preset("identity"), mask, scale=0.5)
    exp = np.exp(np.einsum("...id,...jd->...ij", q, k) * 0.5 + mask)
    np.testing.assert_allclose(found, exp @ v / exp.sum(-1, keepdims=True), rtol=1e-12)
