"""The verifier catches what is wrong, excuses what rounding explains, and leaves padding out."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from attention_forms import FORMS
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import parse
from strategies import schemes

from onnx_attnq.errors import InvalidData, InvalidScheme
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import structure_hash
from onnx_attnq.rewriting import RewriteSettings, read_record, rewrite, uniform_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import PRESETS, QuantScheme, numerics, preset
from onnx_attnq.verification import Limit, Limits, VariantCheck, Verification, verify
from onnx_attnq.verification.attention_alone import AloneSessions, AttentionAlone
from onnx_attnq.verification.codes import CodeCheck, check_rows
from onnx_attnq.verification.deviation import deviation_of
from onnx_attnq.verification.outputs import OutputComparison, token_masks


def rewritten(text: str, scheme: QuantScheme, *, inline: bool = False) -> tuple[ir.Model, ir.Model]:
    original = parse(text, inferred=True)
    model = original.clone()
    sites = find_sites(expose(model))
    plan = uniform_plan(structure_hash(original), [site.id for site in sites.sites], scheme)
    rewrite(model, sites, plan, RewriteSettings(inline=inline))
    return original, model


PLAIN = FORMS["plain"].text
GUARDED = FORMS["guard of fully masked rows"].text
EINSUM = FORMS["Einsum"].text


# --- codes


@given(schemes(), st.integers(0, 2**32 - 1), st.booleans())
def test_what_numerics_computes_passes(scheme: QuantScheme, seed: int, is_scores: bool) -> None:
    scores = np.random.default_rng(seed).normal(0.0, 4.0, (3, 20))
    source = scores if is_scores else numerics.softmax(scores)
    compute = numerics.quantize_scores if is_scores else numerics.quantize_probabilities
    check = check_rows(source, compute(source, scheme), scheme, is_scores=is_scores)
    assert (check.codes, check.errors, check.disagreements) == (60, 0, 0)


def wrong_rows(scheme: QuantScheme) -> dict[str, np.ndarray]:
    scores = np.random.default_rng(0).normal(0.0, 3.0, (8, 40))
    right = numerics.quantize_scores(scores, scheme)
    one_value = right.copy()
    row = np.argmax((right > 0.0).sum(-1))
    one_value[row, np.argmax(right[row])] *= 1.001
    return {
        "not quantized": numerics.softmax(scores),
        "zero": np.zeros_like(right),
        "nan": np.full_like(right, np.nan),
        "scaled": right * 1.001,
        "one value scaled": one_value,
        "shuffled": right[:, ::-1],
        "another row": np.roll(right, 1, axis=0),
    }


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("identity", "boolean")])
@pytest.mark.parametrize("case", wrong_rows(preset()))
def test_what_is_wrong_is_caught(name: str, case: str) -> None:
    scheme = preset(name)
    scores = np.random.default_rng(0).normal(0.0, 3.0, (8, 40))
    check = check_rows(scores, wrong_rows(scheme)[case], scheme, is_scores=True)
    assert check.errors > 0
    assert not check.passed


def test_another_code_is_excused_next_to_an_edge_only_and_by_one_only() -> None:
    scheme = preset("ji2021")
    edge, levels = numerics.edges(scheme)[3], numerics.levels(scheme)
    for distance, level, errors, disagreements in (
        (1e-8, levels[3], 0, 0),
        (1e-8, levels[2], 0, 1),
        (-1e-8, levels[3], 0, 1),
        (1e-8, levels[1], 1, 0),
        (1e-4, levels[2], 1, 0),
    ):
        check = check_rows([[edge * (1.0 + distance)]], [[level]], scheme, is_scores=False)
        assert (check.errors, check.disagreements) == (errors, disagreements), (distance, level)


def test_more_disagreements_than_rounding_explains_do_not_pass() -> None:
    assert CodeCheck(codes=100, disagreements=3).passed
    assert not CodeCheck(codes=100, disagreements=4).passed
    assert CodeCheck(codes=10**6, disagreements=100).passed
    assert not CodeCheck(codes=10**6, disagreements=101).passed
    assert not CodeCheck(codes=10**6, errors=1).passed


@given(st.lists(st.builds(CodeCheck, *[st.integers(0, 9)] * 5), min_size=2, max_size=4))
def test_merging_is_associative(checks: list[CodeCheck]) -> None:
    left = checks[0]
    for check in checks[1:]:
        left = left.merge(check)
    right = checks[-1]
    for check in reversed(checks[:-1]):
        right = check.merge(right)
    assert left == right


# --- whole models


@pytest.mark.parametrize("inline", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", [PLAIN, GUARDED, EINSUM], ids=["plain", "guarded", "einsum"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_rewritten_model_passes(name: str, text: str, inline: bool) -> None:
    original, model = rewritten(text, preset(name), inline=inline)
    result = verify(original, model, generate_samples(original, 2, 0))
    assert result.passed, result.failures
    assert result.samples == 2


@pytest.mark.parametrize("text", [PLAIN, EINSUM], ids=["attention", "softmax"])
@pytest.mark.parametrize(("attribute", "factor"), [("step", 1.01), ("offset", 1.2), ("threshold", 1.5)])
def test_a_model_whose_attribute_was_changed_is_caught(text: str, attribute: str, factor: float) -> None:
    original, model = rewritten(text, preset("ji2021"))
    node = next(node for node in model.graph if node.domain == "onnx_attnq")
    changed = node.attributes[attribute].as_tensor().numpy() * np.float32(factor)
    node.attributes[attribute] = ir.AttrTensor(attribute, ir.tensor(changed))
    result = verify(original, model, generate_samples(original, 4, 0))
    assert result.failures[0].startswith("B is not what the rewrite makes of A")
    wrong = [text for text in result.failures if "codes are wrong" in text]
    # The log forms prune by the code, and the threshold is for the linear ones.
    assert bool(wrong) == (attribute != "threshold")


@pytest.mark.parametrize("text", [PLAIN, EINSUM], ids=["attention", "softmax"])
def test_a_body_that_does_something_else_is_caught(text: str) -> None:
    original, model = rewritten(text, preset())
    (body,) = model.functions.values()
    next(node for node in body if node.op_type == "ThresholdedRelu").op_type = "LeakyRelu"  # prunes nothing
    failures = verify(original, model, generate_samples(original, 1, 0)).failures
    assert any("codes are wrong" in failure for failure in failures), failures


def test_a_context_that_is_not_the_product_with_v_is_caught() -> None:
    original, model = rewritten(PLAIN, preset())
    (body,) = model.functions.values()
    last = [n for n in body if n.op_type == "MatMul"][-1]
    doubled = ir.Node("", "Add", [last.outputs[0], last.outputs[0]], name="doubled")
    doubled.outputs[0].name = "doubled"
    ir.convenience.replace_all_uses_with(last.outputs[0], doubled.outputs[0], replace_graph_outputs=True)
    for index in range(2):
        doubled.replace_input_with(index, last.outputs[0])
    body.insert_after(last, doubled)
    failures = verify(original, model, generate_samples(original, 1, 0)).failures
    assert any("codes are wrong" in failure for failure in failures), failures


@pytest.mark.parametrize("off", [0.0, 1e-3, np.nan, np.inf])
def test_one_wrong_element_of_a_context_is_caught(off: float) -> None:
    _, model = rewritten(PLAIN, preset())
    (site,) = read_record(model).sites
    values = {value.name: value for node in model.graph for value in node.outputs}
    alone = AttentionAlone(model, site, values, AloneSessions(RunSettings(1), native=False))
    q, k, v = np.random.default_rng(0).normal(0.0, 2.0, (3, 1, 2, 9, 4)).astype(np.float32)
    context = numerics.quantized_attention(q, k, v, preset())
    context[0, 1, 3, 2] += off
    (found,) = alone.rows([q, k, v, np.zeros((1, 1, 1, 1), np.float32)], context.astype(np.float32))
    assert found.wrong == (off != 0)


def test_nan_where_there_was_none_does_not_pass() -> None:
    original, model = rewritten(PLAIN, preset())
    output = OutputComparison()
    output.add(np.zeros(3), np.array([0.0, np.nan, np.inf]))
    result = verify(original, model, generate_samples(original, 1, 0))
    failed = dataclasses.replace(result, runs={"standard": VariantCheck({"y": output.result()}, {})})
    assert failed.failures == ("standard: output 'y': 2 elements are NaN or infinite in one model only",)
    assert not failed.passed


@pytest.mark.parametrize(
    ("limit", "met"),
    [("max_abs=1e9", True), ("max_abs=0", False), ("cosine=-1", True), ("cosine=1.0001", False)],
)
def test_a_limit_decides(limit: str, met: bool) -> None:
    original, model = rewritten(PLAIN, preset())
    result = verify(original, model, generate_samples(original, 1, 0), limits=Limits((Limit.parse(limit),)))
    assert result.passed == met
    if not met:
        assert result.failures[0].startswith(f"standard: output 'y': {limit.partition('=')[0]} is ")


@pytest.mark.parametrize(
    ("limit", "whose"),
    [("y:kl=9", "output 'y' does not have"), ("kl=9", "no output has"), ("top1_agreement=0", "no output has")],
)
def test_a_limit_on_a_figure_that_is_missing_is_violated(limit: str, whose: str) -> None:
    original, model = rewritten(PLAIN, preset())
    asked = Limit.parse(limit)
    result = verify(original, model, generate_samples(original, 1, 0), limits=Limits((asked,)))
    text = f"{asked}: {whose} this figure, which is of logits and probabilities only"
    assert result.failures == tuple(f"{way}: {text}" for way in result.runs)


def test_a_limit_on_all_outputs_holds_for_those_that_have_the_figure() -> None:
    plain, logits = OutputComparison(), OutputComparison(distribution=True)
    for output in (plain, logits):
        output.add(np.ones((2, 3)), np.ones((2, 3)))
    both = {"state": plain.result(), "logits": logits.result()}
    assert Limits((Limit.parse("kl=0"),)).hold(both)
    assert not Limits((Limit.parse("kl=0"), Limit.parse("state:kl=0"))).hold(both)


@pytest.mark.parametrize("text", ["", "max_abs", "max_abs=", "max_abs=x", "max_abs=nan", "rms=1", "=1"])
def test_a_limit_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(InvalidScheme, match="is no limit"):
        Limit.parse(text)


# --- padding

MASKED = (
    "(float[B,L,4] x, int64[B,L] attention_mask) => (float[B,L,4] y) { low = Constant<value_float=-10000.0>()"
    " one = Constant<value_int=1>() away = Sub(one, attention_mask) f = Cast<to=1>(away) bias = Mul(f, low)"
    " axis = Constant<value_ints=[1]>() row = Unsqueeze(bias, axis) xt = Transpose<perm=[0,2,1]>(x) s = MatMul(x, xt)"
    " t = Add(s, row) p = Softmax<axis=-1>(t) y = MatMul(p, x) }"
)


@pytest.mark.parametrize("scheme", [preset(), preset("ji2021")], ids=["row-log", "ji2021"])
def test_padding_changes_neither_the_share_of_pruned_values_nor_the_deviation(scheme: QuantScheme) -> None:
    original, model = rewritten(MASKED, scheme)
    x = np.random.default_rng(0).normal(0.0, 1.5, (2, 6, 4)).astype(np.float32)
    short = {"x": x, "attention_mask": np.ones((2, 6), np.int64)}
    padded = {
        "x": np.concatenate([x, 100.0 * np.ones((2, 9, 4), np.float32)], axis=1),
        "attention_mask": np.concatenate([np.ones((2, 6), np.int64), np.zeros((2, 9), np.int64)], axis=1),
    }
    a, b = verify(original, model, [short]), verify(original, model, [padded])
    assert a.passed
    assert b.passed
    (pruned,) = a.standard.pruned.values()
    assert 0.0 < pruned < 1.0
    assert a.standard.pruned == b.standard.pruned
    assert b.standard.outputs["y"].deviation.values == a.standard.outputs["y"].deviation.values
    assert b.standard.outputs["y"].deviation.max_abs == pytest.approx(
        a.standard.outputs["y"].deviation.max_abs, rel=1e-3
    )


CACHE = (
    "(float[B,L,8] x, int64[B,L] attention_mask) => (float[B,{axis}] present) {{ shape = Constant<value_ints=[0,0,4,2]>()"
    " r = Reshape(x, shape) t = Transpose<perm=[0,2,1,3]>(r) scale = Constant<value=float[1,4,1,1] {{1,1,{scale},2}}>()"
    " present = Mul(t, scale) }}"
)


@pytest.mark.parametrize("axis", ["4,L,2", "H,L,2", "L,L,2"])
def test_a_cache_of_as_many_heads_as_tokens_is_not_taken_for_padding(axis: str) -> None:
    a, b = (parse(CACHE.format(axis=axis, scale=scale)) for scale in (1, 5))
    sample = {
        "x": np.ones((1, 4, 8), np.float32),
        "attention_mask": np.array([[1, 1, 0, 0]]),
    }
    assert verify(a, b, [sample]).passed == (axis == "L,L,2")  # there the model says that it is one row for each token


def test_an_output_goes_with_the_mask_of_its_length() -> None:
    model = parse(
        "(float[B,L,4] x, float[B,M,4] e, int64[B,M] attention_mask, int64[B,L] mask) =>"
        " (float[B,L,4] y, float[B,M,4] z, float[B,6,4] w) { y = Identity(x) z = Identity(e) w = Identity(e) }"
    )
    assert token_masks(model) == {"y": ("mask",), "z": ("attention_mask",), "w": ()}


def test_samples_of_different_lengths_add_up() -> None:
    original, model = rewritten(MASKED, preset())
    random = np.random.default_rng(0)
    samples = [
        {"x": random.normal(size=(1, n, 4)).astype(np.float32), "attention_mask": np.ones((1, n), np.int64)}
        for n in (3, 8)
    ]
    both, each = verify(original, model, samples), [verify(original, model, [s]) for s in samples]
    (check,) = both.standard.sites.values()
    assert check.codes == 3 * 3 + 8 * 8
    first, second = (result.standard.outputs["y"].deviation for result in each)
    assert both.standard.outputs["y"].deviation == first.merge(second)


BRANCHES = (
    "(float[B,L,4] x, bool yes) => (float[B,L,4] y) { xt = Transpose<perm=[0,2,1]>(x) s = MatMul(x, xt) y = If(yes)"
    " <then_branch = a () => (float[B,L,4] u) { p = Softmax<axis=-1>(s) u = MatMul(p, x) },"
    " else_branch = b () => (float[B,L,4] v) { v = Identity(x) }> }"
)


@pytest.mark.parametrize("first", ["", "r = Softmax<axis=-1>(s) w = MatMul(r, x) "], ids=["one site", "two sites"])
def test_a_site_that_did_not_run_is_not_called_checked(first: str) -> None:
    text = BRANCHES.replace("y = If", f"{first}y = If").replace(
        "Identity(x)", "Identity(w)" if first else "Identity(x)"
    )
    original, model = rewritten(text, preset())
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    ran, not_run = (verify(original, model, [{"x": x, "yes": np.array(yes)}]) for yes in (True, False))
    assert ran.passed, ran.failures
    assert not any("did not run" in note for note in ran.notes)
    (name,) = (name for name, check in not_run.standard.sites.items() if not check.codes)
    assert f"site {name!r} did not run on these samples: nothing of it was checked" in not_run.notes
    assert not any("prove little" in note for note in not_run.notes)
    none = tuple(f"{way}: no site ran on these samples: no code was checked" for way in not_run.runs)
    assert not_run.failures == (() if first else none)


def test_progress_reaches_its_end() -> None:
    original, model = rewritten(PLAIN, preset())
    steps: list[tuple[str, int, int]] = []
    verify(original, model, generate_samples(original, 1, 0), progress=lambda *step: steps.append(step))
    assert [done for _, done, _ in steps] == list(range(1, steps[0][2] + 1))


# --- deviation


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_deviations_of_parts_merge_to_that_of_the_whole(seed: int, parts: int) -> None:
    random = np.random.default_rng(seed)
    pairs = [(random.normal(size=(3, 5)), random.normal(size=(3, 5))) for _ in range(parts)]
    merged = deviation_of(*pairs[0], distribution=True)
    for pair in pairs[1:]:
        merged = merged.merge(deviation_of(*pair, distribution=True))
    whole = deviation_of(*(np.concatenate(side) for side in zip(*pairs, strict=True)), distribution=True)
    for name, figure in whole.to_json().items():
        assert merged.to_json()[name] == pytest.approx(figure, rel=1e-12), name


def test_figures_are_what_their_names_say() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[1.0, 1.5], [0.0, 3.0]])
    found = deviation_of(a, b, distribution=True)
    assert found.max_abs == 3.0
    assert found.mean_abs == (0.5 + 3.0 + 3.0) / 4
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.top1_agreement == 0.5
    p, q = numerics.softmax(a), numerics.softmax(b)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum() / 2)
    assert deviation_of(a, b).top1_agreement is None


def test_what_was_not_finite_before_is_no_new_nan() -> None:
    same = deviation_of(np.array([1.0, np.nan, -np.inf]), np.array([1.0, np.nan, -np.inf]))
    assert (same.new_nan, same.values, same.max_abs) == (0, 1, 0.0)


def test_arrays_of_other_shapes_are_one_line() -> None:
    with pytest.raises(InvalidData, match=r"shapes \[2\] and \[3\]"):
        deviation_of(np.zeros(2), np.zeros(3))


@pytest.mark.parametrize(
    ("a", "b", "one_sided", "both"),
    [
        ([np.nan, 1.0], [0.0, 1.0], 1, 0),
        ([np.inf, 1.0], [-np.inf, 1.0], 1, 0),
        ([1.0, 1.0], [np.nan, 1.0], 1, 0),
        ([np.nan, np.inf, 1.0, 1.0], [np.nan, np.inf, 1.0, 1.0], 0, 2),
    ],
    ids=["NaN to number", "inf to -inf", "number to NaN", "the same"],
)
def test_one_answer_on_what_is_not_finite(a, b, one_sided, both) -> None:  # type: ignore[no-untyped-def]
    found = deviation_of(a, b)
    assert (found.one_sided, found.not_finite, found.not_finite_share) == (one_sided, both, both / len(a))
    output = OutputComparison()
    output.add(np.array(a), np.array(b))
    assert Limits().hold({"y": output.result()}) == (one_sided == 0)


@pytest.mark.parametrize(
    ("a", "tells"),
    [([[0.5], [-0.2]], False), ([[0.5, 0.2]], False), ([[-0.5, -0.2]], False), ([[0.5, -0.2]], True), (0.5, False)],
)
def test_cosine_says_nothing_for_one_element_or_one_sign(a, tells) -> None:  # type: ignore[no-untyped-def]
    found = deviation_of(a, np.asarray(a) * 0.4)
    assert found.cosine_tells == tells
    assert (found.to_json()["cosine"] is None) != tells
    assert found.relative_error == pytest.approx(0.6)


def test_verdict_and_shares_in_json() -> None:
    checks = {"a": CodeCheck(codes=10, pruned=1, positive=4), "b": CodeCheck(codes=10, pruned=3, positive=4)}
    run = VariantCheck({}, checks)
    assert run.pruned == {"a": 0.25, "b": 0.75}
    assert run.pruned_share == 0.5
    assert run.codes.codes == 20
    data = Verification({"standard": run}, Limits(), 1).to_json()
    assert data["passed"] is True
    assert data["runs"]["standard"]["sites"]["a"]["pruned"] == 1
