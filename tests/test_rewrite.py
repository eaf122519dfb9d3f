"""What the rewriter changes, and everything that it leaves as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from attention_forms import FORMS, QKV, SCORES
from executions import require_opset
from fused_case import CURRENT_KERNELS
from small_graphs import parse
from small_transformers import bert_like, gpt2_like

from onnx_attnq.errors import AlreadyRewritten, InvalidPlan
from onnx_attnq.find import Form, expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load, save, structure_hash
from onnx_attnq.rewriting import Plan, Record, RewriteSettings, SitePlan, read_record, rewrite, uniform_plan
from onnx_attnq.run import Session
from onnx_attnq.scheme import QuantScheme, numerics, preset
from onnx_attnq.verification import Limit, Limits, verify

BODIES_CHANGE = (11, 13, 14, 18, 24)
"""The first opsets with other operators in the bodies, and the last."""

OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24)


def rewritten(original: ir.Model, scheme: QuantScheme | None = None, **options: bool) -> tuple[ir.Model, Record]:
    model = original.clone()
    sites = find_sites(expose(model))
    plan = uniform_plan(structure_hash(original), [site.id for site in sites.sites], scheme or preset())
    return model, rewrite(model, sites, plan, RewriteSettings(**options))


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def sample(batch: int = 2, length: int = 6) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = np.ones((batch, length), np.int64)
    mask[1, 4:] = 0
    return {
        "input_ids": random.integers(0, 20, (batch, length)),
        "attention_mask": mask,
        "positions": np.arange(length, dtype=np.float32),
    }


# --- what stays


@pytest.mark.parametrize(
    ("opset", "inline"),
    [
        *(
            pytest.param(opset, False, id=f"{opset}-function", marks=[] if opset in BODIES_CHANGE else pytest.mark.slow)
            for opset in OPSETS
        ),
        *(
            pytest.param(opset, True, id=f"{opset}-inline", marks=[] if opset == 13 else pytest.mark.slow)
            for opset in (OPSETS[0], 13, 18, OPSETS[-1])
        ),
    ],
)
@pytest.mark.parametrize("make", [bert_like, pytest.param(gpt2_like, marks=pytest.mark.slow)])
def test_every_opset(make, opset: int, inline: bool) -> None:  # type: ignore[no-untyped-def]
    require_opset(opset)
    original = make(opset)
    for scheme, limits in (
        (preset("identity"), Limits((Limit("max_abs", 1e-5),))),
        (preset(), Limits()),
        (preset("ji2021"), Limits()),
    ):
        model, record = rewritten(original, scheme, inline=inline)
        assert len(record.sites) == 2
        assert model.graph.opset_imports[""] == opset
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        result = verify(original, model, [sample()], limits=limits)
        assert result.passed, result.failures


def test_names_weights_metadata_and_other_functions_stay() -> None:
    original = parse(
        f"({QKV}, float[4,4] w) => (float[B,2,L,4] z) {{ {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v)"
        " u = local.other(y) z = MatMul(u, w) }",
        functions='<domain: "local", opset_import: ["" : 17]> other (x) => (y) { y = Relu(x) }',
        inferred=True,
    )
    original.metadata_props.update({"author": "someone", "license": "none"})
    original.graph.doc_string = "a graph"
    model, _ = rewritten(original)
    assert [v.name for v in model.graph.inputs] == [v.name for v in original.graph.inputs]
    assert [v.name for v in model.graph.outputs] == [v.name for v in original.graph.outputs]
    assert model.graph.opset_imports.items() >= original.graph.opset_imports.items()
    assert original.metadata_props.items() <= model.metadata_props.items()
    assert model.graph.doc_string == "a graph"
    assert ("local", "other", "") in model.functions
    np.testing.assert_array_equal(
        model.graph.initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
        original.graph.initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
    )
    kept = {node.name for node in original.graph} - {"Softmax_p", "MatMul_s", "MatMul_y", "Transpose_kt"}
    assert kept <= {node.name for node in model.graph}


def test_an_empty_plan_changes_nothing() -> None:
    original = parse(FORMS["plain"].text, inferred=True)
    model = original.clone()
    sites = find_sites(model)
    record = rewrite(
        model, sites, Plan(structure_hash(original), tuple(SitePlan(s.id, None, "no") for s in sites.sites))
    )
    assert record.sites == ()
    assert serialized(model) == serialized(original)


def test_a_site_without_scheme_stays_as_it_was() -> None:
    original = bert_like(17)
    model = original.clone()
    sites = find_sites(model)
    first, second = (site.id for site in sites.sites)
    rewrite(model, sites, Plan(structure_hash(original), (SitePlan(first, None, "no"), SitePlan(second, preset()))))
    assert [node.name for node in model.graph if node.op_type == "Softmax"] == ["Softmax_p0"]
    assert verify(original, model, [sample()]).passed


def test_a_failed_rewrite_leaves_the_model_as_it_was() -> None:
    original = parse(FORMS["plain"].text, inferred=True)
    model = original.clone()
    with pytest.raises(InvalidPlan):
        rewrite(model, find_sites(model), Plan("c0ffee", ()))
    assert serialized(model) == serialized(original)


@pytest.mark.parametrize("name", ["plain", "Einsum", "in both branches of an If"])
def test_new_values_have_types_and_shapes(name: str) -> None:
    model, _ = rewritten(parse(FORMS[name].text, inferred=True))
    for node in model.graph.all_nodes():
        if node.domain == "onnx_attnq":
            assert node.outputs[0].dtype == ir.DataType.FLOAT
            assert node.outputs[0].shape is not None


# --- refusals and determinism


@pytest.mark.parametrize("inline", [False, True])
def test_a_second_application_is_refused(inline: bool) -> None:
    model, _ = rewritten(parse(FORMS["plain"].text), inline=inline)
    before = serialized(model)
    with pytest.raises(AlreadyRewritten, match="start from the original"):
        rewritten(model)
    assert serialized(model) == before


@pytest.mark.parametrize("inline", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMS)
def test_two_runs_write_the_same_bytes(name: str, inline: bool, tmp_path: Path) -> None:
    form = FORMS[name]
    save(parse(form.text, opset=form.opset, functions=form.functions, inferred=True), tmp_path / "m.onnx")
    for output in ("a.onnx", "b.onnx"):
        compress(tmp_path / "m.onnx", tmp_path / output, rewriting=RewriteSettings(inline=inline), verification=None)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_record_reads_back_what_was_done(tmp_path: Path) -> None:
    save(bert_like(17), tmp_path / "m.onnx")
    result = compress(tmp_path / "m.onnx", scheme=preset("ji2021", bits=4))
    record = read_record(ir.load(tmp_path / "m.attnq.onnx"))
    assert record == result.record
    assert record is not None
    assert record.structure_hash == structure_hash(ir.load(tmp_path / "m.onnx"))
    assert [site.id for site in record.sites] == ["Softmax_p0", "Softmax_p1"]
    assert {site.scheme for site in record.sites} == {preset("ji2021", bits=4)}


# --- inline


# onnxruntime before 1.32 fuses a Transpose into a product of doubles, for which it then has no kernel.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[CURRENT_KERNELS] if n == "double" else []) for n in FORMS])
def test_inline_leaves_plain_ops_only(name: str) -> None:
    form = FORMS[name]
    original = parse(form.text, opset=form.opset, functions=form.functions, inferred=True)
    model, record = rewritten(original, inline=True)
    assert record.inlined
    assert all(node.domain in ("", "com.microsoft") for node in model.graph.all_nodes())
    assert "onnx_attnq" not in model.graph.opset_imports
    assert not any(identifier[0] == "onnx_attnq" for identifier in model.functions)
    names = [node.name for node in model.graph.all_nodes() if node.name]
    assert len(set(names)) == len(names)
    result = verify(original, model, generate_samples(original, 1, 0))
    assert result.passed, result.failures


# --- schemes


def test_schemes_of_one_family_share_a_body_and_keep_their_numbers() -> None:
    original = bert_like(17)
    model = original.clone()
    sites = find_sites(model)
    coarse, fine = preset("row-log", bits=2, threshold=0.1), preset("row-log", bits=6, threshold=1e-5)
    first, second = (site.id for site in sites.sites)
    rewrite(model, sites, Plan(structure_hash(original), (SitePlan(first, coarse), SitePlan(second, fine))))
    assert len(model.functions) == 1
    assert verify(original, model, [sample()]).passed


def test_schemes_of_different_families_get_a_body_each() -> None:
    original = bert_like(17)
    model = original.clone()
    sites = find_sites(model)
    first, second = (site.id for site in sites.sites)
    plan = Plan(structure_hash(original), (SitePlan(first, preset("ji2021")), SitePlan(second, preset("prune-only"))))
    rewrite(model, sites, plan)
    assert len(model.functions) == 2
    assert verify(original, model, [sample()]).passed


def test_a_threshold_below_float32_shares_a_body_with_a_usual_one() -> None:
    original = bert_like(17)
    for thresholds in ((1e-35, 1e-3), (1e-3, 1e-35)):
        model = original.clone()
        sites = find_sites(model)
        entries = zip(sites.sites, thresholds, strict=True)
        plan = tuple(SitePlan(site.id, preset("ji2021", threshold=t)) for site, t in entries)
        rewrite(model, sites, Plan(structure_hash(original), plan))
        assert verify(original, model, [sample()]).passed


# --- outputs


OUTPUT = FORMS["the probabilities are an output"].text


@pytest.mark.parametrize("inline", [False, True])
def test_probabilities_that_are_an_output_stay_the_original_ones(inline: bool) -> None:
    original = parse(OUTPUT, inferred=True)
    model, record = rewritten(original, inline=inline)
    assert record.sites[0].form is Form.SOFTMAX
    (feeds,) = generate_samples(original, 1, 0)
    before, after = Session(original).run(feeds), Session(model).run(feeds)
    np.testing.assert_array_equal(after["p"], before["p"])
    assert np.abs(after["y"] - before["y"]).max() > 0.0
    expected = numerics.quantize_probabilities(before["p"], preset()) @ feeds["v"].astype(np.float64)
    np.testing.assert_allclose(after["y"], expected, rtol=1e-4, atol=1e-5)


def test_probabilities_that_are_an_output_are_quantized_on_demand() -> None:
    original = parse(OUTPUT, inferred=True)
    model, _ = rewritten(original, quantize_outputs=True)
    (feeds,) = generate_samples(original, 1, 0)
    before, after = Session(original).run(feeds), Session(model).run(feeds)
    assert [v.name for v in model.graph.outputs] == ["y", "p"]
    expected = numerics.quantize_probabilities(before["p"], preset())
    assert ((after["p"] == 0.0) == (expected == 0.0)).mean() > 0.999
    assert not any(node.op_type == "Softmax" for node in model.graph)


# --- types


@pytest.mark.parametrize(("kind", "dtype"), [("float16", ir.DataType.FLOAT16), ("double", ir.DataType.DOUBLE)])
def test_other_types_are_quantized_in_float32_between_casts(kind: str, dtype: ir.DataType) -> None:
    original = parse(FORMS[kind].text)
    model, record = rewritten(original)
    (op,) = (node for node in model.graph if node.domain == "onnx_attnq")
    cast_in, (cast_out,) = op.inputs[0].producer(), op.outputs[0].consumers()  # type: ignore[union-attr]
    assert cast_in is not None
    assert (cast_in.op_type, cast_out.op_type) == ("Cast", "Cast")
    assert cast_out.attributes["to"].as_int() == dtype
    assert record.sites[0].form is Form.SOFTMAX


def test_bfloat16_is_rewritten_too() -> None:
    text = FORMS["float16"].text.replace("float16", "bfloat16")
    model, _ = rewritten(parse(text, inferred=True))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (op,) = (node for node in model.graph if node.domain == "onnx_attnq")
    (cast,) = op.outputs[0].consumers()
    assert cast.attributes["to"].as_int() == ir.DataType.BFLOAT16


# --- where it is


def test_what_replaces_a_softmax_takes_over_its_name() -> None:
    model, record = rewritten(parse(FORMS["Einsum"].text, inferred=True))
    assert record.sites[0].output == "p"
    assert [node.op_type for node in model.graph] == ["Einsum", "QuantizedSoftmax_mean", "Einsum"]


def test_names_that_are_taken_are_not_used_twice() -> None:
    text = f"({QKV}) => (float[B,2,L,4] y, float[B,2,L,L] p_QuantizedSoftmax) {{ {SCORES} p_QuantizedSoftmax = Relu(s)"
    model, _ = rewritten(parse(text + " p = Softmax<axis=-1>(s) y = MatMul(p, v) }", inferred=True))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_no_other_node_of_an_axis_in_the_middle_sees_the_transposes() -> None:
    original = parse(FORMS["axis -2, V on the left"].text, inferred=True)
    model, _ = rewritten(original)
    (op,) = (node for node in model.graph if node.domain == "onnx_attnq")
    assert op.inputs[0].producer().op_type == "Transpose"  # type: ignore[union-attr]
    result = verify(original, model, generate_samples(original, 1, 0))
    assert result.passed, result.failures


def test_both_branches_of_an_if_are_verified_when_samples_take_both() -> None:
    original = parse(FORMS["in both branches of an If"].text, inferred=True)
    model, _ = rewritten(original)
    (feeds,) = generate_samples(original, 1, 0)
    result = verify(original, model, [{**feeds, "c": np.array(taken)} for taken in (True, False)])
    assert result.passed, result.failures
    assert all(check.codes for check in result.standard.sites.values())


def test_a_rewritten_model_has_one_fingerprint_in_memory_and_in_a_file(tmp_path: Path) -> None:
    model, _ = rewritten(bert_like(17))
    save(model, tmp_path / "m.onnx")
    assert structure_hash(load(tmp_path / "m.onnx")) == structure_hash(model)


def test_metadata_is_json() -> None:
    model, record = rewritten(bert_like(17))
    data = json.loads(model.metadata_props["onnx_attnq"])
    assert data["version"] == record.version
    assert {"id", "op_type", "node", "scope", "form", "scheme"} <= set(data["sites"][0])


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_every_optimization_level_computes_the_same(level: str) -> None:
    model, _ = rewritten(bert_like(17))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])
    feeds = {v.name: sample()[v.name] for v in session.get_inputs()}
    np.testing.assert_allclose(
        session.run(None, feeds)[0], Session(model).run(sample())["logits"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("exclude", "kept"), [((), []), (("y",), ["y"]), pytest.param(("a",), ["a"], marks=pytest.mark.slow)]
)
def test_fused_ops_without_a_name_are_told_apart(exclude: tuple[str, ...], kept: list[str], tmp_path: Path) -> None:
    op = "com.microsoft.MultiHeadAttention<num_heads=2>"
    model = parse(f"(float[B,L,8] x) => (float[B,L,8] y) {{ a = {op}(x, x, x) y = {op}(a, a, a) }}")
    for node in model.graph:
        node.name = None
    save(model, tmp_path / "m.onnx")
    result = compress(tmp_path / "m.onnx", rewriting=RewriteSettings(exclude=exclude, keep_fused=False))
    written = ir.load(tmp_path / "m.attnq.onnx")
    assert [n.outputs[0].name for n in written.graph if n.op_type == "MultiHeadAttention"] == kept
    assert result.verification is not None
    assert result.verification.passed
