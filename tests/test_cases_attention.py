"""What the op for a whole attention takes, what fused ops show, and what is said where products stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import parser
from onnx.reference import ReferenceEvaluator
from test_cases_graphs import CASES, QKV, compressed, masked, save

from onnx_attnq.cli.group import cli
from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import Form, expose, find_sites
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import Session
from onnx_attnq.scheme import preset
from onnx_attnq.verification import VerifySettings


def test_masked_scores_are_shown_as_onnxruntime_shows_them(tmp_path: Path) -> None:
    sample = dict(np.load(CASES / "attention23_qk_mode2.npz"))
    given = VerifySettings(samples=(sample,))
    path = CASES / "attention23_qk_mode2.onnx"
    settings = RewriteSettings(preset("identity"), keep_fused=False)
    result = compress(path, tmp_path / "o.onnx", rewriting=settings, verification=given)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    expected, actual = (Session(load(p)).run(sample)["QK"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert np.isfinite(actual).all()


def test_one_causal_query_with_a_past_sees_what_the_operators_text_says_and_fails_in_onnxruntime(
    tmp_path: Path,
) -> None:
    """onnxruntime lets it see all new keys; onnx's own evaluator does not."""
    text = (
        '<ir_version: 11, opset_import: ["" : 23]> g (float[1,1,1,1] q, float[1,1,4,1] k, float[1,1,4,1] v, '
        "float[1,1,3,1] pk, float[1,1,3,1] pv) => (float[1,1,1,1] y, float[1,1,7,1] nk, float[1,1,7,1] nv) "
        "{ y, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv) }"
    )
    keys = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    sample = {"q": np.zeros((1, 1, 1, 1), np.float32), "k": keys, "v": keys + 10, "pk": keys[:, :, :3]}
    sample["pv"] = sample["pk"]
    path, settings = save(text, tmp_path / "m.onnx"), RewriteSettings(preset("identity"), keep_fused=False)
    compress(path, tmp_path / "o.onnx", rewriting=settings, verification=None)
    by_text = ReferenceEvaluator(str(path)).run(["y"], sample)[0]
    np.testing.assert_allclose(Session(load(tmp_path / "o.onnx")).run(sample)["y"], by_text)
    assert by_text.item() == pytest.approx((0 + 1 + 2 + 10) / 4)
    result = compress(path, tmp_path / "n.onnx", rewriting=settings, verification=VerifySettings((sample,)))
    assert result.failed
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("dtype", ["float", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("inputs", ["", ", bool[5,5] m", ", {}[5,5] m"])
@pytest.mark.parametrize("causal", ["is_causal=0", "is_causal=1", "is_causal=1, softcap=2.0", "softcap=0.5"])
def test_onnx_attention_keeps_its_products_in_the_op(dtype: str, inputs: str, causal: str, tmp_path: Path) -> None:
    mask = inputs.format(dtype)
    text = (
        f'<ir_version: 11, opset_import: ["" : 23]> g ({dtype}[1,2,5,8] q, {dtype}[1,2,5,8] k, {dtype}[1,2,5,8] v{mask}) '
        f"=> ({dtype}[1,2,5,8] y) {{ y = Attention<{causal}>(q, k, v{', m' if mask else ''}) }}"
    )
    result = compressed(save(text, tmp_path / "m.onnx"), tmp_path, "identity")
    assert [site.form for site in result.sites.sites] == [Form.ATTENTION]


SINK = masked("e = Expand(sink, size) x = Concat<axis=3>(s, e)", "float[1,2,1,1] sink, int64[4] size")
SINK = SINK.replace("p = Softmax<axis=-1>(x)", "w = Softmax<axis=-1>(x) a = Constant<value_ints=[0]>() "
    "b = Constant<value_ints=[-1]>() c = Constant<value_ints=[3]>() p = Slice(w, a, b, c)")  # fmt: skip
DOUBLE = (
    '<ir_version: 11, opset_import: ["" : 23]> g (double[1,2,5,8] q, double[1,2,5,8] k, double[1,2,5,8] v) '
    "=> (double[1,2,5,8] y) { y = Attention(q, k, v) }"
)
GALLERY_SINK = CASES.parent / "gallery" / "fused_gqa__sink.onnx"


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        (SINK, "a sink, which Concat 'x' puts beside the scores, belongs to no key", "the products stay, as a sink"),
        (DOUBLE, "the scores are double, and one op for all computes in float32", "the products stay, as the scores"),
        (
            None,
            "a sink, which Concat",
            "with the native library one op takes the place of the whole GroupQueryAttention",
        ),
    ],
    ids=["sink", "double", "sink of a fused op"],
)
def test_it_is_said_why_products_stay(text: str | None, reason: str, told: str, tmp_path: Path) -> None:
    path = GALLERY_SINK if text is None else save(text, tmp_path / "m.onnx")
    (site,) = find_sites(expose(load(path))).sites
    assert site.form is Form.SOFTMAX
    assert site.softmax_only.startswith(reason)
    done = CliRunner().invoke(cli, ["inspect", str(path), "--json", str(tmp_path / "i.json")])
    assert f"note: {told}" in " ".join(done.output.split())
    assert json.loads((tmp_path / "i.json").read_text())["sites"][0]["softmax_only"] == site.softmax_only


CAP = "float two = {2.0}, float half = {0.5}, float minus = {-2.0}, float[2,1,1] heads = {2.0, 3.0}"


def capped(steps: str, path: Path) -> Path:
    text = masked(steps, "float[L,L] m, bool[L,L] c").replace("<float low", f"<{CAP}, float low")
    return save(text, path)


@pytest.mark.parametrize(
    ("steps", "softcap", "scale"),
    [
        ("d = Div(s, two) t = Tanh(d) x = Mul(t, two)", 2.0, 1.0),
        ("d = Mul(s, half) e = Mul(d, half) t = Tanh(e) x = Mul(two, t)", 2.0, 0.5),
        ("d = Mul(s, two) t = Tanh(d) x = Mul(t, half)", 0.5, 1.0),
        ("t = Tanh(s) x = Identity(t)", 1.0, 1.0),
        ("d = Div(s, two) t = Tanh(d) u = Mul(t, two) x = Add(u, m)", 2.0, 1.0),
        ("d = Div(s, two) t = Tanh(d) u = Mul(t, two) w = Where(c, u, nine) x = Identity(w)", 2.0, 1.0),
    ],
)
@pytest.mark.parametrize("scheme", ["identity", "row-log", pytest.param("ji2021", marks=pytest.mark.slow)])
def test_scores_that_are_capped_keep_their_products_in_the_op(
    steps: str, softcap: float, scale: float, scheme: str, tmp_path: Path
) -> None:
    result = compressed(capped(steps, tmp_path / "m.onnx"), tmp_path, scheme)
    (site,) = result.sites.sites
    assert site.attention is not None
    assert (site.attention.softcap, site.attention.scale) == (softcap, scale)
    assert [f.name.endswith("_softcap") for f in load(tmp_path / "out.onnx").functions.values()] == [True]


@pytest.mark.parametrize(
    "steps",
    [
        "d = Div(s, two) t = Tanh(d) x = Mul(t, minus)",  # no cap: it turns the scores round
        "d = Div(s, two) t = Tanh(d) u = Tanh(t) x = Mul(u, two)",
        "d = Add(s, m) t = Tanh(d) x = Mul(t, two)",  # the mask is capped too
        "d = Div(s, two) t = Tanh(d) x = Mul(t, heads)",
    ],
)
def test_tanh_that_is_no_softcap_stays_outside(steps: str, tmp_path: Path) -> None:
    result = compressed(capped(steps, tmp_path / "m.onnx"), tmp_path, "identity")
    assert [site.form for site in result.sites.sites] == [Form.SOFTMAX]


def test_sites_with_and_without_a_cap_have_a_body_each(tmp_path: Path) -> None:
    path = capped("d = Div(s, two) t = Tanh(d) x = Mul(t, two)", tmp_path / "m.onnx")
    proto = onnx.load(path)
    more = parser.parse_graph(
        "g (float[1,2,L,4] r, float[1,2,4,L] kt, float[1,2,L,4] v) => (float[1,2,L,4] y) "
        "{ s2 = MatMul(r, kt) p2 = Softmax<axis=-1>(s2) y = MatMul(p2, v) }"
    )
    proto.graph.node[-1].output[0] = "r"
    proto.graph.node.extend(more.node)
    onnx.save(proto, path)
    compressed(path, tmp_path, "identity")
    names = {function.name for function in load(tmp_path / "out.onnx").functions.values()}
    assert {name.endswith("_softcap") for name in names} == {True, False}


def test_nodes_that_run_are_counted(tmp_path: Path) -> None:
    path = save(masked("x = Identity(s)"), tmp_path / "m.onnx")
    with_functions, inlined = (
        compress(path, tmp_path / "o.onnx", rewriting=RewriteSettings(inline=inline), verification=None)
        for inline in (False, True)
    )
    assert with_functions.nodes[0] == inlined.nodes[0] == 5
    assert inlined.nodes[1] == sum(1 for _ in load(tmp_path / "o.onnx").graph.all_nodes())
    (function,) = load(compress(path, tmp_path / "p.onnx", verification=None).output or "").functions.values()
    assert with_functions.nodes[1] >= len(function)


@pytest.mark.parametrize("opset", [9, 10])
def test_opset_9_and_10_are_converted(opset: int, tmp_path: Path) -> None:
    text = (
        f'<ir_version: 4, opset_import: ["" : {opset}]> g ({QKV}) => (float[1,2,L,4] y) {{ '
        "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) p = Softmax<axis=3>(s) "
        "d = Dropout<ratio=0.0>(p) y = MatMul(d, v) }"
    )
    path = save(text, tmp_path / "m.onnx")
    compressed(path, tmp_path, "identity")
    sample = {name: np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32) for name in "qkv"}
    expected, actual = (onnxruntime.InferenceSession(p).run(None, sample)[0] for p in (path, tmp_path / "out.onnx"))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    text = '<ir_version: 4, opset_import: ["" : 9]> g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }'
    model = parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(InvalidModel, match="opset 9 is not supported: 11 and later are"):
        load(tmp_path / "m.onnx")
