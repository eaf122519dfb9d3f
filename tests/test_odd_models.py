"""Attention in unusual places and spellings, through compress, verify and revert: right, or declined with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import parse

from onnx_attnq.errors import InvalidData, NothingToRewrite
from onnx_attnq.find import expose, find_sites
from onnx_attnq.job import compress
from onnx_attnq.model import load, structure_hash
from onnx_attnq.rewriting import revert
from onnx_attnq.verification import verify

IN = "float[B,L,8] x, float[8,8] w1, float[8,8] w2, float[8,8] w3"
QKV = "q = MatMul(x, w1) k = MatMul(x, w2) v = MatMul(x, w3)"
SCORES = f"{QKV} kt = Transpose<perm = [0, 2, 1]>(k) s0 = MatMul(q, kt)"
REST = "c = MatMul(p, v) y = Add(c, x)"


def graph(nodes: str, inputs: str = IN, outputs: str = "float[B,L,8] y") -> str:
    return f"({inputs}) => ({outputs}) {{ {nodes} }}"


REWRITTEN = {
    "mask of one axis": graph(
        f"{SCORES} low = Constant<value_float = -1e9>() s = Where(m, s0, low) p = Softmax<axis = -1>(s) {REST}",
        f"{IN}, bool[L] m",
    ),
    "keys on axis 1": graph(
        f"{QKV} qt = Transpose<perm = [0, 2, 1]>(q) s0 = MatMul(k, qt) p0 = Softmax<axis = 1>(s0) "
        f"p = Transpose<perm = [0, 2, 1]>(p0) {REST}"
    ),
    "bias of distances that are computed": graph(
        f"{SCORES} n1 = Shape<start = 1, end = 2>(x) zero = Constant<value_int = 0>() one = Constant<value_int = 1>() "
        "a0 = Constant<value = int64[1] {0}>() a1 = Constant<value = int64[1] {1}>() n = Squeeze(n1, a0) "
        "r = Range(zero, n, one) f = Cast<to = 1>(r) row = Unsqueeze(f, a0) column = Unsqueeze(f, a1) "
        "d = Sub(row, column) far = Abs(d) slope = Constant<value_float = -0.25>() bias = Mul(far, slope) "
        f"s = Add(s0, bias) p = Softmax<axis = -1>(s) {REST}"
    ),
    "packed, of uneven widths": graph(
        "h = MatMul(x, w1) sizes = Constant<value = int64[3] {6, 6, 8}>() q, k, v = Split<axis = 2>(h, sizes) "
        f"kt = Transpose<perm = [0, 2, 1]>(k) s0 = MatMul(q, kt) p = Softmax<axis = -1>(s0) {REST}",
        "float[B,L,8] x, float[8,20] w1",
    ),
    "cache before the keys on axis 1": graph(
        f"{QKV} nk = Concat<axis = 1>(pk, k) nv = Concat<axis = 1>(pv, v) kt = Transpose<perm = [0, 2, 1]>(nk) "
        "s0 = MatMul(q, kt) p = Softmax<axis = -1>(s0) c = MatMul(p, nv) y = Add(c, x)",
        f"{IN}, float[B,P,8] pk, float[B,P,8] pv",
        "float[B,L,8] y, float[B,T,8] nk, float[B,T,8] nv",
    ),
    "Exp of LogSoftmax": graph(f"{SCORES} l = LogSoftmax<axis = -1>(s0) p = Exp(l) {REST}"),
    "Exp, ReduceSum and Div": graph(
        f"{SCORES} top = ReduceMax<axes = [2]>(s0) d = Sub(s0, top) e = Exp(d) a = Constant<value = int64[1] {{2}}>() "
        f"t = ReduceSum(e, a) p = Div(e, t) {REST}"
    ),
    "one product of query and key for two": graph(
        f"{SCORES} p = Softmax<axis = -1>(s0) c1 = MatMul(p, v) half = Constant<value_float = 0.5>() "
        "s2 = Mul(s0, half) p2 = Softmax<axis = -1>(s2) c2 = MatMul(p2, q) c = Add(c1, c2) y = Add(c, x)"
    ),
    "probabilities that are an output, too": graph(
        f"{SCORES} p = Softmax<axis = -1>(s0) {REST}", outputs="float[B,L,8] y, float[B,L,L] p"
    ),
    "a key more, which has no value": graph(
        f"{SCORES} sizes = Shape<end = 2>(s0) one = Constant<value = int64[1] {{1}}>() "
        "all = Concat<axis = 0>(sizes, one) zero = Constant<value_float = 0.0>() sink = Expand(zero, all) "
        "s = Concat<axis = 2>(s0, sink) p0 = Softmax<axis = -1>(s) from = Constant<value = int64[1] {0}>() "
        f"to = Constant<value = int64[1] {{-1}}>() a = Constant<value = int64[1] {{2}}>() p = Slice(p0, from, to, a) {REST}"
    ),
    "the best four keys": graph(
        f"{SCORES} four = Constant<value = int64[1] {{4}}>() best, where = TopK<axis = -1>(s0, four) "
        "p0 = Softmax<axis = -1>(best) zero = Constant<value_float = 0.0>() sizes = Shape(s0) "
        f"none = Expand(zero, sizes) p = ScatterElements<axis = 2>(none, where, p0) {REST}"
    ),
    "hidden rows made zero": graph(
        f"{SCORES} low = Constant<value = float {{-inf}}>() s = Where(m, s0, low) p0 = Softmax<axis = -1>(s) "
        f"bad = IsNaN(p0) zero = Constant<value_float = 0.0>() p = Where(bad, zero, p0) {REST}",
        f"{IN}, bool[B,L,L] m",
    ),
    "heads mixed by a product": graph(
        "kt = Transpose<perm = [0, 1, 3, 2]>(x) s0 = MatMul(x, kt) p0 = Softmax<axis = -1>(s0) "
        "last = Transpose<perm = [0, 2, 3, 1]>(p0) mixed = MatMul(last, w1) p = Transpose<perm = [0, 3, 1, 2]>(mixed) "
        "y = MatMul(p, x)",
        "float[B,2,L,8] x, float[2,2] w1",
        "float[B,2,L,8] y",
    ),
    "in a Scan, without shapes": graph(
        "y = Scan<num_scan_inputs = 1, body = b (float[L,8] h) => (float[L,8] o) { q = MatMul(h, w1) k = MatMul(h, w2) "
        "v = MatMul(h, w3) kt = Transpose<perm = [1, 0]>(k) s = MatMul(q, kt) p = Softmax<axis = -1>(s) "
        "c = MatMul(p, v) o = Add(c, h) }>(x)"
    ),
    "in a Scan along axis 1, backwards": graph(
        "from = Constant<value = float[1] {0}>() to, y = Scan<num_scan_inputs = 1, scan_input_axes = [1], "
        "scan_output_axes = [1], scan_output_directions = [1], scan_input_directions = [1], "
        "body = b (float[1] u, float[B,8] h) => (float[1] t, float[B,8] o) { t = Identity(u) q = MatMul(h, w1) "
        "kt = Transpose<perm = [1, 0]>(h) s = MatMul(q, kt) p = Softmax<axis = -1>(s) c = MatMul(p, h) o = Add(c, h) "
        "}>(from, x)",
        "float[B,L,8] x, float[8,8] w1",
    ),
    "in a Scan in a Scan": graph(
        "y = Scan<num_scan_inputs = 1, body = o (float[2,L,8] g) => (float[2,L,8] z) { z = Scan<num_scan_inputs = 1, "
        "body = b (float[L,8] h) => (float[L,8] o) { q = MatMul(h, w1) kt = Transpose<perm = [1, 0]>(h) "
        "s = MatMul(q, kt) p = Softmax<axis = -1>(s) c = MatMul(p, h) o = Add(c, h) }>(g) }>(x)",
        "float[B,2,L,8] x, float[8,8] w1",
        "float[B,2,L,8] y",
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_odd_attention_is_rewritten_verified_and_given_back(name: str, tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    ir.save(parse(REWRITTEN[name]), path)
    result = compress(path, out)
    assert result.verification is not None
    assert result.verification.passed, result.verification
    assert result.verification.rewrite is not None  # the identity scheme gives what the original gives
    back = load(out)
    revert(back)
    assert structure_hash(back) == structure_hash(load(path))


def test_branches_that_a_loop_takes_in_turns_cannot_be_shown_and_the_line_says_so(tmp_path: Path) -> None:
    """onnxruntime stacks what iterations give, and a branch that was not taken gives nothing."""
    attend = "kt = Transpose<perm = [0, 2, 1]>(h) s = MatMul(h, kt) p = Softmax<axis = -1>(s)"
    text = graph(
        "n = Constant<value_int = 2>() y = Loop(n, , x) <body = b (int64 i, bool go, float[B,L,8] h) "
        "=> (bool stay, float[B,L,8] o) { stay = Identity(go) zero = Constant<value_int = 0>() first = Equal(i, zero) "
        f"o = If(first) <then_branch = t () => (float[B,L,8] u) {{ {attend} u = MatMul(p, h) }}, "
        "else_branch = e () => (float[B,L,8] w) { w = Exp(h) }> }>",
        "float[B,L,8] x",
    )
    ir.save(parse(text), tmp_path / "model.onnx")
    with pytest.raises(InvalidData, match=r"different branches, leave out the sites in these \(--exclude\)"):
        compress(tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_scores_that_were_rounded_to_halves_keep_their_product(tmp_path: Path) -> None:
    text = graph(
        "xt = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, xt) f = Cast<to = 1>(s) pf = Softmax<axis = -1>(f) "
        "p = Cast<to = 10>(pf) y = MatMul(p, x)",
        "float16[B,L,8] x",
        "float16[B,L,8] y",
    )
    (site,) = find_sites(expose(parse(text))).sites
    assert site.softmax_only == "Cast 'Cast_f' takes scores of another type, to which they were rounded"


DECLINED = {
    "softmax over the queries": (
        graph(f"{SCORES} p = Softmax<axis = 1>(s0) {REST}"),
        "MatMul 'MatMul_c' multiplies it along another axis",
    ),
    "keys that are weights": (
        graph(
            "q = MatMul(x, w1) kt = Transpose<perm = [1, 0]>(w2) s0 = MatMul(q, kt) p = Softmax<axis = -1>(s0) "
            "c = MatMul(p, w3) y = Add(c, x)",
            "float[B,L,8] x, float[8,8] w1, float[1,8] w2, float[1,8] w3",
        ),
        "the softmax runs over an axis that a weight of MatMul 'MatMul_s0' supplies",
    ),
    "linear attention": (
        graph(
            f"{QKV} a = Softmax<axis = -1>(q) b = Softmax<axis = 1>(k) bt = Transpose<perm = [0, 2, 1]>(b) "
            "kv = MatMul(bt, v) c = MatMul(a, kv) y = Add(c, x)"
        ),
        "as in a router, a classifier or the features of linear attention",
    ),
    "no value": (graph(f"{SCORES} p = Softmax<axis = -1>(s0)", outputs="float[B,L,L] p"), "no product with V follows"),
    "no softmax": (graph(f"{SCORES} p = Hardmax<axis = -1>(s0) {REST}"), "the model has no softmax"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_no_attention_is_declined_with_the_reason(name: str, tmp_path: Path) -> None:
    text, reason = DECLINED[name]
    ir.save(parse(text), tmp_path / "model.onnx")
    with pytest.raises(NothingToRewrite, match=reason):
        compress(tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("name", ["Exp, ReduceSum and Div", "Exp of LogSoftmax", "keys on axis 1"])
def test_rows_of_nan_stay_so_on_standard_and_native_ops(name: str, tmp_path: Path) -> None:
    model = parse(REWRITTEN[name])
    ir.save(model, tmp_path / "model.onnx")
    compress(tmp_path / "model.onnx", tmp_path / "out.onnx", verification=None)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    x[-1, -1, -1] = np.nan
    found = verify(load(tmp_path / "model.onnx"), load(tmp_path / "out.onnx"), ({"x": x},))
    assert found.passed, found
