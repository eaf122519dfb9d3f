"""Every softmax is a site or a rejection with a reason, whatever the exporter wrote around it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from attention_forms import FORMS, QKV, SCORES, between
from fused_case import CURRENT_KERNELS
from look_alikes import LOOK_ALIKES
from small_graphs import parse

from onnx_attnq.find import Form, Sites, expose, find_sites
from onnx_attnq.find.softmax import is_softmax
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import load, save, structure_hash
from onnx_attnq.rewriting import rewrite, uniform_plan
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import Limit, Limits, verify

SHAPES = pytest.mark.parametrize("inferred", [False, True], ids=["no shapes", "shapes"])


def find(model: ir.Model) -> Sites:
    return find_sites(expose(model))


@SHAPES
@pytest.mark.parametrize("name", FORMS)
def test_attention_is_found(name: str, inferred: bool) -> None:
    form = FORMS[name]
    model = parse(form.text, opset=form.opset, functions=form.functions, inferred=inferred)
    onnx.checker.check_model(ir.to_proto(model))
    found = find(model)
    assert len(found.sites) == form.sites, found.rejections
    assert not found.rejections
    assert len({site.id for site in found.sites}) == form.sites


@SHAPES
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alike_is_declined_with_its_reason(name: str, inferred: bool) -> None:
    text, reason = LOOK_ALIKES[name]
    model = parse(text, inferred=inferred)
    onnx.checker.check_model(ir.to_proto(model))
    found = find(model)
    assert not found.sites
    assert found.rejections
    for rejection in found.rejections:
        assert re.search(reason, rejection.reason), rejection.reason
        assert "\n" not in rejection.reason


@SHAPES
@pytest.mark.parametrize(
    "softmax",
    [
        "p = Softmax<axis=-1>(s)",
        "r = Softmax<axis=-1>(s) n = IsNaN(r) o = Constant<value_float=0.0>() p = Where(n, o, r)",
        "m = ReduceMax<axes=[-1]>(s) d = Sub(s, m) e = Exp(d) a = Constant<value_ints=[-1]>() z = ReduceSum(e, a)"
        " p = Div(e, z)",
    ],
    ids=["plain", "with a guard", "decomposed"],
)
def test_pooling_the_contexts_of_each_head_is_no_second_attention(softmax: str, inferred: bool) -> None:
    text = (
        f"({QKV}, float[4,1] w) => (float[B,2,1,4] y) {{ {SCORES} {softmax} c = MatMul(p, v) s2 = MatMul(c, w)"
        " p2 = Softmax<axis=-2>(s2) p2t = Transpose<perm=[0,1,3,2]>(p2) y = MatMul(p2t, c) }"
    )
    found = find(parse(text, inferred=inferred))
    assert len(found.sites) == 1
    assert [r.reason for r in found.rejections] == [
        "MatMul 'MatMul_c' is the context of another softmax, not a product of query and key"
    ]


@pytest.mark.parametrize("name", [*FORMS, *LOOK_ALIKES])
def test_every_softmax_is_in_exactly_one_of_the_lists(name: str) -> None:
    form = FORMS.get(name)
    model = (
        parse(LOOK_ALIKES[name][0]) if form is None else parse(form.text, opset=form.opset, functions=form.functions)
    )
    found = find(model)
    listed = [(s.node, s.scope) for s in found.sites] + [(r.node, r.scope) for r in found.rejections]
    assert len(set(listed)) == len(listed)
    softmax = [node for node in model.graph.all_nodes() if is_softmax(node)]
    assert len(softmax) <= len(listed)


# onnxruntime before 1.32 fuses a Transpose into a product of doubles, for which it then has no kernel.
@pytest.mark.parametrize(
    "inferred",
    [pytest.param(False, id="no shapes", marks=pytest.mark.slow), pytest.param(True, id="shapes")],
)
@pytest.mark.parametrize(
    ("scheme", "limited"),
    [
        pytest.param(preset("identity"), True, id="identity"),
        pytest.param(preset(), False, id="three bits", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[CURRENT_KERNELS] if n == "double" else []) for n in FORMS])
def test_identity_in_its_place_changes_nothing_and_three_bits_are_the_right_ones(
    name: str, scheme: QuantScheme, limited: bool, inferred: bool
) -> None:
    form = FORMS[name]
    original = parse(form.text, opset=form.opset, functions=form.functions, inferred=inferred)
    samples = generate_samples(original, 1, 0)
    tolerance = 1e-2 if "float16" in form.text else 1e-5
    model = original.clone()
    sites = find(model)
    plan = uniform_plan(structure_hash(original), [site.id for site in sites.sites], scheme)
    rewrite(model, sites, plan)
    onnx.checker.check_model(ir.to_proto(model))
    limits = Limits((Limit("max_abs", tolerance),)) if limited else Limits()
    result = verify(original, model, samples, limits=limits)
    assert result.passed, result.failures
    assert len(result.standard.sites) == form.sites


def test_a_site_knows_what_a_person_asks_for() -> None:
    (site,) = find(parse(FORMS["scale and additive mask"].text, inferred=True)).sites
    assert site.id == "Softmax_p"
    assert (site.op_type, site.node, site.scope, site.form) == ("Softmax", "Softmax_p", "main", Form.ATTENTION)
    assert site.chain == ("MatMul", "Mul", "Add", "[Softmax]", "MatMul")
    assert site.heads == 2
    assert [p.node.name for p in site.score_products] == ["MatMul_s"]
    assert [p.node.name for p in site.value_products] == ["MatMul_y"]


def test_all_score_and_value_products_are_named() -> None:
    (site,) = find(parse(FORMS["DeBERTa: three products added"].text)).sites
    assert {p.node.name for p in site.score_products} >= {"MatMul_s", "MatMul_qr", "MatMul_kr"} - {"MatMul_qr"}
    (site,) = find(parse(FORMS["one softmax, two products with V"].text)).sites
    assert [p.node.name for p in site.value_products] == ["MatMul_y", "MatMul_z"]


def test_the_scope_names_the_branch() -> None:
    found = find(parse(FORMS["in both branches of an If"].text))
    assert {site.scope for site in found.sites} == {"main/If_y.then_branch", "main/If_y.else_branch"}
    assert all(site.id.startswith("If_y.") for site in found.sites)


def test_softmax_before_opset_13_over_several_axes_is_declined() -> None:
    found = find(parse(between("p = Softmax<axis=2>(s)").text, opset=11))
    assert [r.reason for r in found.rejections] == [
        "before opset 13, Softmax with axis 2 runs over several axes at once, which is no attention row"
    ]


@pytest.mark.parametrize("axis", [3, -1])
def test_version_converter_leaves_attention_that_is_found(axis: int) -> None:
    old = ir.to_proto(parse(between(f"p = Softmax<axis={axis}>(s)").text, opset=11, inferred=True))
    new = onnx.version_converter.convert_version(old, 18)
    assert len(find(ir.from_proto(new)).sites) == 1


def test_a_function_named_softmax_is_not_softmax() -> None:
    text = f"({QKV}) => (float[B,2,L,4] y) {{ {SCORES} p = local.Softmax(s) y = MatMul(p, v) }}"
    body = '<domain: "local", opset_import: ["" : 17]> Softmax (x) => (y) { y = Sigmoid(x) }'
    found = find(parse(text, functions=body))
    assert (found.sites, found.rejections) == ((), ())


def test_nodes_of_one_name_get_ids_of_their_own() -> None:
    model = parse(FORMS["differential: the difference of two softmax"].text)
    for node in model.graph:
        node.name = "n"
    assert [site.id for site in find(model).sites] == ["n", "n#2"]


def test_nodes_without_a_name_are_called_after_their_output() -> None:
    model = parse(FORMS["plain"].text)
    for node in model.graph:
        node.name = None
    assert [site.id for site in find(model).sites] == ["p"]


@pytest.mark.parametrize("name", FORMS)
def test_ids_survive_save_and_load(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    form = FORMS[name]
    model = parse(form.text, opset=form.opset, functions=form.functions)
    save(model, tmp_path / "m.onnx")
    before = [site.id for site in find(model).sites]
    assert [site.id for site in find(load(tmp_path / "m.onnx")).sites] == before


def test_the_story_tells_each_step_to_the_nearest_miss() -> None:
    (rejection,) = find(
        parse(LOOK_ALIKES["pointer: query and keys, but the probabilities are the answer"][0])
    ).rejections
    assert rejection.story == ("scores: MatMul 'MatMul_s' multiplies query and key",)
    (site,) = find(parse(FORMS["scale and additive mask"].text)).sites
    assert site.story[0].startswith("scores: MatMul 'MatMul_s'")
    assert site.story[-1] == "context: MatMul 'MatMul_y' multiplies with V"


def layers(count: int) -> str:
    """Attention layers with one mask, residual connections and a gate over tokens; 14 nodes each."""
    text = [f"(float[B,L,8] x0, float[8,8] w, float[L,L] m) => (float[B,L,8] x{count}) {{"]
    for i in range(count):
        text.append(
            f"q{i} = MatMul(x{i}, w) k{i} = MatMul(x{i}, w) v{i} = MatMul(x{i}, w)"
            f" kt{i} = Transpose<perm=[0,2,1]>(k{i})"
            f" s{i} = MatMul(q{i}, kt{i}) b{i} = Add(s{i}, m) p{i} = Softmax<axis=-1>(b{i}) c{i} = MatMul(p{i}, v{i})"
            f" o{i} = MatMul(c{i}, w) r{i} = Add(x{i}, o{i}) g{i} = MatMul(r{i}, w) e{i} = Softmax<axis=1>(g{i})"
            f" f{i} = Mul(e{i}, r{i}) x{i + 1} = Add(f{i}, r{i})"
        )
    return " ".join([*text, "}"])


def residual(count: int) -> str:
    """Softmax on a residual stream: every one leads back to all before it, and none to a product."""
    steps = [f"p{i} = Softmax<axis=-1>(x{i}) x{i + 1} = Add(x{i}, p{i})" for i in range(count)]
    return f"(float[B,L,8] x0) => (float[B,L,8] x{count}) {{ {' '.join(steps)} }}"


def residual_scores(count: int) -> str:
    """Scores that are added to those of the layer before: every softmax leads back to the products of all layers."""
    steps = [
        f"t{i} = Transpose<perm=[0,2,1]>(x{i}) s{i} = MatMul(x{i}, t{i}) b{i + 1} = Add(s{i}, b{i})"
        f" p{i} = Softmax<axis=-1>(b{i + 1}) c{i} = MatMul(p{i}, x{i}) x{i + 1} = Add(c{i}, x{i})"
        for i in range(count)
    ]
    return f"(float[B,L,8] x0, float[L,L] b0) => (float[B,L,8] x{count}) {{ {' '.join(steps)} }}"


def residual_probabilities(count: int) -> str:
    """Probabilities that are added to all scores that follow: every one leads on to all after it."""
    steps = [f"p{i} = Softmax<axis=-1>(t{i}) t{i + 1} = Add(t{i}, p{i})" for i in range(count)]
    return (
        f"(float[B,L,8] x) => (float[B,L,L] t{count})"
        f" {{ k = Transpose<perm=[0,2,1]>(x) t0 = MatMul(x, k) {' '.join(steps)} }}"
    )


def calls_of(model: ir.Model) -> int:
    """How many functions of Python are called to search a model: work that no other load on the machine changes."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        find_sites(model)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("inferred", [True, False], ids=["with shapes", "without shapes"])
@pytest.mark.parametrize("graph", [layers, residual, residual_scores, residual_probabilities])
def test_the_search_grows_with_the_number_of_nodes_and_not_its_square(
    graph: Callable[[int], str], inferred: bool
) -> None:
    few, many = (parse(graph(count), inferred=inferred) for count in (100, 400))
    assert calls_of(many) < 4.5 * calls_of(few)
    # With what is noted of the original: its hash, its wiring and the ids. For 5,000 nodes 2,500,000 calls, which take
    # 0.8 s where 1,440,000 were measured to take 0.46 s.
    assert calls_of(many) < 550 * sum(1 for _ in many.graph.all_nodes())


def test_each_layer_of_a_large_graph_is_found() -> None:
    found = find_sites(parse(layers(80), inferred=True))
    assert len(found.sites) == len(found.rejections) == 80
