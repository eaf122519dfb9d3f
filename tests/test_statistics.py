"""The statistics against loops over single rows, and what merging promises."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attnq.scheme import PRESETS, numerics, preset
from onnx_attnq.study import EDGES, MAJORITIES, SiteStats
from onnx_attnq.study import probability_statistics as measure_module
from onnx_attnq.study.mergeable_arrays import MERGE_TOLERANCE, array_fields
from onnx_attnq.study.probability_statistics import measure
from onnx_attnq.study.site_statistics import BINS, THRESHOLDS

SCHEMES = (*map(preset, PRESETS), preset("row-log", bits=2), preset("ji2021", bits=2))
SUM_TOLERANCE = 1e-9  # relative; the loops below add in another order and normalize rows in another way


def attention(rng, shape, spread=3.0):
    """Probabilities as a model in float32 has them."""
    return numerics.softmax(rng.normal(scale=spread, size=shape)).astype(np.float32)


def example(seed, batch=2, heads=3, queries=5, keys=7, masked=0.3):
    """A batch with masked positions, a row that is masked altogether, values and separators."""
    rng = np.random.default_rng(seed)
    p = attention(rng, (batch, heads, queries, keys))
    valid = np.broadcast_to(rng.random((batch, 1, queries, keys)) >= masked, p.shape).copy()
    valid[0, :, 0] = False
    return p, valid, rng.normal(size=(batch, heads, keys, 4)), rng.random((batch, keys)) < 0.3


def rows_of(p, valid, head):
    """Each row's valid probabilities in float64, with its place (b, i) and the keys they belong to."""
    for b, i in itertools.product(range(p.shape[0]), range(p.shape[2])):
        keys = np.flatnonzero(valid[b, head, i])
        if keys.size:
            yield b, i, keys, p[b, head, i, keys].astype(np.float64)


def jensen_shannon(p, q):
    """In bits, as it is defined: the mean Kullback-Leibler divergence from the mixture."""
    middle = (p + q) / 2

    def divergence(a):
        return sum(x * math.log2(x / m) for x, m in zip(a, middle, strict=True) if x > 0)

    return (divergence(p) + divergence(q)) / 2


def assert_same(a: SiteStats, b: SiteStats, rtol=MERGE_TOLERANCE):
    for ours, theirs in [(a, b), *zip(a.schemes, b.schemes, strict=True)]:
        for name, value in array_fields(ours).items():
            other = getattr(theirs, name)
            if value.dtype.kind == "i":
                np.testing.assert_array_equal(value, other, err_msg=name)
            else:
                np.testing.assert_allclose(value, other, rtol=rtol, atol=1e-15, err_msg=name)


def test_the_bins_hold_the_decades_exactly():
    assert [EDGES[0], EDGES[70], EDGES[-1]] == [1e-10, 1e-3, 1.0]
    assert [THRESHOLDS[0], THRESHOLDS[-1], THRESHOLDS.size] == [1e-6, 1.0, 13]


@pytest.mark.parametrize("seed", range(3))
def test_distribution_agrees_with_loops_over_rows(seed):
    p, valid, _, _ = example(seed)
    stats = measure("s", p, valid)
    for head in range(p.shape[1]):
        rows = [values for *_, values in rows_of(p, valid, head)]
        flat = np.concatenate(rows)
        relative = np.concatenate([row / row.max() for row in rows])
        assert stats.values[head] == flat.size
        assert stats.rows[head] == len(rows)
        edges = np.concatenate([[-np.inf], EDGES, [np.inf]])
        np.testing.assert_array_equal(stats.histogram[head], np.histogram(flat, edges)[0])
        np.testing.assert_array_equal(stats.relative_histogram[head], np.histogram(relative, edges)[0])
        assert stats.minimum[head] == flat.min()
        assert stats.maximum[head] == flat.max()
        assert stats.mean[head] == pytest.approx(flat.mean(), rel=SUM_TOLERANCE)
        assert stats.std[head] == pytest.approx(flat.std(), rel=SUM_TOLERANCE)
        for k, threshold in enumerate(EDGES):
            assert stats.share_below()[head, k] == (flat < threshold).mean()
            assert stats.share_below(relative=True)[head, k] == (relative < threshold).mean()
            lost = flat[flat < threshold].sum() / flat.sum()
            assert stats.mass_lost()[head, k] == pytest.approx(lost, rel=SUM_TOLERANCE, abs=1e-15)
            lost = flat[relative < threshold].sum() / flat.sum()
            assert stats.mass_lost(relative=True)[head, k] == pytest.approx(lost, rel=SUM_TOLERANCE, abs=1e-15)
        assert stats.below_uniform[head] == sum((row < 1 / row.size).sum() for row in rows)


@pytest.mark.parametrize("seed", range(3))
def test_row_statistics_agree_with_loops_over_rows(seed):
    p, valid, _, separators = example(seed, queries=7)
    stats = measure("s", p, valid, separators=separators)
    for head in range(p.shape[1]):
        entropies, medians, first, itself, separator = [], [], [], [], []
        tokens = {share: [] for share in MAJORITIES}
        for b, i, keys, row in rows_of(p, valid, head):
            unit = row / row.sum()
            entropies.append(-sum(x * math.log2(x) for x in unit))
            medians.append(np.median(np.log10(row)))
            by_key = dict(zip(keys, row, strict=True))
            first.append(by_key.get(np.flatnonzero(valid[b].any(axis=(0, 1)))[0], 0.0))
            itself.append(by_key.get(i, 0.0))
            separator.append(sum(x for key, x in by_key.items() if separators[b, key]))
            falling = sorted(row, reverse=True)
            for share in MAJORITIES:
                count = next(n for n in range(1, row.size + 1) if sum(falling[:n]) >= share * sum(falling))
                tokens[share].append((count, count / row.size))
        assert stats.mean_entropy[head] == pytest.approx(np.mean(entropies), rel=SUM_TOLERANCE)
        assert stats.spread[head] == pytest.approx(np.std(medians), rel=1e-6)
        assert stats.attention_to_first[head] == pytest.approx(np.mean(first), rel=SUM_TOLERANCE)
        assert stats.attention_to_self[head] == pytest.approx(np.mean(itself), rel=SUM_TOLERANCE)
        assert stats.attention_to_separator[head] == pytest.approx(np.mean(separator), rel=SUM_TOLERANCE)
        for t, share in enumerate(MAJORITIES):
            counts, shares = np.transpose(tokens[share])
            assert stats.tokens_to_majority[head, t] == pytest.approx(counts.mean(), rel=SUM_TOLERANCE)
            assert stats.tokens_to_majority_std[head, t] == pytest.approx(counts.std(), rel=1e-6, abs=1e-7)
            assert stats.share_to_majority[head, t] == pytest.approx(shares.mean(), rel=SUM_TOLERANCE)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.bits}")
def test_what_a_scheme_does_agrees_with_loops_over_rows(scheme):
    p, valid, value, _ = example(5)
    stats = measure("s", p, valid, [scheme], value=value).of(scheme)
    for head in range(p.shape[1]):
        pruned = emptied = 0
        divergences, errors, error_energy, context_energy = [], [], 0.0, 0.0
        for b, _, keys, row in rows_of(p, valid, head):
            quantized = numerics.quantize_probabilities(row, scheme)
            pruned += (numerics.codes(numerics.relative(row, scheme), scheme) == 0).sum()
            emptied += quantized.sum() == 0
            unit = quantized / quantized.sum() if quantized.sum() else None
            divergences.append(1.0 if unit is None else jensen_shannon(row / row.sum(), unit))
            context, damaged = row @ value[b, head, keys], quantized @ value[b, head, keys]
            errors.append(np.linalg.norm(damaged - context) / np.linalg.norm(context))
            error_energy += np.linalg.norm(damaged - context) ** 2
            context_energy += np.linalg.norm(context) ** 2
        assert stats.pruned[head] == pruned
        assert stats.emptied[head] == emptied
        assert stats.mean_divergence[head] == pytest.approx(np.mean(divergences), rel=1e-6, abs=1e-12)
        assert stats.mean_context_error[head] == pytest.approx(np.mean(errors), rel=1e-6, abs=1e-12)
        total = math.sqrt(error_energy / context_energy)
        assert stats.total_context_error[head] == pytest.approx(total, rel=1e-6, abs=1e-12)


def test_identity_costs_nothing():
    p, valid, value, _ = example(1)
    stats = measure("s", p, valid, [preset("identity")], value=value).schemes[0]
    assert stats.pruned.sum() == 0
    assert stats.mean_divergence.max() < 1e-12
    assert stats.mean_context_error.max() == 0.0


def test_heads_that_agree_have_no_diversity_and_disjoint_heads_have_all_of_it():
    rng = np.random.default_rng(0)
    same = np.repeat(attention(rng, (1, 1, 4, 8)), 4, axis=1)
    assert measure("s", same).head_diversity == pytest.approx(0.0, abs=1e-9)
    disjoint = np.eye(4).reshape(1, 4, 1, 4).repeat(3, axis=2)
    assert measure("s", disjoint).head_diversity == pytest.approx(1.0)


def test_heads_with_values_in_different_bins_have_histogram_diversity():
    one_hot, flat = np.eye(4)[None, None], np.full((1, 1, 4, 4), 0.25)
    assert measure("s", np.concatenate([flat, flat], axis=1)).histogram_diversity == pytest.approx(0.0, abs=1e-12)
    assert measure("s", np.concatenate([one_hot, flat], axis=1)).histogram_diversity == pytest.approx(1.0)


def test_head_diversity_is_the_divergence_of_the_heads_rows():
    p, valid, _, _ = example(2)
    pairs = []
    for b, i in itertools.product(range(p.shape[0]), range(p.shape[2])):
        rows = np.where(valid[b, :, i], p[b, :, i].astype(np.float64), 0.0)
        if not valid[b, 0, i].any():
            continue
        rows /= rows.sum(axis=1, keepdims=True)
        middle = rows.mean(axis=0)
        pairs.append(np.mean([sum(x * math.log2(x / m) for x, m in zip(r, middle, strict=True) if x) for r in rows]))
    assert measure("s", p, valid).head_diversity == pytest.approx(np.mean(pairs) / math.log2(3), rel=SUM_TOLERANCE)


def test_the_sample_of_long_rows_moves_the_divergence_and_hardly_the_context():
    """docs/analyze.md says so: what a scheme that shares does to a row of 1024 keys is to be read off the context."""
    random = np.random.default_rng(0)
    scheme = preset("row-log-mean", bits=2, threshold=0.1)
    found = {}
    for keys in (255, 1024):
        p = numerics.softmax(random.normal(0.0, 1.5, (1, 2, 40, keys)))
        value = random.normal(1.0, 0.5, (1, 2, keys, 8))
        (found[keys],) = measure("site", p, schemes=[scheme], value=value).schemes
    assert (found[1024].mean_divergence > 1.5 * found[255].mean_divergence).all()
    assert (found[1024].context_error / found[1024].context_rows < 0.05).all()


def test_rows_that_are_masked_altogether_are_left_out():
    p = np.full((1, 1, 2, 4), 0.25)
    valid = np.array([[True] * 4, [False] * 4])[None, None]
    stats = measure("s", p, valid)
    assert (stats.rows.item(), stats.values.item()) == (1, 4)
    assert stats.mean_entropy.item() == 2.0


def test_rows_with_nan_are_counted_and_left_out():
    p = np.full((1, 1, 2, 4), 0.25)
    p[0, 0, 1, 2] = np.nan
    stats = measure("s", p, True, [preset()])
    assert (stats.nan_rows.item(), stats.rows.item(), stats.values.item()) == (1, 1, 4)
    assert stats.schemes[0].values.item() == 4


def test_a_zero_that_is_not_masked_is_a_value():
    stats = measure("s", [[[[0.0, 1.0, 0.0]]]])
    assert stats.histogram[0, 0] == 2
    assert stats.histogram[0, BINS - 1] == 1
    assert stats.minimum.item() == 0.0


def test_no_keys_give_no_rows():
    stats = measure("s", np.zeros((2, 3, 4, 0)), True, [preset()])
    assert stats.rows.sum() == 0
    assert np.isnan(stats.mean_entropy).all()


def test_cross_attention_has_no_token_itself():
    stats = measure("s", attention(np.random.default_rng(0), (1, 2, 3, 4)))
    assert np.isnan(stats.attention_to_self).all()
    assert np.isnan(stats.attention_to_separator).all()


def test_probabilities_of_another_rank_are_refused():
    with pytest.raises(ValueError, match=r"\(B, H, L_q, L_k\)"):
        measure("s", np.zeros((2, 3, 4)))


def test_the_size_of_the_blocks_does_not_matter(monkeypatch):
    p, valid, value, separators = example(4, queries=7)
    whole = measure("s", p, valid, SCHEMES, value=value, separators=separators)
    monkeypatch.setattr(measure_module, "BLOCK_VALUES", 1)
    assert_same(whole, measure("s", p, valid, SCHEMES, value=value, separators=separators))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(2, 5),
    heads=st.integers(1, 4),
    queries=st.integers(1, 6),
    keys=st.integers(1, 9),
    masked=st.floats(0.0, 0.9),
    cut=st.floats(0.0, 1.0),
)
def test_merging_two_halves_equals_the_whole(seed, batch, heads, queries, keys, masked, cut):
    p, valid, value, separators = example(seed, batch, heads, queries, keys, masked)
    at = int(cut * batch)
    parts = [
        measure("s", p[part], valid[part], SCHEMES[:3], value=value[part], separators=separators[part])
        for part in (slice(0, at), slice(at, None))
    ]
    whole = measure("s", p, valid, SCHEMES[:3], value=value, separators=separators)
    assert_same(parts[0].merge(parts[1]), whole)


def test_merging_is_associative_and_the_empty_statistics_change_nothing():
    parts = [measure("s", *example(seed)[:2], SCHEMES[:2]) for seed in range(3)]
    a, b, c = parts
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)))
    empty = SiteStats.empty("s", 3, SCHEMES[:2])
    assert_same(functools.reduce(SiteStats.merge, parts, empty), a.merge(b).merge(c), rtol=0.0)


def test_what_does_not_belong_together_is_not_merged():
    p = attention(np.random.default_rng(0), (1, 2, 3, 4))
    ours = measure("s", p, True, [preset()])
    for theirs, message in [
        (measure("t", p, True, [preset()]), "'s' is not 't'"),
        (measure("s", p), "1 and 0 schemes"),
        (measure("s", p, True, [preset(bits=2)]), "scheme"),
        (measure("s", p[:, :1], True, [preset()]), "not the same heads"),
    ]:
        with pytest.raises(ValueError, match=message):
            ours.merge(theirs)
