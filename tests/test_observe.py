"""Observing small models in onnxruntime against numpy on their raw probabilities."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from observed_models import attention, encoder, tokens
from onnx.reference import ReferenceEvaluator

from onnx_attnq.errors import InvalidData, NothingToRewrite
from onnx_attnq.find import find_sites
from onnx_attnq.progress import no_progress
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import preset
from onnx_attnq.study import EDGES, SiteStats, StudySettings
from onnx_attnq.study.mergeable_arrays import array_fields
from onnx_attnq.study.observation import EXAMPLE_TOKENS, Source, observe
from onnx_attnq.study.probability_statistics import measure

SCHEMES = (preset(), preset("ji2021"), preset(bits=2))
SOURCE = Source("model.onnx", "00" * 32, "random tokens")

FLOAT32 = 1e-4  # relative: sums of float32 probabilities that two executions rounded differently


def study_of(model, samples, schemes=SCHEMES, *, memory=2**20, progress=no_progress, **options):
    settings, run = StudySettings(tuple(schemes), **options), RunSettings(1, memory=memory)
    return observe(model, find_sites(model).sites, samples, SOURCE, settings=settings, run=run, progress=progress)


def raw(model, sample, names, execution):
    """Values inside of a model, by another way than the code under test: its proto gets them as outputs."""
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    if execution == "reference":
        return ReferenceEvaluator(proto).run(names, sample)
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    optimize = execution == "onnxruntime"
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, sample)


def assert_close(a: SiteStats, b: SiteStats, moved=2):
    """Equal up to float32 rounding; at most ``moved`` values per head may be in the next bin or code."""
    for ours, theirs in [(a, b), *zip(a.schemes, b.schemes, strict=True)]:
        for name, value in array_fields(ours).items():
            other = getattr(theirs, name)
            if name in ("values", "rows", "nan_rows", "self_rows", "separator_rows", "head_rows"):
                np.testing.assert_array_equal(value, other, err_msg=name)
            elif value.dtype.kind == "i":
                assert np.abs(value - other).sum() <= 2 * moved * value.shape[0], name
            elif name not in ("mass", "relative_mass"):  # a value in the next bin takes its mass along
                np.testing.assert_allclose(value, other, rtol=FLOAT32, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("execution", ["onnxruntime", "onnxruntime unoptimized", "reference"])
@pytest.mark.parametrize("causal", [False, True])
def test_statistics_are_those_of_the_raw_probabilities(execution, causal):
    model = encoder(causal=causal)
    samples = [tokens([5, 9, 7], seed=1), tokens([12], seed=2)]
    study = study_of(model, samples, separator_ids=[2])
    assert [site.site for site in study.sites] == ["p0", "p1"]
    for layer, site in enumerate(study.sites):
        parts = []
        for sample in samples:
            p, v = raw(model, sample, [f"p{layer}", f"vh{layer}"], execution)
            here = sample["attention_mask"].astype(bool)
            valid = here[:, None, :, None] & here[:, None, None, :]
            if causal:
                valid = valid & np.tri(here.shape[1], dtype=bool)
            parts.append(measure(site.site, p, valid, SCHEMES, value=v, separators=sample["input_ids"] == 2))
        assert_close(site, functools.reduce(SiteStats.merge, parts))


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal):
    model = encoder(causal=causal)
    padded = study_of(model, [tokens([5, 9, 7], pad_to=16)], separator_ids=[2])
    together = tokens([5, 9, 7])
    alone = [
        {name: array[row : row + 1, :length] for name, array in together.items()}
        for row, length in enumerate([5, 9, 7])
    ]
    separate = study_of(model, alone, separator_ids=[2])
    for a, b in zip(padded.sites, separate.sites, strict=True):
        assert_close(a, b)
    assert padded.tokens == separate.tokens == 5 + 9 + 7


def test_causally_masked_positions_are_left_out():
    (site, _) = study_of(encoder(causal=True), [tokens([6])]).sites
    assert site.values.tolist() == [21] * 3


def test_a_sharp_head_keeps_the_values_that_underflow():
    # Scores far apart leave zeros in float32, but not in all heads at one position as a mask does.
    model = encoder(layers=1)
    weight = model.graph.initializers["wq0"]
    sharp = weight.const_value.numpy().copy()
    sharp[:, :4] *= 50.0
    weight.const_value = ir.tensor(sharp, name="wq0")
    (site,) = study_of(model, [tokens([40])]).sites
    assert site.minimum[0] == 0.0
    assert site.values.tolist() == [1600] * 3


@pytest.mark.parametrize(("memory", "runs"), [(1, 8), (3000, 8), (2**30, 4)])
def test_the_memory_budget_does_not_change_the_result(memory, runs):
    model, samples = encoder(layers=4), [tokens([6, 8]), tokens([3])]
    steps = []
    study = study_of(model, samples, memory=memory, progress=lambda _, *step: steps.append(step))
    whole = study_of(model, samples)
    for a, b in zip(study.sites, whole.sites, strict=True):
        assert_close(a, b)
    assert steps == sorted(steps)
    assert steps[-1] == (runs, runs)  # the first site shows how many fit into one run


def test_the_model_is_not_changed():
    model = encoder()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    study_of(model, [tokens([4])])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_example_has_the_tokens_of_the_first_sample():
    labels = {2: "[SEP]"}
    study = study_of(encoder(), [tokens([5], pad_to=8), tokens([9])], labels=labels)
    assert len(study.example.tokens) == 5
    assert study.example.tokens[-1] == "[SEP]"
    for maps in study.example.maps.values():
        assert maps.shape == (3, 5, 5)
        np.testing.assert_allclose(maps.sum(axis=-1), 1.0, rtol=1e-6)


def test_a_long_example_is_cut():
    study = study_of(encoder(layers=1), [tokens([EXAMPLE_TOKENS + 9])])
    assert study.example.maps["p0"].shape == (3, EXAMPLE_TOKENS, EXAMPLE_TOKENS)


# Layouts that exporters produce, each with its inputs and V as (B, H, L_k, D). B = 2, H = 3, L = 5, D = 4.

QKV = "float[2,3,5,4] q, float[2,3,4,5] k, float[2,3,5,4] v"
LAYOUTS = {
    "plain": ("s = MatMul(q, k) p = Softmax(s) context = MatMul(p, v)", QKV, lambda v: v),
    "three axes": (
        "s = MatMul(q, k) p = Softmax(s) context = MatMul(p, v)",
        "float[6,5,4] q, float[6,4,5] k, float[6,5,4] v",
        lambda v: v.reshape(2, 3, 5, 4),
    ),
    "V on the left": (
        "s = MatMul(k, q) p = Softmax<axis = -2>(s) context = MatMul(v, p)",
        "float[2,3,4,5] q, float[2,3,5,4] k, float[2,3,4,5] v",
        lambda v: v.swapaxes(-1, -2),
    ),
    "grouped queries": (
        "s = MatMul(q, k) p = Softmax(s) context = MatMul(p, v)",
        "float[2,3,2,5,4] q, float[2,3,1,4,5] k, float[2,3,1,5,4] v",
        lambda v: v.repeat(2, axis=2).reshape(2, 6, 5, 4),
    ),
    "one value head": (
        "s = MatMul(q, k) p = Softmax(s) context = MatMul(p, v)",
        "float[2,3,5,4] q, float[2,1,4,5] k, float[2,1,5,4] v",
        lambda v: v.repeat(3, axis=1),
    ),
    "probabilities reshaped before the product": (
        "s = MatMul(q, k) p = Softmax(s) flat = Reshape(p, six) context = MatMul(flat, v)",
        "float[2,3,5,4] q, float[2,3,4,5] k, float[6,5,4] v",
        lambda v: v.reshape(2, 3, 5, 4),
    ),
    "Einsum of grouped queries": (
        'qk = MatMul(q, k) p = Softmax(qk) context = Einsum<equation = "bhgqk,bkhd->bqhgd">(p, v)',
        "float[2,3,2,5,4] q, float[2,3,1,4,5] k, float[2,5,3,4] v",
        lambda v: v.transpose(0, 2, 1, 3).repeat(2, axis=1),
    ),
    "Einsum": (
        'qk = MatMul(q, k) p = Softmax(qk) context = Einsum<equation = "bhqk,bkhd->bqhd">(p, v)',
        "float[2,3,5,4] q, float[2,3,4,5] k, float[2,5,3,4] v",
        lambda v: v.transpose(0, 2, 1, 3),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_error_of_the_context(name):
    nodes, inputs, value_of = LAYOUTS[name]
    model = attention(nodes, inputs, six=np.array([6, 5, 5]))
    rng = np.random.default_rng(0)
    sample = {value.name: rng.normal(size=tuple(value.shape)).astype(np.float32) for value in model.graph.inputs}
    if name == "three axes":  # only an input with the batch tells it from six single heads
        model.graph.inputs.insert(
            0, ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2, 5]))
        )
        sample = {"ids": np.zeros((2, 5), np.int64), **sample}
    study = study_of(model, [sample])
    (site,) = study.sites
    (p,) = raw(model, sample, ["p"], "onnxruntime")
    if name == "V on the left":
        p = p.swapaxes(-1, -2)
    value = value_of(sample["v"])
    p = p.reshape(2, value.shape[1], 5, 5)
    assert_close(site, measure("p", p, True, SCHEMES, value=value))
    assert (site.schemes[0].mean_context_error > 0.0).all()


def test_where_something_changes_the_probabilities_the_context_is_not_guessed():
    nodes = "s = MatMul(q, k) p = Softmax(s) half = Mul(p, p) context = MatMul(half, v)"
    model = attention(nodes, QKV)
    rng = np.random.default_rng(0)
    sample = {value.name: rng.normal(size=tuple(value.shape)).astype(np.float32) for value in model.graph.inputs}
    (site,) = study_of(model, [sample]).sites
    assert np.isnan(site.schemes[0].mean_context_error).all()
    assert (site.schemes[0].mean_divergence > 0.0).all()


def test_the_rank_is_that_of_the_run_where_shapes_are_unknown():
    nodes = """
        s = Einsum<equation = "bhid,bhdj->bhij">(q, k)  scaled = Mul(s, factor)  p = Softmax(scaled)
        context = Einsum<equation = "bhij,bhjd->bihd">(p, v)
    """
    model = attention(nodes, QKV, factor=np.array(0.5, np.float32))
    for node in model.graph:
        for output in node.outputs:
            output.shape = None
    rng = np.random.default_rng(0)
    sample = {v.name: rng.normal(size=tuple(v.shape)).astype(np.float32) for v in model.graph.inputs}
    (site,) = study_of(model, [sample]).sites
    assert site.rows.tolist() == [10] * 3
    assert (site.schemes[0].mean_context_error > 0.0).all()


def test_attention_in_a_loop_counts_every_iteration():
    nodes = """
        trip = Constant<value = int64 {4}>()  go = Constant<value = bool {1}>()
        last, context = Loop(trip, go, v) <body = step (int64 i, bool c, float[2,3,5,4] x)
            => (bool again, float[2,3,5,4] next, float[2,3,5,4] seen) {
            again = Identity(c)  s = MatMul(q, k)  p = Softmax(s)  next = MatMul(p, x)  seen = Identity(next)
        }>
    """
    model = attention(nodes, QKV)
    rng = np.random.default_rng(0)
    sample = {v.name: rng.normal(size=tuple(v.shape)).astype(np.float32) for v in model.graph.inputs}
    (site,) = study_of(model, [sample]).sites
    assert site.values.tolist() == [4 * 2 * 25] * 3


def test_rows_of_padding_that_are_set_to_zero_do_not_hide_the_context():
    # As DeBERTa does after its softmax; the rows are padding, and what is left is P·V.
    nodes = "s = MatMul(q, k) p = Softmax(s) kept = Mul(p, rows) context = MatMul(kept, v)"
    mask = np.ones((2, 5), np.int64)
    mask[1, 3:] = 0
    model = attention(nodes, f"{QKV}, float[2,1,5,1] rows, int64[2,5] attention_mask")
    rng = np.random.default_rng(0)
    sample = {v.name: rng.normal(size=tuple(v.shape)).astype(np.float32) for v in model.graph.inputs}
    sample |= {"rows": mask[:, None, :, None].astype(np.float32), "attention_mask": mask}
    (site,) = study_of(model, [sample]).sites
    assert site.rows.tolist() == [8] * 3
    assert (site.schemes[0].mean_context_error > 0.0).all()


def test_integer_products_leave_the_context_out():
    quantized = "scale = Constant<value = float {0.00390625}>() zero = Constant<value = uint8 {0}>()"
    nodes = f"{quantized} s = MatMul(q, k) p = Softmax(s) pq = QuantizeLinear(p, scale, zero) " + (
        "context = QLinearMatMul(pq, scale, zero, v, scale, zero, scale, zero)"
    )
    inputs = QKV.replace("float[2,3,5,4] v", "uint8[2,3,5,4] v")
    model = attention(nodes, inputs)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    rng = np.random.default_rng(0)
    sample = {v.name: (3 * rng.random(size=tuple(v.shape))).astype(v.dtype.numpy()) for v in model.graph.inputs}
    (site,) = study_of(model, [sample]).sites
    assert np.isnan(site.schemes[0].mean_context_error).all()
    assert site.values.tolist() == [50] * 3


def test_float16_does_not_turn_small_values_into_masked_ones():
    nodes = "s = MatMul(q, k) m = Add(s, future) p = Softmax(m) context = MatMul(p, v)"
    inputs = QKV.replace("float[", "float16[")
    future = np.where(np.tri(5, dtype=bool), 0.0, -65504.0).astype(np.float16)
    model = attention(nodes, inputs, future=future)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    rng = np.random.default_rng(0)
    sample = {value.name: (3 * rng.normal(size=tuple(value.shape))).astype(np.float16) for value in model.graph.inputs}
    (p,) = raw(model, sample, ["p"], "onnxruntime")
    assert (p[:, :, 4] == 0).any()  # without a mask
    (site,) = study_of(model, [sample]).sites
    assert site.values.tolist() == [2 * 15] * 3
    assert 0.0 < site.minimum.min() < 2.0**-25
    assert not np.isnan(site.schemes[0].mean_context_error).any()


def test_attention_in_a_branch_is_observed_where_it_was_taken():
    nodes = """
        context = If(take) <
            then_branch = yes () => (float a) { s = MatMul(q, k) p = Softmax(s) a = MatMul(p, v) },
            else_branch = no () => (float b) { b = Identity(v) }
        >
    """
    model = attention(nodes, f"bool take, {QKV}")
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("q", (2, 3, 5, 4)), ("k", (2, 3, 4, 5)), ("v", (2, 3, 5, 4)))
    }
    taken, skipped = {"take": np.array(True), **arrays}, {"take": np.array(False), **arrays}
    (site,) = study_of(model, [skipped, taken]).sites
    assert site.values.tolist() == [50] * 3
    with pytest.raises(InvalidData, match="not run on any sample"):
        study_of(model, [skipped])


def test_past_keys_count_and_padding_among_them_does_not():
    nodes = "s = MatMul(q, k) m = Add(s, bias) p = Softmax(m) context = MatMul(p, v)"
    inputs = (
        "float[2,1,2,4] q, float[2,1,4,5] k, float[2,1,5,4] v, float[2,1,1,5] bias, int64[2,5] attention_mask, "
        "float[2,3] past"
    )
    mask = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    rng = np.random.default_rng(0)
    model = attention(nodes, inputs)
    sample = {v.name: rng.normal(size=tuple(v.shape)).astype(np.float32) for v in model.graph.inputs}
    sample |= {"attention_mask": mask, "bias": np.where(mask, 0.0, -1e4).astype(np.float32)[:, None, None]}
    (site,) = study_of(model, [sample]).sites
    assert site.values.item() == 2 * 4 + 1 * 4


def test_no_sites_and_no_samples_are_errors():
    model = encoder(layers=1)
    with pytest.raises(NothingToRewrite, match=r"model\.onnx"):
        observe(model, (), [tokens([3])], SOURCE)
    with pytest.raises(InvalidData, match="no samples"):
        study_of(model, [])


def test_the_lowest_bin_holds_what_is_below_the_edges():
    (site,) = study_of(encoder(layers=1, sharpness=30.0), [tokens([30])]).sites
    assert site.histogram[:, 0].sum() > 0
    assert (site.minimum < EDGES[0]).any()
