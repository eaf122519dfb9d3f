"""Graphs that were once rewritten wrongly, or declined for the wrong reason; each file has one oddity in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import Form, Sites, expose, find_sites
from onnx_attnq.job import Compression, compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import Session
from onnx_attnq.scheme import PRESETS, preset
from onnx_attnq.verification import SiteRows, VerifySettings

CASES = Path(__file__).parent / "cases"
QKV = "float[1,2,L,4] q, float[1,2,L,4] k, float[1,2,L,4] v"


def find(name: str) -> Sites:
    return find_sites(expose(load(CASES / f"{name}.onnx")))


def compressed(source: Path, tmp_path: Path, scheme: str = "row-log") -> Compression:
    settings = RewriteSettings(preset(scheme), keep_fused=False)
    result = compress(source, tmp_path / "out.onnx", rewriting=settings)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    return result


def save(text: str, path: Path) -> Path:
    onnx.save(parser.parse_model(text), path)
    return path


@pytest.mark.parametrize("scheme", ["identity", "row-log"])
@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("mha_ai_onnx_alias", ["attention"]),
        ("mask_rank_above_query", ["softmax"]),
        ("mask_rank5", ["softmax"]),
        ("rank6_neighborhood", ["softmax"]),
        ("function_opset13_in_17", ["attention"]),
        ("transpose_in_if_branch", ["attention"]),
        ("overridable_initializer", ["softmax"]),
        ("masked_fill_1e9", ["attention"]),
        ("dequantize_without_zero_point", ["softmax"]),
        ("name_collision", ["attention"]),
        ("brackets_in_names", ["attention"]),
        ("bfloat16_io", ["attention"]),
        ("string_output", ["attention"]),
        ("nonzero_output", ["attention"]),
        ("data_dependent_length", ["attention"]),
        ("random_noise", ["attention"]),
    ],
)
def test_the_graph_is_rewritten_in_the_form_that_fits(name: str, forms: list[str], scheme: str, tmp_path: Path) -> None:
    result = compressed(CASES / f"{name}.onnx", tmp_path, scheme)
    assert [str(site.form) for site in result.sites.sites] == forms
    assert result.verification is not None
    if scheme == "identity":
        assert all(o.deviation.cosine > 1 - 1e-5 for o in result.verification.standard.outputs.values())


def test_softmax_without_axis_before_opset_13_is_no_attention_row() -> None:
    found = find("opset11_ai_onnx_alias")
    assert not found.sites
    assert "before opset 13" in found.rejections[0].reason


@pytest.mark.parametrize("attribute", ["", "<axis=1>"])
@pytest.mark.parametrize("inside", [False, True], ids=["main graph", "branch of an If"])
def test_the_default_axis_is_that_of_the_opset(attribute: str, inside: bool) -> None:
    chain = f"s = MatMul(q, kt) p = Softmax{attribute}(s) y = MatMul(p, v)"
    if inside:
        chain = (
            f"y = If(c) <then_branch = t () => (float[1,2,L,4] a) {{ {chain.replace('y =', 'a =')} }}, "
            "else_branch = e () => (float[1,2,L,4] b) { b = Identity(q) }>"
        )
    text = f'<ir_version: 7, opset_import: ["" : 11]> g ({QKV}, bool c) => (float[1,2,L,4] y) {{ kt = Transpose<perm=[0,1,3,2]>(k) {chain} }}'
    found = find_sites(ir.from_onnx_text(text))
    assert not found.sites
    assert "axis 1" in found.rejections[0].reason


def test_a_custom_op_called_mul_is_followed_by_nobody() -> None:
    (site,) = find("custom_domain_mul").sites
    assert site.form is Form.SOFTMAX  # how many axes its result has is unknown; with shapes it is the query as it is
    text = masked("", "float one_more").replace('"" : 21', '"" : 21, "my" : 1')
    steps = "s = MatMul(q, kt)", "w = my.Mul(q, one) s = MatMul(w, kt) x = Identity(s)"
    model = ir.from_onnx_text(text.replace(*steps))
    next(v for node in model.graph for v in node.outputs if v.name == "w").shape = ir.Shape([1, 2, None, 4])
    (site,) = find_sites(model).sites
    assert site.attention is not None
    assert (site.attention.query.value.name, site.attention.scale) == ("w", 1.0)


def test_learned_queries_that_attend_to_one_another_are_said_to_be_constant() -> None:
    found = find("learned_queries")
    assert [site.id for site in found.sites] == ["ca/Softmax", "sa2/Softmax"]
    assert "do not depend on the model's inputs" in found.rejections[0].reason


def test_the_query_of_group_query_attention_has_three_axes_whatever_the_graph_says() -> None:
    found = find("gqa_without_value_info")
    assert found.sites
    assert not found.rejections


def test_an_overridden_initializer_counts(tmp_path: Path) -> None:
    path = CASES / "overridable_initializer.onnx"
    compressed(path, tmp_path, "identity")
    random = np.random.default_rng(0)
    feed = {
        i.name: random.normal(size=[d if isinstance(d, int) else 3 for d in i.shape]).astype("f")
        for i in onnxruntime.InferenceSession(path).get_inputs()
    }
    feed["sc"] = np.array(3.0, np.float32)
    expected, actual = (onnxruntime.InferenceSession(p).run(None, feed)[0] for p in (path, tmp_path / "out.onnx"))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


# --- masks


LOW = "-3.4028234e38"


def masked(steps: str, inputs: str = "float[L,L] m, bool[L,L] c") -> str:
    return (
        f'<ir_version: 10, opset_import: ["" : 21]> g ({QKV}, {inputs}) => (float[1,2,L,4] y) '
        f"<float low = {{{LOW}}}, float nine = {{-1e9}}, float four = {{-1e4}}, float one = {{-1.0}}, "
        "float near = {-9e29}, float far = {-1.1e30}> "
        f"{{ kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) {steps} p = Softmax<axis=-1>(x) y = MatMul(p, v) }}"
    )


@pytest.mark.parametrize(
    ("steps", "form"),
    [
        ("x = Where(c, s, nine)", Form.ATTENTION),
        ("x = Where(c, four, s)", Form.ATTENTION),
        ("w = Where(c, s, nine) n = Not(c) x = Where(n, w, nine)", Form.ATTENTION),
        ("a = Add(s, m) x = Max(a, low)", Form.ATTENTION),
        ("x = Where(c, s, one)", Form.SOFTMAX),
        ("x = Max(s, four)", Form.SOFTMAX),
        ("x = Max(s, near)", Form.SOFTMAX),  # just above and just below what counts as the lowest
        ("x = Max(s, far)", Form.ATTENTION),
        ("w = Where(c, s, near) x = Add(w, m)", Form.SOFTMAX),
        ("w = Where(c, s, far) x = Add(w, m)", Form.ATTENTION),
        ("w = Where(c, s, four) x = Add(w, m)", Form.SOFTMAX),  # which of the masks weighs more is up to m
        ("w = Where(c, s, four) n = Not(c) x = Where(n, w, nine)", Form.SOFTMAX),
    ],
)
def test_a_mask_has_the_effect_that_it_had(steps: str, form: Form, tmp_path: Path) -> None:
    """Rows that are masked altogether, too: flat, or what the runtime makes of them."""
    path = save(masked(steps), tmp_path / "m.onnx")
    random = np.random.default_rng(1)
    sample = {n: random.normal(size=(1, 2, 5, 4)).astype(np.float32) * 20 for n in "qkv"}
    sample["c"] = random.random((5, 5)) < 0.5
    sample["m"] = np.where(random.random((5, 5)) < 0.5, 0, -np.inf).astype(np.float32)
    sample["m"][2], sample["c"][2], sample["c"][3] = -np.inf, True, False
    inputs = {i.name for i in load(path).graph.inputs}
    sample = {name: sample[name] for name in inputs}
    result = compress(path, tmp_path / "o.onnx", scheme=preset("identity"), verification=VerifySettings((sample,)))
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    assert [site.form for site in result.sites.sites] == [form]
    expected, actual = (Session(load(p)).run(sample)["y"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [*PRESETS, "row-log:pruned=mean"])
@pytest.mark.parametrize("filled", ["nine", "four"])
def test_codes_beside_filled_keys_are_right_also_for_scores_of_a_thousand(
    filled: str, scheme: str, tmp_path: Path
) -> None:
    """Float32 rounds such scores at 1e-4, which moves values that are kept as they are."""
    path = save(masked(f"x = Where(c, s, {filled})", "bool[L,L] c"), tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    samples = tuple(
        {n: random.normal(size=(1, 2, 9, 4)).astype(np.float32) * 20 for n in "qkv"}
        | {"c": random.random((9, 9)) < 0.7}
        for _ in range(4)
    )
    name, _, fields = scheme.partition(":")
    given = preset(name, **({"pruned": "mean"} if fields else {}))
    result = compress(path, tmp_path / "o.onnx", scheme=given, verification=VerifySettings(samples))
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    assert result.sites.sites[0].form is Form.ATTENTION


def test_masked_keys_do_not_make_the_check_of_others_lax(tmp_path: Path) -> None:
    path = save(masked("x = Add(s, m)", "float[L,L] m"), tmp_path / "m.onnx")
    result = compress(path, tmp_path / "o.onnx", verification=None)
    assert result.record is not None
    sample = {n: np.random.default_rng(0).normal(size=(1, 2, 5, 4)).astype(np.float32) for n in "qkv"}
    sample["m"] = np.where(np.eye(5) > 0, -1e9, 0).astype(np.float32)
    (rows,) = SiteRows(load(tmp_path / "o.onnx"), result.record.sites).run(sample)[1]["p"]
    assert rows.score_error[..., ~np.eye(5, dtype=bool)].max() < 1e-5


def test_a_scale_with_more_axes_than_the_scores_is_left_outside(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2,L,4] q, float[2,L,4] k, float[2,L,4] v) => (float[1,2,L,4] y) '
        "<float[1,1,1,1] half = {0.5}> { kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) x = Mul(s, half) "
        "p = Softmax<axis=-1>(x) y = MatMul(p, v) }"
    )
    result = compressed(save(text, tmp_path / "m.onnx"), tmp_path, "identity")
    assert result.sites.sites[0].form is Form.SOFTMAX


# --- functions of another opset


def with_function(body: str, opset: int) -> str:
    return (
        f'<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g ({QKV}) => (float[1,2,L,4] y) {{ y = my.Att(q, k, v) }} '
        f'<domain: "my", opset_import: ["" : {opset}]> Att (q, k, v) => (y) {{ kt = Transpose<perm=[0,1,3,2]>(k) '
        f"s = MatMul(q, kt) {body} y = MatMul(p, v) }}"
    )


def test_a_function_of_an_opset_that_means_another_thing_stays_and_is_named(tmp_path: Path) -> None:
    path = save(with_function("p = Softmax(s)", 11), tmp_path / "m.onnx")  # axis 1 there, -1 here
    with pytest.raises(NothingToRewrite, match=r"function 'Att' imports opset 11 and the model 17, in which Softmax"):
        compress(path)


@pytest.mark.parametrize("opset", [11, 12, 13, 14])
def test_a_function_whose_nodes_mean_the_same_is_inlined(opset: int, tmp_path: Path) -> None:
    path = save(with_function("p = Softmax<axis=3>(s)", opset), tmp_path / "m.onnx")
    compressed(path, tmp_path, "identity")


# --- quantized products


def test_attention_on_dynamically_quantized_products_is_found(tmp_path: Path) -> None:
    steps = """
        kt = Transpose<perm=[0,1,3,2]>(k)
        q8, qs, qz = DynamicQuantizeLinear(q)
        k8, ks, kz = DynamicQuantizeLinear(kt)
        s32 = MatMulInteger(q8, k8, qz, kz)
        sf = Cast<to=1>(s32)
        ss = Mul(qs, ks)
        s = Mul(sf, ss)
        p = Softmax<axis=-1>(s)
        p8, ps, pz = DynamicQuantizeLinear(p)
        v8, vs, vz = DynamicQuantizeLinear(v)
        y32 = MatMulInteger(p8, v8, pz, vz)
        yf = Cast<to=1>(y32)
        ys = Mul(ps, vs)
        y = Mul(yf, ys)"""
    text = f'<ir_version: 10, opset_import: ["" : 17]> g ({QKV}) => (float[1,2,L,4] y) {{ {steps} }}'
    result = compressed(save(text, tmp_path / "m.onnx"), tmp_path)
    assert [site.form for site in result.sites.sites] == [Form.SOFTMAX]


# --- names


def test_a_value_of_the_models_is_not_taken_for_ours(tmp_path: Path) -> None:
    compressed(CASES / "name_collision.onnx", tmp_path, "identity")
    written = load(tmp_path / "out.onnx")
    assert "onnx_attnq_no_mask_2" in written.graph.initializers


def test_an_id_with_brackets_can_be_included(tmp_path: Path) -> None:
    found = find("brackets_in_names").sites[0].id
    assert "[" in found
    chosen = RewriteSettings(include=(found,))
    result = compress(CASES / "brackets_in_names.onnx", tmp_path / "o.onnx", rewriting=chosen, verification=None)
    assert result.record is not None
    assert [site.id for site in result.record.sites] == [found]
