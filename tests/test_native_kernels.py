"""Every kernel of the native library against numerics.py, on whatever instruction sets this machine has."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import (
    attention_model,
    available_kernels,
    environment,
    kernel_name,
    rows_model,
    run_attention,
    session,
    tensor,
)

from onnx_attnq.run import native_library
from onnx_attnq.scheme import Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing, numerics, preset
from onnx_attnq.verification.codes import check_rows

pytestmark = pytest.mark.skipif(not available_kernels(), reason="the native library was not built: make native")

ALL_KERNELS = pytest.mark.parametrize("kernels", available_kernels())
# Where the reference of the kernels takes long. Each kernel is compared with the definition, so that none needs it.
ALL_KERNELS_OF_LONG_CALLS = pytest.mark.parametrize(
    "kernels",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "scalar" else []) for name in available_kernels()],
)
# Of ops that take scores or probabilities, which have no products to compute roughly.
ALL_BUT_ROUGH = pytest.mark.parametrize("kernels", [name for name in available_kernels() if "rough" not in name])

FORMS = [
    QuantScheme(reference, normalize, 0.02 if reference is Reference.ROW_MAX else 0.01, 3, spacing, rounding)
    for reference in Reference
    for normalize in Normalize
    for spacing in Spacing
    for rounding in Rounding
] + [QuantScheme(reference, normalize, 0.01) for reference in Reference for normalize in Normalize]
FORMS += [
    dataclasses.replace(scheme, pruned=Pruned.MEAN)
    for scheme in FORMS
    if scheme.normalize is not Normalize.MASS and scheme.spacing is not Spacing.LINEAR
]
SCHEMES = [preset(name) for name in ("row-log", "ji2021", "ji2021-linear", "boolean", "prune-only", "identity")]
# Levels of the tail by one permutation, by the product of two, and gathered: with AVX2.
MEANS = [
    preset("row-log-mean", bits=bits, threshold=threshold)
    for bits, threshold in ((1, 0.03), (2, 0.1), (3, 0.1), (3, 0.01), (4, 0.05))
] + [preset("log-mean", bits=2, threshold=0.1), preset("log-mean")]

# Float32 sums of a few hundred products or weights; a flipped code moves a value a thousand times as far.
SUM_TOLERANCE = 2e-5
# Scores are float32 sums of up to 160 products, of magnitude 10 at most: their error, which is that of ln x.
SCORE_ERROR = 2e-5
# Scores that are computed roughly are off by at most so much of |q| |k| scale.
ROUGH_SCORE_ERROR = 2**-11
# The kernels may choose another code where x is nearer an edge than numerics.EDGE_ULPS: so rare that rows drawn at
# random hold almost none.
EDGE_SHARE = 1e-3


def label(scheme: QuantScheme) -> str:
    fields = (scheme.reference, scheme.spacing, scheme.rounding, scheme.normalize)
    return "-".join(str(field) for field in fields if field is not None)


def near_tail_edge(x: np.ndarray, scheme: QuantScheme, score_error: float) -> np.ndarray:
    """Rows in which a pruned key may count as the level next to its own."""
    if scheme.pruned is Pruned.ZERO or scheme.bits is None or x.shape[-1] == 0:
        return np.zeros(x.shape[:-1], bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        position = np.nan_to_num(np.log(x), neginf=-200.0) / scheme.step + scheme.offset
    width = (score_error + 2e-6) / scheme.step
    near = (np.abs(position - np.round(position)) <= width) & (position * scheme.step > -30)
    return np.asarray(near.any(axis=-1))


def share_moved(
    kernels: str, q: np.ndarray, k: np.ndarray, x: np.ndarray, scheme: QuantScheme, scale: float
) -> np.ndarray:
    """What part of a row may be shared or not, since what is pruned sums to what rough scores make of it."""
    if kernels in ("scalar", "avx2", "neon") or scheme.pruned is Pruned.ZERO or scheme.bits is None or 0 in x.shape:
        return np.zeros(x.shape[:-1])
    score_error = scale * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max() * ROUGH_SCORE_ERROR
    codes = numerics.codes(x, scheme)
    kept = np.append(0.0, numerics.levels(scheme))[codes].sum(axis=-1)
    low, high = (
        np.where(codes == 0, numerics.continued_levels(x * np.exp(error), scheme), 0.0).sum(axis=-1)
        for error in (-score_error, score_error)
    )
    return np.asarray((high - low) / (kept + low))


def near_edge(x: np.ndarray, scheme: QuantScheme, score_error: float = 0.0) -> np.ndarray:
    """Rows in which float32 may choose another code; a scheme that prunes nothing has no edge."""
    if scheme.threshold == 0.0 or x.shape[-1] == 0:
        return np.zeros(x.shape[:-1], bool)
    return numerics.near_edge(np.nan_to_num(x, nan=0.0), scheme, score_error).any(axis=-1)


def assert_rows_agree(got: np.ndarray, x: np.ndarray, expected: np.ndarray, scheme: QuantScheme) -> None:
    """Rows agree but where one of their x is so near an edge that its code may be the next one."""
    doubtful = near_edge(x, scheme)
    assert doubtful.mean() <= EDGE_SHARE * max(x.shape[-1], 1) + 1 / doubtful.size
    certain = ~(doubtful | near_tail_edge(x, scheme, 0.0))
    np.testing.assert_allclose(got[certain], expected[certain], rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


def check_softmax(kernels: str, scores: np.ndarray, scheme: QuantScheme) -> None:
    got = session(rows_model("softmax", scheme), kernels=kernels).run(None, {"x": scores})[0]
    probabilities = numerics.softmax(scores)
    x = numerics.relative(probabilities, scheme)
    assert_rows_agree(got, x, numerics.quantize_scores(scores, scheme), scheme)


def check_attention(
    kernels: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scheme: QuantScheme,
    mask: np.ndarray | float = 0.0,
    scale: float = 0.3,
) -> None:
    got = run_attention(attention_model(scheme, scale=scale, rank=q.ndim), q, k, v, mask, kernels=kernels)
    with np.errstate(all="ignore"):
        expected = numerics.quantized_attention(q, k, v, scheme, mask, scale)
        scores = (q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2)) * scale + mask
        x = numerics.relative(numerics.softmax(scores), scheme) if k.shape[-2] else scores
    near = near_edge(x, scheme, SCORE_ERROR)
    assert near.mean() <= 0.02 * max(x.shape[-1], 1) ** 0.5 + 1 / max(near.size, 1)
    certain = ~(near | near_tail_edge(x, scheme, SCORE_ERROR))
    assert_contexts(got[certain], expected[certain], v, share_moved(kernels, q, k, x, scheme, scale)[certain])


def assert_contexts(got: np.ndarray, expected: np.ndarray, v: np.ndarray, moved: np.ndarray) -> None:
    """Contexts are equal but for rounding, and for that part of each row."""
    largest = np.nan_to_num(np.abs(v)).max(initial=0.0)
    allowed = SUM_TOLERANCE * (1 + np.abs(expected)) + 2 * largest * moved[..., None]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert (np.isnan(got) | (np.abs(got - expected) <= allowed)).all(), np.nanmax(np.abs(got - expected) - allowed)


def draw(seed: int, *shape: int, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


@ALL_KERNELS
def test_the_forced_kernel_is_the_one_that_runs(kernels: str) -> None:
    assert kernel_name(kernels) == kernels.removesuffix(" rough")


def test_unforced_the_best_kernel_runs() -> None:
    best_first = [name for name in ("amx", "avx512", "avx2", "neon", "scalar") if name in available_kernels()]
    assert kernel_name() == best_first[0]


# What Linux says about an x86 processor, for each of the kernels that needs nothing else.
FLAGS = {
    "avx2": {"avx2", "fma", "bmi1", "popcnt"},
    "avx512": {"avx2", "fma", "bmi1", "popcnt", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux's word about an x86 processor"
)
@pytest.mark.parametrize("kernels", FLAGS)
def test_the_kernels_are_those_of_the_processor(kernels: str) -> None:
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert flags is not None
    assert (kernels in available_kernels()) == (FLAGS[kernels] <= set(flags[1].split()))


def test_an_unknown_kernel_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(Exception, match=r"ONNX_ATTNQ_ISA=mmx is unknown; known here: .*scalar"):
        kernel_name("mmx")


def test_another_word_than_0_or_1_for_rough_scores_is_an_error() -> None:
    with environment(ONNX_ATTNQ_ROUGH_SCORES="yes"), pytest.raises(Exception, match="ROUGH_SCORES=yes must be 0 or 1"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(native_library()))


@ALL_BUT_ROUGH
@pytest.mark.parametrize("scheme", FORMS, ids=label)
def test_softmax_of_every_form(kernels: str, scheme: QuantScheme) -> None:
    check_softmax(kernels, draw(1, 2, 3, 17, 75, spread=2), scheme)


@ALL_BUT_ROUGH
@pytest.mark.parametrize("scheme", FORMS, ids=label)
def test_probabilities_of_every_form(kernels: str, scheme: QuantScheme) -> None:
    p = numerics.softmax(draw(2, 2, 17, 75, spread=2)).astype(np.float32) * np.float32(0.7)
    got = session(rows_model("probabilities", scheme), kernels=kernels).run(None, {"x": p})[0]
    x = numerics.relative(p, scheme)
    assert_rows_agree(got, x, numerics.quantize_probabilities(p, scheme), scheme)


@ALL_KERNELS
@pytest.mark.parametrize("scheme", FORMS, ids=label)
def test_attention_of_every_form(kernels: str, scheme: QuantScheme) -> None:
    check_attention(kernels, draw(3, 2, 3, 19, 24), draw(4, 2, 3, 70, 24), draw(5, 2, 3, 70, 24), scheme)


@ALL_BUT_ROUGH
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", ["row-log", "ji2021", "ji2021-linear-pruned"])
def test_every_number_of_bits(kernels: str, bits: int, name: str) -> None:
    scheme = preset(name, bits=bits)
    scores = draw(bits, 40, 90, spread=2)
    got = session(rows_model("softmax", scheme), kernels=kernels).run(None, {"x": scores})[0]
    x = numerics.relative(numerics.softmax(scores), scheme)
    # With 8 bits an edge is never far: compare value by value, and let one value move by one level.
    sure = ~numerics.near_edge(x, scheme)
    expected = numerics.quantize_scores(scores, scheme)
    assert sure.mean() > 0.95
    np.testing.assert_allclose(got[sure], expected[sure], rtol=2e-2 if not sure.all() else SUM_TOLERANCE, atol=1e-6)


LENGTHS = [*range(1, 36), *range(60, 70), 95, 96, 97, 126, 127, 128, 129, 130, 191, 192, 193, 255, 256, 257]
EVERY_LENGTH = [*range(1, 131), *(n + d for n in (192, 256, 384, 512) for d in (-1, 0, 1))]


@pytest.mark.slow
@ALL_KERNELS
def test_lengths_around_tiles(kernels: str) -> None:
    for length in LENGTHS:
        check_softmax(kernels, draw(length, 8, length), preset("row-log"))
        check_attention(
            kernels,
            draw(length, 1, length, 32),
            draw(length + 1, 1, length, 32),
            draw(length + 2, 1, length, 16),
            SCHEMES[0],
            scale=32**-0.5,
        )


@pytest.mark.slow
@ALL_KERNELS
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_every_length(kernels: str, scheme: QuantScheme) -> None:
    for length in EVERY_LENGTH:
        check_softmax(kernels, draw(length, 8, length), scheme)
        for queries in (1, 3, length):
            q, k, v = draw(length, 1, queries, 32), draw(length + 1, 1, length, 32), draw(length + 2, 1, length, 32)
            check_attention(kernels, q, k, v, scheme)


@pytest.mark.slow
@ALL_KERNELS
@pytest.mark.parametrize("queries", [1, 30])
def test_head_sizes(kernels: str, queries: int) -> None:
    for depth in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 80, 96, 100, 128, 160]:
        q, k, v = draw(depth, 1, queries, depth), draw(depth + 1, 1, 50, depth), draw(depth + 2, 1, 50, depth + 1)
        for scheme in (SCHEMES[0], preset("identity")):  # sparse and dense products with the values
            check_attention(kernels, q, k, v, scheme, scale=depth**-0.5)


@pytest.mark.slow
@ALL_KERNELS
@pytest.mark.parametrize("queries", [1, 5, 61])
def test_every_head_size(kernels: str, queries: int) -> None:
    for depth in range(1, 161):
        q, k, v = draw(depth, 1, queries, depth), draw(depth + 1, 1, 70, depth), draw(depth + 2, 1, 70, depth)
        for scheme in SCHEMES:
            check_attention(kernels, q, k, v, scheme, scale=depth**-0.5)


PADDING = np.where(np.arange(45) < 20, 0.0, -np.inf).astype(np.float32)
CAUSAL = np.where(np.arange(45)[None, :] <= np.arange(45)[:, None], 0.0, -np.inf).astype(np.float32)


@ALL_KERNELS
@pytest.mark.parametrize("floor", [-np.inf, -1e4, -1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("mask", [PADDING, CAUSAL, PADDING[None, None, None], CAUSAL[None]], ids=["p", "c", "p4", "c3"])
def test_masks(kernels: str, floor: float, mask: np.ndarray) -> None:
    mask = np.maximum(mask, np.float32(floor))
    q, k, v = draw(1, 2, 3, 45, 32), draw(2, 2, 3, 45, 32), draw(3, 2, 3, 45, 16)
    for scheme in (SCHEMES[0], SCHEMES[1], SCHEMES[4]):
        check_attention(kernels, q, k, v, scheme, mask, scale=32**-0.5)


@ALL_KERNELS
def test_a_mask_along_each_axis(kernels: str) -> None:
    q, k, v = draw(1, 2, 3, 45, 32), draw(2, 2, 3, 50, 32), draw(3, 2, 3, 50, 16)
    for shape in [
        (1,),
        (50,),
        (45, 1),
        (45, 50),
        (3, 1, 50),
        (2, 1, 1, 50),
        (2, 3, 45, 50),
        (1, 3, 1, 1),
        (1, 1, 45, 1),
    ]:
        check_attention(kernels, q, k, v, SCHEMES[0], draw(7, *shape, spread=3), scale=32**-0.5)


@ALL_KERNELS
@pytest.mark.parametrize("low", [-1e9, float(np.finfo(np.float32).min)])
def test_a_row_that_is_masked_throughout_by_a_finite_number(kernels: str, low: float) -> None:
    mask = CAUSAL.copy()
    mask[[0, 13]] = -np.inf
    mask = np.maximum(mask, np.float32(low))
    q, k, v = draw(1, 1, 45, 16), draw(2, 1, 45, 16), draw(3, 1, 45, 16)
    got = run_attention(attention_model(SCHEMES[0], rank=3), q, k, v, mask, kernels=kernels)
    # At -1e9 and below, float32 scores are all the same number: a flat row.
    np.testing.assert_allclose(got[0, [0, 13]], np.repeat(v[0].mean(0, keepdims=True), 2, 0), atol=1e-5)


@ALL_KERNELS
@pytest.mark.parametrize("kind", ["causal", "padding"])
def test_a_key_behind_a_low_number_counts_where_its_score_is_higher_still(kernels: str, kind: str) -> None:
    rows, columns = np.arange(64)[:, None], np.arange(64)[None, :]
    mask = np.where(columns <= rows if kind == "causal" else columns < 16, 0.0, -20100.0).astype(np.float32)
    direction = np.full(16, 0.25, np.float32)  # of length 1
    q = np.tile(500 * direction, (1, 64, 1))
    k = (np.arange(64, dtype=np.float32)[:, None] * direction)[None]  # scores 500 apart: one key has all
    v = draw(3, 1, 64, 16)
    scores = np.broadcast_to(500.0 * columns + mask, (64, 64))
    got = run_attention(attention_model(SCHEMES[0], scale=1.0, rank=3), q, k, v, mask, kernels=kernels)
    np.testing.assert_allclose(got[0], v[0, scores.argmax(axis=-1)], rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


@ALL_KERNELS
@pytest.mark.parametrize(("floor", "expected"), [(-np.inf, np.nan), (float(np.finfo(np.float32).min), 0.0)])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_a_row_of_minus_infinity(kernels: str, floor: float, expected: float, scheme: QuantScheme) -> None:
    mask = CAUSAL.copy()
    mask[[2, 13]] = -np.inf
    q, k, v = draw(1, 1, 45, 16), draw(2, 1, 45, 16), draw(3, 1, 45, 16)
    model = attention_model(scheme, rank=3, row_max_floor=floor)
    got = run_attention(model, q, k, v, mask, kernels=kernels)[0]
    np.testing.assert_array_equal(got[[2, 13]], np.full((2, 16), expected, np.float32))
    assert np.isfinite(np.delete(got, [2, 13], axis=0)).all()


@ALL_BUT_ROUGH
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_special_scores(kernels: str, scheme: QuantScheme) -> None:
    scores = draw(1, 8, 37)
    scores[0, 5] = np.nan
    scores[1, 36] = np.inf
    scores[2, :] = -np.inf
    scores[3, 1:] = -np.inf
    scores[4] = -3e38
    scores[5] = 1e-42
    scores[6] = 0.0
    scores[6, 9] = 300.0
    with np.errstate(all="ignore"):
        check_softmax(kernels, scores, scheme)


@ALL_BUT_ROUGH
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_special_probabilities(kernels: str, scheme: QuantScheme) -> None:
    p = numerics.softmax(draw(1, 6, 37)).astype(np.float32)
    p[0, 36] = np.nan
    p[5] = np.nan
    p[1] = 0.0
    p[2] = np.eye(37, dtype=np.float32)[3]
    p[3] = 1e-41
    got = session(rows_model("probabilities", scheme), kernels=kernels).run(None, {"x": p})[0]
    expected = numerics.quantize_probabilities(p, scheme)
    assert np.isnan(got[0]).all() or np.isnan(got[0, 36])
    assert np.isnan(got[5]).all()
    np.testing.assert_allclose(got[1:5], expected[1:5], rtol=SUM_TOLERANCE, atol=1e-6)


@ALL_KERNELS
def test_no_keys_no_queries_no_batch(kernels: str) -> None:
    model = attention_model(SCHEMES[0])
    empty = run_attention(model, draw(1, 2, 3, 5, 8), draw(1, 2, 3, 0, 8), draw(1, 2, 3, 0, 8), kernels=kernels)
    np.testing.assert_array_equal(empty, np.zeros((2, 3, 5, 8), np.float32))
    for shape in [(0, 3, 5, 8), (2, 3, 0, 8)]:
        got = run_attention(
            model, np.zeros(shape, np.float32), draw(1, *shape[:2], 4, 8), draw(1, *shape[:2], 4, 8), kernels=kernels
        )
        assert got.shape == shape


@ALL_KERNELS
def test_layouts_as_exports_have_them(kernels: str) -> None:
    q, k, v = draw(1, 2, 37, 3, 16), draw(2, 2, 55, 3, 16), draw(3, 2, 55, 3, 16)  # (B, L, H, D)
    expected = numerics.quantized_attention(*(np.swapaxes(t, 1, 2) for t in (q, k, v)), SCHEMES[0])
    perms = {"q_perm": [0, 2, 1, 3], "k_perm": [0, 2, 3, 1], "v_perm": [0, 2, 1, 3], "out_perm": [0, 2, 1, 3]}
    straight = run_attention(attention_model(SCHEMES[0], **perms), q, k, v, kernels=kernels)
    np.testing.assert_allclose(np.swapaxes(straight, 1, 2), expected, atol=0.02, rtol=0.02)
    # Keys and values transposed already, and a context that stays (B, H, L, D).
    kt, vt = (np.ascontiguousarray(t.transpose(0, 2, 3, 1)) for t in (k, v))
    perms = {"q_perm": [0, 2, 1, 3], "k_perm": [0, 1, 2, 3], "v_perm": [0, 1, 3, 2]}
    for rows in (37, 1):
        got = run_attention(attention_model(SCHEMES[0], **perms), q[:, :rows], kt, vt, kernels=kernels)
        np.testing.assert_allclose(np.swapaxes(got, 1, 2), straight[:, :rows], atol=1e-5, rtol=1e-5)


@ALL_KERNELS
@pytest.mark.parametrize("queries", [1, 2, 20])
def test_grouped_queries_read_shared_keys(kernels: str, queries: int) -> None:
    q, k, v = draw(1, 2, 3, 4, queries, 16), draw(2, 2, 3, 1, 33, 16), draw(3, 2, 3, 1, 33, 16)
    mask = draw(4, 2, 1, 1, queries, 33)
    shared = run_attention(attention_model(SCHEMES[0], rank=5), q, k, v, mask, kernels=kernels)
    copied = [np.ascontiguousarray(np.broadcast_to(t, (2, 3, 4, 33, 16))) for t in (k, v)]
    own = run_attention(attention_model(SCHEMES[0], rank=5), q, *copied, mask, kernels=kernels)
    np.testing.assert_allclose(shared, own, rtol=1e-5, atol=1e-5)


@ALL_KERNELS
def test_a_table_for_each_head(kernels: str) -> None:
    schemes = [preset("row-log", bits=bits, threshold=t) for bits, t in ((3, 0.01), (2, 0.03), (4, 0.001))]
    q, k, v = draw(1, 2, 3, 21, 16), draw(2, 2, 3, 33, 16), draw(3, 2, 3, 33, 16)
    got = run_attention(attention_model(*schemes), q, k, v, kernels=kernels)
    for head, scheme in enumerate(schemes):
        alone = run_attention(
            attention_model(scheme), *(np.ascontiguousarray(t[:, head : head + 1]) for t in (q, k, v)), kernels=kernels
        )
        np.testing.assert_array_equal(got[:, head : head + 1], alone)
    scores = draw(4, 2, 3, 5, 40)
    rows = session(rows_model("softmax", *schemes), kernels=kernels).run(None, {"x": scores})[0]
    for head, scheme in enumerate(schemes):
        alone = session(rows_model("softmax", scheme), kernels=kernels).run(None, {"x": scores[:, head]})[0]
        np.testing.assert_array_equal(rows[:, head], alone)


def set_offset(model: onnx.ModelProto, offset: Any) -> None:
    (attribute,) = [attribute for attribute in model.graph.node[0].attribute if attribute.name == "offset"]
    attribute.t.CopyFrom(tensor("offset", offset))


@ALL_KERNELS
@pytest.mark.parametrize("offset", [-0.6, -1.6, -4.0])
def test_a_head_whose_table_prunes_everything(kernels: str, offset: float) -> None:
    """Heads that share keys are rows of one matrix to the kernels, each with a table of its own."""
    q, k, v = draw(1, 1, 1, 2, 301, 64), draw(2, 1, 1, 1, 320, 64), draw(3, 1, 1, 1, 320, 16)
    model = attention_model(SCHEMES[0], SCHEMES[0], rank=5, scale=0.125)
    set_offset(model, [[[SCHEMES[0].offset]], [[offset]]])
    got = run_attention(model, q, k, v, kernels=kernels)
    first = run_attention(attention_model(SCHEMES[0], rank=5, scale=0.125), q, k, v, kernels=kernels)
    np.testing.assert_allclose(got[0, 0, 0], first[0, 0, 0], rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)
    np.testing.assert_array_equal(got[0, 0, 1], np.zeros((301, 16), np.float32))


@ALL_KERNELS
@pytest.mark.parametrize("scheme", MEANS, ids=lambda scheme: f"{scheme.bits}-{scheme.threshold}")
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 127), (30, 255), (30, 256), (5, 700), (120, 530), (1, 2100)])
def test_pruned_keys_share_what_they_sum_to(kernels: str, scheme: QuantScheme, queries: int, keys: int) -> None:
    """Lengths around those where the sample's stride doubles, and rows of one and of many keys for each register."""
    q, k, v = draw(1, 2, queries, 32, spread=2), draw(2, 2, keys, 32), draw(3, 2, keys, 17)
    check_attention(kernels, q, k, v, scheme, scale=32**-0.5)
    check_softmax(kernels, draw(4, 3, keys, spread=3), scheme)


@ALL_KERNELS
@pytest.mark.parametrize("scheme", MEANS, ids=lambda scheme: f"{scheme.bits}-{scheme.threshold}")
def test_a_key_at_the_lowest_edge_is_kept_or_counts_as_what_is_pruned_never_both(
    kernels: str, scheme: QuantScheme
) -> None:
    """Up to 40 roundings on either side of it: of attention, softmax and probabilities."""
    edge = np.float32(np.log(scheme.threshold))
    near = edge + np.arange(-40, 41, dtype=np.float32) * np.spacing(edge)
    scores = np.full((1, 81, 20), edge - 1, np.float32)
    scores[0, :, 0], scores[0, :, 7] = 0.0, near
    found = session(rows_model("softmax", scheme), kernels=kernels).run(None, {"x": scores})[0]
    assert check_rows(scores, found, scheme, is_scores=True).errors == 0
    eye = np.eye(20, dtype=np.float32)[None]
    found = run_attention(attention_model(scheme, scale=1.0, rank=3), scores, eye, eye, kernels=kernels)
    assert check_rows(scores, found, scheme, is_scores=True).errors == 0
    p = np.exp(scores.astype(np.float64)).astype(np.float32)
    found = session(rows_model("probabilities", scheme), kernels=kernels).run(None, {"x": p})[0]
    assert check_rows(p, found, scheme, is_scores=False).errors == 0


@ALL_KERNELS
@pytest.mark.parametrize("low", [-np.inf, -1e4, float(np.finfo(np.float32).min), -50.0])
@pytest.mark.parametrize("kind", ["causal", "right", "left", "window", "random", "odd", "changing", "no-sample"])
def test_masked_keys_share_nothing(kernels: str, kind: str, low: float) -> None:
    """-50 is no mask: what has it is pruned, and below all levels, but belongs to the sample."""
    rows, columns = np.arange(270)[:, None], np.arange(280)[None, :]
    seen = {
        "causal": columns <= rows,
        "right": columns < 200,
        "left": columns >= 37,
        "window": (columns <= rows) & (columns > rows - 40),
        "random": np.random.default_rng(5).random((270, 280)) < 0.5,
        "odd": (columns == rows) | (columns % 2 == 1),
        # One row after the other, the first keys, fewer of them, and any.
        "changing": np.where(
            rows % 3 == 0, columns <= rows, (columns < 275 - rows) ^ ((rows % 3 == 2) & (columns == 3))
        ),
        "no-sample": columns % 2 == 1,
    }[kind]
    mask = np.where(seen, 0.0, low).astype(np.float32)
    q, k, v = draw(1, 2, 270, 16, spread=2), draw(2, 2, 280, 16), draw(3, 2, 280, 16)
    if kind in ("right", "left", "no-sample") and low == -np.inf:
        v[:, ~np.broadcast_to(seen, (270, 280))[0]] = np.nan  # not read
    check_masked(kernels, q, k, v, mask)


def check_masked(kernels: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> None:
    scheme = preset("row-log-mean", bits=2, threshold=0.1)
    got = run_attention(attention_model(scheme, scale=0.25, rank=3), q, k, v, mask, kernels=kernels)
    scores = (q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2)) * 0.25 + mask
    x = numerics.relative_scores(scores)
    expected = numerics.quantize_scores(scores, scheme) @ np.nan_to_num(v)
    certain = ~(near_edge(x, scheme, SCORE_ERROR) | near_tail_edge(x, scheme, SCORE_ERROR))
    assert certain.mean() > 0.5
    assert_contexts(got[certain], expected[certain], v, share_moved(kernels, q, k, x, scheme, 0.25)[certain])


@ALL_KERNELS
@pytest.mark.parametrize("past_edge", [-2e-4, 2e-4], ids=["pruned", "kept"])
def test_a_second_look_tells_what_the_pruned_keys_sum_to(kernels: str, past_edge: float) -> None:
    """All that counts of the pruned is so near the lowest edge that rough scores cannot tell it from the kept."""
    scheme = preset("row-log-mean", bits=2, threshold=0.1)
    queries, keys = 270, 280
    scores = np.full(keys, -60.0)
    scores[0], scores[5:270:21] = 0.0, np.log(scheme.threshold) + past_edge
    q = np.zeros((1, queries, 16), np.float32)
    q[..., 0] = 1.0
    k = draw(1, 1, keys, 16, spread=4)
    k[..., 0] = scores
    v = draw(2, 1, keys, 16)
    got = run_attention(attention_model(scheme, scale=1.0, rank=3), q, k, v, 0.0, kernels=kernels)
    expected = numerics.quantized_attention(q, k, v, scheme, 0.0, 1.0)
    np.testing.assert_allclose(got, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


@ALL_KERNELS
def test_grouped_queries_share_over_a_long_cache(kernels: str) -> None:
    q, k, v = draw(1, 1, 2, 4, 1, 64, spread=2), draw(2, 1, 2, 1, 3000, 64), draw(3, 1, 2, 1, 3000, 64)
    check_attention(kernels, q, k, v, preset("row-log-mean", bits=2, threshold=0.1), scale=0.125)


@ALL_KERNELS
def test_int16_products_share_nearly_the_same(kernels: str) -> None:
    q, k, v = draw(1, 4, 128, 64), draw(2, 4, 200, 64), draw(3, 4, 200, 64)
    exact, short = (
        run_attention(
            attention_model(preset("row-log-mean", bits=2, threshold=0.1), rank=3, scale=0.125, qk=qk),
            q,
            k,
            v,
            kernels=kernels,
        )
        for qk in (0, 1)
    )
    assert (np.abs(exact - short) > 2e-3).mean() < 0.02


INT16_SCORE_ERROR = 2**-11
"""Error of a score from 16-bit products, relative to |q| |k| scale, for heads of up to 128."""


@ALL_KERNELS
def test_int16_products_stay_within_their_tolerance(kernels: str) -> None:
    q, k, v = draw(1, 4, 64, 64), draw(2, 4, 200, 64), draw(3, 4, 200, 64)
    scheme = preset("identity")  # without codes: what differs is the scores
    got = run_attention(attention_model(scheme, rank=3, scale=0.125, qk=1), q, k, v, kernels=kernels)
    expected = numerics.quantized_attention(q, k, v, scheme, scale=0.125)
    # A context moves by twice the error of a score, which changes weights and their sum, times the largest value.
    error = INT16_SCORE_ERROR * 0.125 * np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
    np.testing.assert_allclose(got, expected, atol=2 * error * np.abs(v).max(), rtol=0)


@ALL_KERNELS
def test_int16_products_flip_few_codes(kernels: str) -> None:
    q, k, v = draw(1, 4, 64, 64), draw(2, 4, 200, 64), draw(3, 4, 200, 64)
    exact = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, kernels=kernels)
    short = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125, qk=1), q, k, v, kernels=kernels)
    assert (np.abs(exact - short) > 1e-3).mean() < 0.02
    assert np.abs(exact - short).max() < 0.1


@ALL_KERNELS
@pytest.mark.parametrize(("queries", "keys"), [(1, 900), (40, 50)])
def test_int16_products_are_left_to_float32_where_rounding_does_not_pay(kernels: str, queries: int, keys: int) -> None:
    q, k, v = draw(1, 1, queries, 64), draw(2, 1, keys, 64), draw(3, 1, keys, 64)
    short = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125, qk=1), q, k, v, kernels=kernels)
    isa = kernels.removesuffix(" rough")
    exact = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, kernels=isa)
    np.testing.assert_array_equal(short, exact)


@ALL_KERNELS
@pytest.mark.parametrize("large", [1e20, np.inf])
def test_int16_products_leave_what_they_cannot_hold_to_float32(kernels: str, large: float) -> None:
    q, k, v = np.abs(draw(1, 1, 140, 64)), draw(2, 1, 150, 64), draw(3, 1, 150, 64)
    k[0, 3] = -large  # a score that is pruned, not NaN
    got = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125, qk=1), q, k, v, kernels=kernels)
    exact = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, kernels=kernels)
    assert np.isfinite(exact).all()
    assert (np.abs(exact - got) > 1e-3).mean() < 0.05


@ALL_KERNELS
@pytest.mark.parametrize("qk", [0, 1])
def test_a_query_with_nan_is_a_row_of_nan(kernels: str, qk: int) -> None:
    q, k, v = draw(1, 1, 300, 64), draw(2, 1, 320, 64), draw(3, 1, 320, 64)
    q[0, 5, 7] = np.nan
    got = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125, qk=qk), q, k, v, kernels=kernels)
    assert np.isnan(got[0, 5]).all()
    assert np.isfinite(np.delete(got[0], 5, axis=0)).all()


# Enough queries and keys for what kernels do only in long calls: packed keys, rough scores with a second look at some.
LONG = [(130, 130, 64), (100, 512, 40), (200, 600, 64), (131, 1100, 33)]


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize(("queries", "keys", "depth"), LONG)
@pytest.mark.parametrize("scheme", [*SCHEMES, preset("row-log", bits=1), preset("row-log", bits=8)], ids=label)
def test_long_calls(kernels: str, queries: int, keys: int, depth: int, scheme: QuantScheme) -> None:
    q, k, v = draw(1, 2, queries, depth, spread=2), draw(2, 2, keys, depth), draw(3, 2, keys, 24)
    check_attention(kernels, q, k, v, scheme, scale=depth**-0.5)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("threshold", [1e-6, 0.3])
@pytest.mark.parametrize("rounding", list(Rounding))
def test_long_calls_that_keep_most_or_little(kernels: str, threshold: float, rounding: Rounding) -> None:
    scheme = QuantScheme(Reference.ROW_MAX, Normalize.UNIT, threshold, 3, Spacing.LOG, rounding)
    for keys in (300, 900):
        q, k, v = draw(1, 2, 150, 64), draw(2, 2, keys, 64), draw(3, 2, keys, 64)
        check_attention(kernels, q, k, v, scheme, scale=64**-0.5)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("low", [-np.inf, pytest.param(float(np.finfo(np.float32).min), marks=pytest.mark.slow)])
def test_long_calls_with_masks(kernels: str, low: float) -> None:
    q, k, v = draw(1, 2, 700, 64, spread=2), draw(2, 2, 700, 64), draw(3, 2, 700, 16)
    causal = np.where(np.tri(700, dtype=bool), 0.0, low).astype(np.float32)
    padding = np.where(np.arange(700) < 531, 0.0, low).astype(np.float32)
    bias = draw(4, 700, 700)
    for mask in (causal, padding, bias):
        check_attention(kernels, q, k, v, SCHEMES[0], mask, scale=0.125)
    for scheme in SCHEMES[1:]:
        check_attention(kernels, q, k, v, scheme, padding, scale=0.125)


@ALL_KERNELS
def test_long_calls_with_keys_in_columns(kernels: str) -> None:
    q, k, v = draw(1, 2, 150, 64, spread=2), draw(2, 2, 600, 64), draw(3, 2, 600, 16)
    rows, columns = attention_model(SCHEMES[0], rank=3), attention_model(SCHEMES[0], rank=3, k_perm=[0, 1, 2])
    got = run_attention(columns, q, np.ascontiguousarray(np.swapaxes(k, 1, 2)), v, kernels=kernels)
    expected = run_attention(rows, q, k, v, kernels=kernels)
    np.testing.assert_allclose(got, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("low", [-np.inf, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("distinct", [1, 5])
def test_long_calls_with_the_same_keys_again_and_again(kernels: str, distinct: int, low: float) -> None:
    """Any of them may be the maximum."""
    q, v = draw(1, 2, 550, 64), draw(3, 2, 550, 16)
    k = np.resize(draw(2, distinct, 64), (2, 550, 64))
    q[1, 40:90] = 0.0
    mask = np.where(np.tri(550, dtype=bool), 0.0, low).astype(np.float32)
    mask[:, 540:] = -np.inf
    for rows in (mask, mask[500]):
        check_attention(kernels, q, k, v, SCHEMES[0], rows, scale=0.125)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("masked", [False, True])
def test_long_calls_with_half_the_keys_at_an_edge(kernels: str, masked: bool) -> None:
    """So many doubtful scores are not computed again one by one."""
    q, v = np.tile(draw(1, 1, 64), (1, 300, 1)), draw(3, 1, 640, 16)
    k = np.tile(draw(2, 1, 64), (1, 640, 1))
    down = q[0, 0] / np.linalg.norm(q[0, 0]) ** 2  # lowers a score by 1
    k[0, ::2] -= down * np.float32((SCHEMES[0].offset - 2) * SCHEMES[0].step / 0.125)
    mask = np.where(np.tri(300, 640, 340, dtype=bool), 0.0, -np.inf if masked else 0.0).astype(np.float32)
    got = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, mask, kernels=kernels)[0]
    at_edge = np.arange(640) % 2 == 0
    either = []
    for position in (SCHEMES[0].offset - 2 - 1e-3, SCHEMES[0].offset - 2 + 1e-3):
        scores = np.where(at_edge, -position * SCHEMES[0].step, 0.0) + mask
        either.append(np.abs(numerics.quantize_scores(scores, SCHEMES[0]) @ v[0] - got).max(axis=-1))
    assert np.abs(either[0] - either[1]).min() > 1e-3
    np.testing.assert_allclose(np.minimum(*either), 0.0, atol=SUM_TOLERANCE)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("outlier", [1e3, 1e20, np.inf, np.nan])
def test_long_calls_with_an_outlier(kernels: str, outlier: float) -> None:
    """What is rough in the scores grows with the largest key, which most rows have nothing to do with."""
    q, k, v = np.abs(draw(1, 2, 150, 64)), draw(2, 2, 600, 64), draw(3, 2, 600, 16)
    k[0, 70], k[1, 300, 5] = -outlier, outlier
    q[1, :, 5] = -1e-3 * np.abs(q[1, :, 5])
    q[:, 33] = 0.0
    with np.errstate(invalid="ignore"):
        check_attention(kernels, q, k, v, SCHEMES[0], scale=0.125)


@ALL_KERNELS
def test_long_calls_with_large_numbers_that_cancel(kernels: str) -> None:
    """Added one by one they leave the right score; in another order, nothing of it: such rows get no second look."""
    q, k, v = draw(1, 1, 256, 32, spread=0.3), draw(2, 1, 640, 32), draw(3, 1, 640, 16)
    number = np.arange(640)
    q[..., [0, 1, 16, 18]] = 0.0
    q[:, 32:48] = 0.0
    q[:, 32:48, [0, 1, 16, 18, 19]] = [2.0**83, -(2.0**83), 2.0**59, -(2.0**59), 1.0]
    k[..., [0, 1]] = 1.0
    k[..., 16] = k[..., 18] = number % 7 + 1
    k[..., 19] = np.where(number % 5 == 0, 0.0, -(number % 4 + 0.5001) * SCHEMES[0].step)  # near edges
    got = run_attention(attention_model(SCHEMES[0], rank=3), q, k, v, kernels=kernels)
    expected = run_attention(attention_model(SCHEMES[0], rank=3), q, k, v, kernels="scalar")
    np.testing.assert_allclose(got[:, 32:48], expected[:, 32:48], rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


@ALL_KERNELS_OF_LONG_CALLS
@pytest.mark.parametrize("floor", [5.0, 8.0, 10.0])
def test_long_calls_whose_floor_is_above_many_maxima(kernels: str, floor: float) -> None:
    q, k, v = draw(1, 1, 256, 64, spread=2), draw(2, 1, 640, 64), draw(3, 1, 640, 16)
    model = attention_model(SCHEMES[0], rank=3, scale=0.125, row_max_floor=floor)
    got = run_attention(model, q, k, v, kernels=kernels)
    expected = run_attention(model, q, k, v, kernels="scalar")
    differs = np.abs(got - expected).max(axis=-1) > SUM_TOLERANCE
    assert differs.mean() <= EDGE_SHARE * 2


@ALL_KERNELS
@pytest.mark.parametrize("threshold", [1e-9, 1e-30])
def test_long_rows_of_keys_at_an_edge_far_below_the_floor(kernels: str, threshold: float) -> None:
    """All that such a row keeps may fall by one code, to next to nothing of what its weights added up to."""
    scheme = preset("row-log", bits=2, threshold=threshold)
    highest_edge = -0.5 * scheme.step
    q, k, v = 0.1 * draw(1, 1, 300, 32), 0.1 * draw(2, 1, 512, 32), draw(3, 1, 512, 16)
    q[..., 0] = highest_edge * (1 + 2e-7 * (np.arange(300) % 41 - 20))
    k[..., 0] = 8.0
    k[:, ::40] = np.eye(32)[0]
    got = run_attention(attention_model(scheme, rank=3, row_max_floor=0.0), q, k, v, kernels=kernels)
    expected = np.broadcast_to(v[:, ::40].mean(axis=1, keepdims=True), got.shape)
    np.testing.assert_allclose(got, expected, rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)


@ALL_KERNELS
@pytest.mark.parametrize("offset", [0.4, 1.0, 2.0, 2.3, 5.99, 6.5])
def test_tables_whose_maximum_is_anywhere(kernels: str, offset: float) -> None:
    model = attention_model(SCHEMES[0], rank=3, scale=0.125)
    set_offset(model, [offset])
    q, k, v = draw(1, 1, 300, 64), draw(2, 1, 640, 64), draw(3, 1, 640, 16)
    k[:, 100:500] = k[:, :1]
    q[:, 30:60] = 0.0
    got, expected = (run_attention(model, q, k, v, kernels=name) for name in (kernels, "scalar"))
    # Where the maximum is at an edge, its code is left to rounding.
    differs = np.abs(got - expected).max(axis=-1) > SUM_TOLERANCE
    assert differs.mean() <= (0.02 if offset % 1 else 1.0)
    assert np.isfinite(got).all()


@ALL_KERNELS
@pytest.mark.parametrize("low", [-1e9, -1e5])
def test_long_rows_that_a_finite_number_masks_throughout(kernels: str, low: float) -> None:
    """Their scores are rounded so coarsely that many are the same; only one rounding of all is right."""
    q, k, v = draw(1, 1, 150, 64), draw(2, 1, 640, 64), draw(3, 1, 640, 16)
    mask = np.full(640, low, np.float32)
    got = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, mask, kernels=kernels)
    scores = (q @ np.swapaxes(k, -1, -2) * np.float32(0.125) + mask).astype(np.float64)
    expected = numerics.quantize_scores(scores, SCHEMES[0]) @ v
    # At -1e5 a score is rounded to 1/128, of which a float32 sum in another order may take the next.
    differs = np.abs(got - expected).max(axis=-1) > SUM_TOLERANCE
    assert differs.mean() <= (0.0 if low == -1e9 else 0.5)
    np.testing.assert_allclose(got, expected, atol=0.05)


@ALL_KERNELS
def test_nan_behind_a_mask_does_not_spread_from_rows_that_keep_much_to_others(kernels: str) -> None:
    q, k, v = draw(1, 1, 256, 64, spread=2), draw(2, 1, 640, 64), draw(3, 1, 640, 16)
    q[:, ::16] *= 0.01
    v[:, 600:] = np.nan
    mask = np.where(np.arange(640) < 600, 0.0, -np.inf).astype(np.float32)
    got = run_attention(attention_model(SCHEMES[0], rank=3, scale=0.125), q, k, v, mask, kernels=kernels)
    assert np.isfinite(got).all()


@ALL_KERNELS
def test_a_long_call_gives_the_codes_of_numerics(kernels: str) -> None:
    """The values are one-hot, so that the context is the probabilities: every code is seen."""
    q, k = draw(1, 1, 256, 64, spread=3), draw(2, 1, 640, 64)
    v = np.eye(640, dtype=np.float32)[None]
    scheme = SCHEMES[0]
    got = run_attention(attention_model(scheme, rank=3, scale=0.125), q, k, v, kernels=kernels)
    scores = (q.astype(np.float64) @ np.swapaxes(k.astype(np.float64), -1, -2)) * 0.125
    expected = numerics.quantize_scores(scores, scheme)
    x = numerics.relative(numerics.softmax(scores), scheme)
    near = numerics.near_edge(x, scheme, SCORE_ERROR)
    assert near.mean() < EDGE_SHARE
    certain = ~near.any(axis=-1)
    np.testing.assert_allclose(got[certain], expected[certain], rtol=SUM_TOLERANCE, atol=SUM_TOLERANCE)
    np.testing.assert_array_equal(got[~near] == 0, expected[~near] == 0)


@ALL_KERNELS
def test_rough_scores_are_looked_at_again_as_far_as_they_can_be_off(kernels: str) -> None:
    """Equal numbers in each query and key: all are rounded the same way, so scores are off by the whole bound.

    At 45 numbers of one size the 16-bit integers are .49 too large. Two keys on both sides of 0 then seem further from
    each other than they are, by twice the bound; each key lies less than half of this on the near side of an edge.
    """
    depth, scheme = 45, SCHEMES[0]
    off = 0.494 * np.sqrt(depth) / (46290 - np.sqrt(depth))  # of a score, relative: of a query, and again of a key
    edge = (scheme.offset - np.arange(scheme.levels)[None, :]) * scheme.step  # nats below the maximum
    highest = edge.max() / 2  # so that the lowest edge is as far below 0
    beyond = np.linspace(0.05, 0.4, 3)[:, None] * 2 * off * edge
    # Most keys are in the middle of a code: with more than one in 16 in doubt, all scores would be computed again.
    settled = np.full(32 * beyond.size, highest - edge.min() - scheme.step / 2)
    scores = np.concatenate([[highest], (highest - edge + beyond).ravel(), settled])
    k = np.tile((scores / depth).astype(np.float32)[:, None], (1, 1, depth))
    q, v = np.ones((1, 300, depth), np.float32), np.eye(scores.size, dtype=np.float32)[None]
    got = run_attention(attention_model(scheme, rank=3), q, k, v, kernels=kernels)
    expected = numerics.quantize_scores(q[0, :1].astype(np.float64) @ k[0].T.astype(np.float64), scheme)
    np.testing.assert_allclose(got[0], np.broadcast_to(expected, got[0].shape), rtol=SUM_TOLERANCE, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_attention_of_any_shape(data: st.DataObject) -> None:
    kernels = data.draw(st.sampled_from(available_kernels()))
    scheme = data.draw(st.sampled_from(FORMS))
    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    queries, keys = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 150))
    depth, value_depth = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    seed = data.draw(st.integers(0, 1000))
    q = draw(seed, *batch, queries, depth)
    k, v = draw(seed + 1, *batch, keys, depth), draw(seed + 2, *batch, keys, value_depth)
    check_attention(kernels, q, k, v, scheme, draw(seed + 3, queries, keys), scale=depth**-0.5)


@ALL_KERNELS
@pytest.mark.parametrize("depth", [24, 33, 64, 500])
def test_queries_along_their_keys(kernels: str, depth: int) -> None:
    """Products are as large as norms allow, so sums of rounded ones come as near as they can to 32 bits."""
    direction = draw(1, depth)
    direction /= np.linalg.norm(direction)
    q = np.linspace(0.5, 2, 260, dtype=np.float32)[:, None] * direction
    k = np.linspace(-4, 4, 280, dtype=np.float32)[:, None] * direction
    check_attention(kernels, q[None], k[None], draw(2, 1, 280, 16), SCHEMES[0])
    check_attention(kernels, np.sign(q)[None], k[None], draw(2, 1, 280, 16), SCHEMES[0], scale=depth**-0.5)


@ALL_KERNELS
@pytest.mark.parametrize("rest", [0.0, 1e-30, 0.01, 0.3])
def test_vectors_of_one_large_number(kernels: str, rest: float) -> None:
    q, k, v = rest * draw(1, 1, 260, 64), rest * draw(2, 1, 280, 64), draw(3, 1, 280, 16)
    q[0, np.arange(260), np.arange(260) % 7] += 3
    k[0, np.arange(280), np.arange(280) % 11] += np.linspace(-2, 2, 280, dtype=np.float32)
    k[0, 7] = 0
    check_attention(kernels, q, k, v, SCHEMES[0])
    check_attention(kernels, q, q, v[:, :260], SCHEMES[0], scale=0.5)


@ALL_KERNELS
def test_scores_as_far_off_as_their_bound_allows(kernels: str) -> None:
    """Rough scores are computed again where rounding moves them over an edge: with half the bound some would not be.

    What 16 bits leave out of a key is nearly parallel to the query, up in the key of the row's maximum and down in the
    others, each of which lies just beyond an edge.
    """
    scheme, norm = preset("row-log"), 46290 - 64**0.5  # of rounded vectors, rounded_products.h
    scores = np.append(30.0, 30.0 + np.log(numerics.edges(scheme)) - 2e-4)

    def multiples(each: float) -> np.ndarray:
        """Of a step, all but the last of which leave out the same."""
        return np.append(np.full(63, each), (norm**2 - 63 * each**2) ** 0.5)

    query = multiples(5600.0) / norm
    directions = [multiples(5600.49), *[multiples(5600.51)] * scheme.levels]
    keys = np.array([d * s / (d @ query) for d, s in zip(directions, scores, strict=True)])
    pruned = multiples(5600.0) * (24.0 / (multiples(5600.0) @ query))  # few are kept, as where rough scores pay
    keys = np.concatenate([keys, np.broadcast_to(pruned, (292, 64))])
    q, k = (np.float32(np.broadcast_to(a, (1, *shape))) for a, shape in ((query, (128, 64)), (keys, keys.shape)))
    eye = np.eye(len(keys), dtype=np.float32)[None]
    got = run_attention(attention_model(scheme, scale=1.0, rank=3), q, k, eye, 0.0, kernels=kernels)
    expected = numerics.quantized_attention(q, k, eye, scheme)
    assert (numerics.codes(numerics.relative_scores(q @ k.swapaxes(1, 2)), scheme)[0, 0, 1:8] == np.arange(7)).all()
    np.testing.assert_allclose(got, expected, rtol=1e-4)
