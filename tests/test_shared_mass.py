"""Pruned values that share what they summed to: bodies of every family, long rows, masks, and what verification catches."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from attention_forms import FORMS
from executions import inlined, one_op_model, require_opset, run_feeds, run_onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import parse

from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.rewriting import RewriteSettings, bodies, rewrite, uniform_plan
from onnx_attnq.scheme import Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing, numerics, preset
from onnx_attnq.verification import verify
from onnx_attnq.verification.codes import LEVEL_TOLERANCE, SHARE_TOLERANCE, check_rows

SHARED = preset("row-log-mean", bits=2, threshold=0.1)
FAMILIES = [
    *itertools.product(Reference, (Normalize.NONE, Normalize.UNIT), [Spacing.LOG], Rounding),
    *itertools.product(Reference, (Normalize.NONE, Normalize.UNIT), [None], [None]),
]
LOWEST = float(np.finfo(np.float32).min)


def masked_scores(keys: int, seed: int, spread: float = 3.0) -> np.ndarray:
    """Rows without a mask, causal, padded left, masked by half, with an empty sample, and with one key."""
    scores = np.random.default_rng(seed).normal(0.0, spread, (6, keys)).astype(np.float32)
    scores[1, keys // 2 + 1 :] = -np.inf
    scores[2, : keys // 3 + 1] = LOWEST
    scores[3, ::2] = -10_000.0
    scores[4, np.arange(keys) % max(2, numerics.sample_stride(keys)) == 0] = -np.inf
    scores[5, 1:] = -np.inf
    return scores


@pytest.mark.parametrize("opset", [12, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (17, 19)), 24])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join(str(v) for v in f))
def test_every_family_of_every_length(
    family: tuple[Reference, Normalize, Spacing | None, Rounding | None], opset: int
) -> None:
    require_opset(opset)
    reference, normalize, spacing, rounding = family
    bits = None if spacing is None else 2
    scheme = QuantScheme(reference, normalize, 0.1, bits, spacing, rounding, Pruned.MEAN)
    for kind, keys in itertools.product(("softmax", "probabilities"), (7, 255, 256, 600)):
        x = masked_scores(keys, seed=opset)
        if kind == "probabilities":
            x = numerics.softmax(x).astype(np.float32)
        model = ir.to_proto(one_op_model(kind, scheme, opset, rank=2))
        onnx.checker.check_model(model, full_check=True)
        with np.errstate(all="ignore"):
            (reference_result,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
        for y in (run_onnxruntime(model, x), run_onnxruntime(inlined(model), x, optimize=False), reference_result):
            check = check_rows(x, y, scheme, is_scores=kind == "softmax")
            assert check.passed, (kind, keys, check)


@pytest.mark.parametrize("opset", [12, 17, 19, 24])
@pytest.mark.parametrize("keys", [8, 255, 256, 1100])
def test_attention_of_long_rows_under_masks(keys: int, opset: int) -> None:
    require_opset(opset)
    random = np.random.default_rng(keys)
    q, k, v = (random.normal(0.0, 1.5, shape).astype(np.float32) for shape in ((6, 8), (8, keys), (keys, 5)))
    mask = np.where(np.abs(masked_scores(keys, 0)) > 9_000.0, masked_scores(keys, 0), np.float32(0.0))
    shape = [ir.Shape([f"d{i}", f"e{i}"]) for i in range(4)]
    names = ("q", "k", "v", "mask")
    inputs = [
        ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=s) for n, s in zip(names, shape, strict=True)
    ]
    body = bodies.attention_function(SHARED, opset)
    layout = bodies.attention_attributes(0.5, (0, 1), (0, 1), (0, 1), (0, 1), zeroes_masked_rows=False)
    node = ir.Node(bodies.DOMAIN, body.name, inputs, [*bodies.scheme_attributes(SHARED), *layout], name="site")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, bodies.DOMAIN: 1}, name="g")
    model = ir.to_proto(ir.Model(graph, ir_version=8, functions=[body]))
    feeds = dict(zip(names, (q, k, v, mask), strict=True))
    expected = numerics.quantized_attention(q, k.T, v, SHARED, mask, scale=0.5)
    with np.errstate(all="ignore"):
        (by_reference,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    for y in (run_feeds(model, feeds), run_feeds(inlined(model), feeds, optimize=False), by_reference):
        # One flipped code moves a whole row; with these seeds there is none.
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 4), st.floats(1e-3, 0.2), st.integers(0, 2**32 - 1), st.floats(0.1, 20.0))
def test_any_length_bits_and_threshold(keys: int, bits: int, threshold: float, seed: int, spread: float) -> None:
    scheme = preset("row-log-mean", bits=bits, threshold=threshold)
    x = masked_scores(keys, seed, spread)
    x = x[~np.isneginf(x).all(axis=-1)]
    y = run_onnxruntime(ir.to_proto(one_op_model("softmax", scheme, 17, rank=2)), x)
    assert check_rows(x, y, scheme, is_scores=True).passed


@pytest.mark.parametrize("keys", [200, 600])
def test_openvino_takes_the_inlined_rows(keys: int) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    x = masked_scores(keys, seed=3)
    core, model = openvino.Core(), inlined(ir.to_proto(one_op_model("softmax", SHARED, 17, rank=2)))
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert check_rows(x, compiled([x])[0], SHARED, is_scores=True).passed


def wrong(scheme: QuantScheme, scores: np.ndarray, case: str) -> np.ndarray:
    """What an execution with a mistake would give."""
    x = numerics.relative_scores(scores)
    share, level = numerics.shares(x, scheme), numerics.values(x, scheme)
    pruned = (level == 0.0) & (share > 0.0)
    match case:
        case "right":
            pass
        case "share a little too large":
            share *= 1.0 + 20.0 * SHARE_TOLERANCE * (level.sum(-1) / share.sum(-1))[:, None]
        case "one key has another share":
            share[0, np.argmax(pruned[0])] *= 1.0 + 10.0 * LEVEL_TOLERANCE
        case "no share on kept keys":
            share = np.where(level > 0.0, 0.0, share)
        case "one sampled key is left out":
            share[0, np.argmax(pruned[0])] = 0.0
        case "sample starts at 1":
            share = np.roll(share, 1, axis=-1)
        case "twice the stride":
            share[:, 1::2] = 0.0
            share *= 2.0
        case "all pruned keys":
            share = np.where(level > 0.0, 0.0, share.sum(-1, keepdims=True) / (level == 0.0).sum(-1, keepdims=True))
        case "exact exponentials":
            share *= (np.where(level == 0.0, x, 0.0).sum(-1) / share.sum(-1))[:, None]
        case "tail cut at 4 nats":
            share *= (np.where((level == 0.0) & (x > np.exp(-4.0)), x, 0.0).sum(-1) / share.sum(-1))[:, None]
        case "zero":
            share[:] = 0.0
    row = level + share
    return np.asarray(row / row.sum(-1, keepdims=True))


CASES = (
    "share a little too large",
    "one key has another share",
    "no share on kept keys",
    "one sampled key is left out",
    "sample starts at 1",
    "twice the stride",
    "all pruned keys",
    "exact exponentials",
    "tail cut at 4 nats",
    "zero",
)


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_share_is_caught(case: str) -> None:
    scores = np.random.default_rng(1).normal(0.0, 2.0, (4, 300))
    assert check_rows(scores, wrong(SHARED, scores, "right"), SHARED, is_scores=True).passed
    assert not check_rows(scores, wrong(SHARED, scores, case), SHARED, is_scores=True).passed


def test_pruned_keys_count_as_pruned_whether_they_have_a_share_or_not() -> None:
    scores = np.random.default_rng(1).normal(0.0, 2.0, (4, 300))
    zero = dataclasses.replace(SHARED, pruned=Pruned.ZERO)
    found = [check_rows(scores, numerics.quantize_scores(scores, s), s, is_scores=True).pruned for s in (zero, SHARED)]
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("form", ["plain", "float16", "guard of fully masked rows", "Einsum"])
def test_rewritten_models_verify(form: str, inline: bool) -> None:
    original = parse(FORMS[form].text, inferred=True)
    model = original.clone()
    sites = find_sites(expose(model))
    plan = uniform_plan(sites.exposed.structure_hash, [site.id for site in sites.sites], SHARED)
    rewrite(model, sites, plan, RewriteSettings(inline=inline))
    found = verify(original, model, generate_samples(original, 2, 0))
    assert found.passed, found.failures


@pytest.mark.parametrize(("extra", "passes"), [(0, True), (1, True), (2, False)])
def test_a_pruned_key_at_the_lowest_edge_may_have_the_level_on_either_side(extra: int, passes: bool) -> None:
    """The native kernels prune it by its distance, and find its level by its code, which float32 may round up."""
    scheme = preset("row-log-mean")
    x = np.array([[1.0, 0.5, scheme.threshold * (1 - 2e-7), 0.02]])
    codes, levels = numerics.codes(x, scheme), np.append(0.0, numerics.levels(scheme))
    assert codes[0, 2] == 0
    tail = numerics.continued_levels(x, scheme)
    tail[0, 2] = (tail[0, 2], levels[1], levels[2])[extra]
    tail = np.where(codes == 0, tail, 0.0).sum()
    kept = np.where(codes > 0, levels[codes], 0.0)
    result = (kept + tail / 4) / (kept.sum() + tail)
    assert (check_rows(np.log(x), result, scheme, is_scores=True).errors == 0) == passes


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.5, True), (2.0, False)])
def test_the_share_of_a_row_whose_sample_is_all_kept(off: float, passes: bool) -> None:
    """No key tells what the share is: it may be off by the tolerance of the sum, and codes are read all the same."""
    scores = np.random.default_rng(0).uniform(-1.0, 1.0, (1, 4096))
    scores[0, 1::500] = -4.0
    result = numerics.quantize_scores(scores, SHARED)
    sample = np.arange(4096) % numerics.sample_stride(4096) == 0
    assert (result[0, 1::500] == 0.0).all()
    assert (result[:, sample] > 0.0).all()
    result[:, sample] += off * SHARE_TOLERANCE / sample.sum()
    assert (check_rows(scores, result, SHARED, is_scores=True).errors == 0) == passes
    result[0, 32] *= 1.7  # the next level
    assert check_rows(scores, result, SHARED, is_scores=True).errors > 0


def test_kept_values_below_the_error_of_the_share_are_kept() -> None:
    """With a threshold of next to nothing every key is kept, however small; the share, 0, may be off by more."""
    scores = np.array([[-19.55, -5.24, 49.91, 19.77, -49.24]])
    scheme = QuantScheme(Reference.ROW_MAX, Normalize.NONE, 1.5e-45, None, None, None, Pruned.MEAN)
    values = numerics.relative_scores(scores) * 1.000001
    assert check_rows(scores, values, scheme, is_scores=True).errors == 0
