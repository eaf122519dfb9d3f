"""The proof covers the whole rewrite: with the identity scheme, a rewritten model computes what the original does."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import parse

import onnx_attnq.verification.rewrite_proof as proof
from onnx_attnq.cli.compress import _show_verification
from onnx_attnq.cli.output import console
from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import expose, find_sites
from onnx_attnq.find.inlining import inline_functions
from onnx_attnq.inputs import generate_samples
from onnx_attnq.rewriting import rewrite, uniform_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import NATIVE, STANDARD, Verification, verify
from onnx_attnq.verification.codes import check_rows

TWO = (
    "(float[B,L,4] x) => (float[B,L,4] z) { xt = Transpose<perm=[0,2,1]>(x) s = MatMul(x, xt) p = Softmax<axis=-1>(s)"
    " y = MatMul(p, x) yt = Transpose<perm=[0,2,1]>(y) t = MatMul(y, yt) q = Softmax<axis=-1>(t) z = MatMul(q, y) }"
)
NOISE = TWO.replace("z = MatMul(q, y)", "u = MatMul(q, y) n = RandomNormalLike(u) z = Add(u, n)")
LENGTH = TWO.replace("float[B,L,4] z", "int64[3,N] z").replace("z = MatMul(q, y)", "u = MatMul(q, y) z = NonZero(u)")
STRING = TWO.replace("float[B,L,4] z", "string[B,L,4] z").replace(
    "z = MatMul(q, y)",
    'u = MatMul(q, y) zero = Constant<value_float=0.0>() yes = Constant<value_string="yes">()'
    ' no = Constant<value_string="no">() up = Greater(u, zero) z = Where(up, yes, no)',
)


CHANGED = "B is not what the rewrite makes of A; rewrite A again"


def rewritten(original: ir.Model, scheme: QuantScheme | None = None) -> ir.Model:
    model = original.clone()
    sites = find_sites(expose(model))
    ids = [site.id for site in sites.sites]
    rewrite(model, sites, uniform_plan(sites.exposed.structure_hash, ids, scheme or preset()))
    return model


def verified(text: str, scheme: QuantScheme | None = None, opset: int = 17, **options: int) -> Verification:
    original = parse(text, inferred=True, opset=opset, ir_version=8 if opset < 19 else 9)
    return verify(
        original, rewritten(original, scheme), generate_samples(original, 3, 0), run=RunSettings(1, **options)
    )


def test_a_right_rewrite_is_proved() -> None:
    found = verified(TWO)
    assert found.passed, found.failures
    assert found.rewrite is not None
    assert found.rewrite.outputs["z"].deviation.relative_error < 1e-6


@pytest.mark.parametrize("broken", [0, 1])
def test_a_wrong_rewrite_fails_and_names_the_site(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the rewrite had taken another operand for one of the sites."""
    right = proof.rewrite

    def wrong(model: ir.Model, sites, plan, *options):  # type: ignore[no-untyped-def]
        record = right(model, sites, plan, *options)
        for site in record.sites:
            if site.id == ids[broken]:
                op = next(n for n in model.graph if n.outputs[0].name == site.output)
                op.replace_input_with(2, next(v for v in model.graph.inputs if v.name == "x"))
                op.replace_input_with(0, op.inputs[1])
                op.attributes["scale"] = ir.AttrTensor("scale", ir.tensor(np.array([3.0], np.float32)))
        return record

    original = parse(TWO, inferred=True)
    ids = [site.id for site in find_sites(original).sites]
    monkeypatch.setattr(proof, "rewrite", wrong)
    found = verified(TWO)
    assert not found.passed
    assert found.rewrite is not None
    assert found.rewrite.wrong == (ids[broken],)
    assert "even without quantization" in found.failures[0]


def test_it_is_said_where_there_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InvalidModel("its sites overlap")

    monkeypatch.setattr(proof, "rewrite", refuse)
    found = verified(TWO)
    assert found.passed, found.failures
    assert "it was not proved that the rewrite alone changes nothing: its sites overlap" in found.notes
    assert found.to_json()["rewrite"]["missing"] == "its sites overlap"


@pytest.mark.parametrize("right", [True, False])
def test_the_native_library_is_verified_with_the_whole_only(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    found = verified(TWO)
    found = dataclasses.replace(found, runs={STANDARD: found.standard, NATIVE: found.standard})
    if not right:
        found = dataclasses.replace(found, rewrite=proof.RewriteProof(found.standard.outputs, proof.FLOAT32))
    _show_verification(found, console(), real_data=False)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Native library"))
    expected = "verified (" if right else "not verified, though it is right by itself ("
    assert line.startswith(f"Native library: {expected}")


def test_random_ops_draw_the_same_numbers_in_both_models() -> None:
    found = verified(NOISE, preset("identity"))
    assert found.passed, found.failures
    assert found.standard.outputs["z"].deviation.max_abs < 1e-5
    assert "1 ops draw random numbers; both models got the same seeds" in found.notes


@pytest.mark.parametrize("training", [True, False])
def test_dropout_in_training_drops_the_same_in_both_models(training: bool) -> None:
    drop = "u = MatMul(q, y) half = Constant<value=float {0.5}>() z = Dropout(u, half, on)"
    text = TWO.replace("z = MatMul(q, y)", drop).replace("{ xt", f"{{ on = Constant<value=bool {{{training:d}}}>() xt")
    found = verified(text, preset("identity"))
    assert found.passed, found.failures
    assert found.random_ops == training


@pytest.mark.parametrize("inlined", [False, True])
def test_random_ops_of_functions_draw_the_same_numbers_too(inlined: bool) -> None:
    original = parse(NOISE.replace("n = RandomNormalLike(u)", "v = own.noise(u) n = own.noise(v)"), inferred=False)
    noise = parse("(float[N] x) => (float[N] r) { r = RandomNormalLike(x) }").graph
    original.functions["own", "noise", ""] = ir.Function("own", "noise", graph=noise, attributes=[])
    original.graph.opset_imports["own"] = 1
    model = rewritten(original, preset("identity"))
    if inlined:
        inline_functions(model, lambda function: function.domain == "own")
        assert [node.op_type for node in model.graph].count("RandomNormalLike") == 2
    found = verify(original, model, generate_samples(original, 3, 0), run=RunSettings(1))
    assert [text.partition(":")[0] for text in found.failures] == [CHANGED] * inlined
    assert found.standard.outputs["z"].deviation.max_abs < 1e-5
    assert found.random_ops == 1


def test_lengths_that_depend_on_values_are_reported() -> None:
    found = verified(LENGTH)
    assert all(check.codes for check in found.standard.sites.values())
    assert verified(LENGTH, preset("identity")).passed


def test_strings_are_compared_as_what_they_are() -> None:
    assert verified(STRING, preset("identity")).standard.outputs["z"].deviation.relative_error == 0.0
    assert verified(STRING).passed


SEQUENCE = TWO.replace("float[B,L,4] z", "seq(float[B,K,4]) z").replace(
    "z = MatMul(q, y)", "u = MatMul(q, y) z = SplitToSequence<axis=1>(u, parts)"
)
TYPES = TWO.replace("float[B,L,4] x", "bfloat16[B,L,4] h").replace("float[B,L,4] z", "{0}[B,L,4] z")
TYPES = TYPES.replace("{ xt", "{{ x = Cast<to=1>(h) xt").replace(
    "z = MatMul(q, y)", "u = MatMul(q, y) z = Cast<to={1}>(u)"
)
TYPES = TYPES.replace("y) }", "y) }}").replace("(u) }", "(u) }}")


@pytest.mark.parametrize(("kind", "number"), [("bfloat16", 16), ("float8e4m3fn", 17), ("float8e5m2", 19)])
def test_types_that_numpy_does_not_have_are_compared_as_numbers(kind: str, number: int) -> None:
    found = verified(TYPES.format(kind, number), opset=19)
    assert found.passed, found.failures
    assert found.standard.codes.codes
    output = found.standard.outputs["z"].deviation
    assert 0.0 < output.relative_error < 0.3  # by equality alone it would be 0 or near 1
    assert output.cosine > 0.9


@pytest.mark.parametrize("parts", ["Constant<value_int=1>()", "Constant<value_ints=[2,1,-1]>()"])
def test_a_sequence_is_compared_tensor_by_tensor(parts: str) -> None:
    given = "parts = " + parts.replace(",-1]", "]")
    text = SEQUENCE.replace("{ xt", "{ " + given + " xt")
    original = parse(text)
    model = rewritten(original)
    samples = [{"x": np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)} for seed in range(3)]
    found = verify(original, model, samples)
    assert found.passed, found.failures
    assert found.standard.outputs["z"].deviation.values == 3 * 2 * 3 * 4
    assert found.standard.outputs["z"].deviation.max_abs > 0.0


def test_sequences_of_other_shapes_differ_though_their_elements_do_not() -> None:
    a, b = (
        parse(SEQUENCE.replace("{ xt", f"{{ parts = Constant<value_ints=[{n}]>() xt"), opset=17) for n in ("2,1", "1,2")
    )
    (sample,) = ({"x": np.ones((2, 3, 4), np.float32)},)
    assert verify(a, b, [sample]).failures == (
        "standard: output 'z': the shape is [[2, 2, 4], [2, 1, 4]] in A and [[2, 1, 4], [2, 2, 4]] in B",
    )


def with_nan(guard: str, scheme: str) -> Verification:
    """A row of x is NaN, and so are its probabilities."""
    original = parse(TWO.replace("q = Softmax<axis=-1>(t)", guard), inferred=True)
    model = rewritten(original, preset(scheme))
    x = np.random.default_rng(0).normal(size=(4, 2, 4)).astype(np.float32)
    x[0] = np.nan
    return verify(original, model, [{"x": x}])


@pytest.mark.parametrize("scheme", ["row-log", "ji2021"])
def test_probabilities_that_are_nan_in_both_are_reported_with_their_share(scheme: str) -> None:
    found = with_nan("q = Softmax<axis=-1>(t)", scheme)
    assert found.passed, found.failures
    shares = [note for note in found.notes if "probabilities are NaN" in note]
    assert len(shares) == len(found.standard.sites) == 2
    assert all(": 25.0% of the probabilities are NaN, before and after" in note for note in shares)


def test_probabilities_that_are_nan_in_one_only_are_errors() -> None:
    nan, number = np.full((1, 4), np.nan), np.full((1, 4), 0.25)
    for source, result in ((nan, number), (number, nan)):
        check = check_rows(source, result, preset(), is_scores=True)
        assert (check.errors, check.not_finite) == (4, 0)
    assert check_rows(nan, nan, preset(), is_scores=True).not_finite == 4


@pytest.mark.parametrize("memory", [1, 2**30])
def test_the_memory_budget_does_not_change_the_result(memory: int) -> None:
    small, large = verified(TWO, memory=memory), verified(TWO)
    assert small.to_json() == large.to_json()


def test_samples_that_prove_little_are_said() -> None:
    original = parse(TWO, inferred=True)
    model = rewritten(original)
    same = {"x": np.ones((2, 5, 4), np.float32)}
    assert verify(original, model, [same]).notes == (
        "the samples prove little: 100% of the rows are uniform, one-hot or NaN",
    )


WEIGHTS = TWO.replace("z = MatMul(q, y)", "u = MatMul(q, y) z = Mul(u, w)").replace(
    "{ xt", "<float[4] w = {1, 2, 3, 4}> { yes = Constant<value=bool {1}>() xt"
)
BRANCHES = WEIGHTS.replace(
    "z = Mul(u, w)",
    "z = If(yes) <then_branch = a () => (float[B,L,4] v) { c = Constant<value=float {2.0}>() v = Mul(u, c) },"
    " else_branch = b () => (float[B,L,4] v) { c = Constant<value=float {3.0}>() v = Mul(u, c) }>",
).replace("<float[4] w = {1, 2, 3, 4}> ", "")


@pytest.mark.parametrize("tensor", [np.array([1, 2, 3, 5], np.float32), np.array([[1, 2, 3, 4]], np.float32)])
def test_another_weight_fails_and_is_named(tensor: np.ndarray) -> None:
    original = parse(WEIGHTS, inferred=True)
    model = rewritten(original)
    samples = generate_samples(original, 2, 0)
    assert verify(original, model, samples).passed
    model.graph.initializers["w"].const_value = ir.tensor(tensor, name="w")
    found = verify(original, model, samples)
    assert found.failures == ("weight 'w' is not that of A",)
    assert found.to_json()["rewrite"]["other_weights"] == ["w"]


def test_another_weight_of_a_branch_fails_though_the_other_branch_has_one_of_its_name() -> None:
    original = parse(BRANCHES, inferred=True)
    model = rewritten(original)
    samples = generate_samples(original, 2, 0)
    assert verify(original, model, samples).passed
    (node,) = (node for node in model.graph if node.op_type == "If")
    constant = next(n for n in node.attributes["else_branch"].as_graph() if n.op_type == "Constant")
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor([2.0]))
    assert verify(original, model, samples).failures == ("weight 'c' is not that of A",)


def test_functions_of_another_opset_that_hold_no_attention_are_no_error() -> None:
    original = parse(NOISE.replace("n = RandomNormalLike(u)", "n = own.shift(u)"))
    shift = parse("(float[N] x) => (float[N] r) { r = Relu(x) }", opset=13).graph
    original.functions["own", "shift", ""] = ir.Function("own", "shift", graph=shift, attributes=[])
    original.graph.opset_imports["own"] = 1
    found = verify(original, rewritten(original), generate_samples(original, 2, 0), run=RunSettings(1))
    assert found.passed, found.failures
