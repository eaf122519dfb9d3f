"""Forms in which exporters write attention, each as a small graph; a form is named after what is peculiar about it."""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True)
class Example:
    """A graph, and how many of its softmax are attention.

    Attributes:
        text: Graph in ONNX text syntax.
        sites: Number of attention sites.
        opset: Of the graph.
        functions: Text of its model-local functions.
    """

    text: str
    sites: int = 1
    opset: int = 17
    functions: str = ""


QKV = "float[B,2,L,4] q, float[B,2,L,4] k, float[B,2,L,4] v"
SCORES = "kt = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, kt)"


def between(nodes: str, inputs: str = "", *, sites: int = 1, opset: int = 17) -> Example:
    """Four-dimensional Q, K and V with ``nodes`` from the scores s to the probabilities p."""
    signature = ", ".join(filter(None, (QKV, inputs)))
    return Example(f"({signature}) => (float[B,2,L,4] y) {{ {SCORES} {nodes} y = MatMul(p, v) }}", sites, opset)


FORMS: Final[dict[str, Example]] = {
    # --- between the product of Q and K and the softmax
    "plain": between("p = Softmax<axis=-1>(s)"),
    "scale and additive mask": between(
        "c = Constant<value_float=0.5>() t = Mul(s, c) u = Add(t, m) p = Softmax<axis=-1>(u)", "float[B,1,1,L] m"
    ),
    "scale on query and key": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ c = Constant<value_float=0.7>() q1 = Mul(q, c)"
        " kt = Transpose<perm=[0,1,3,2]>(k) k1 = Mul(kt, c) s = MatMul(q1, k1) p = Softmax<axis=-1>(s) y ="
        " MatMul(p, v) }"
    ),
    "boolean mask by Where": between(
        "low = Constant<value_float=-10000.0>() t = Where(m, s, low) p = Softmax<axis=-1>(t)", "bool[B,1,L,L] m"
    ),
    "mask made of the scores' own size": between(
        "shape = Shape(s) one = Constant<value_float=1.0>() ones = Expand(one, shape) keep = Trilu<upper=0>(ones)"
        " low = Constant<value_float=-1000.0>() away = Sub(one, keep) bias = Mul(away, low)"
        " t = Add(s, bias) p = Softmax<axis=-1>(t)"
    ),
    "Max after the mask": between(
        "low = Constant<value_float=-1000.0>() u = Add(s, m) t = Max(u, low) p = Softmax<axis=-1>(t)",
        "float[B,1,1,L] m",
    ),
    "Clip after the mask": between(
        "low = Constant<value_float=-1000.0>() u = Add(s, m) t = Clip(u, low) p = Softmax<axis=-1>(t)",
        "float[B,1,1,L] m",
    ),
    "softcap": between(
        "c = Constant<value_float=30.0>() t = Div(s, c) u = Tanh(t) r = Mul(u, c) p = Softmax<axis=-1>(r)"
    ),
    "sigmoid and logarithm of a bias (ALiBi, forget gates)": between(
        "g = Sigmoid(b) l = Log(g) t = Add(s, l) p = Softmax<axis=-1>(t)", "float[B,2,1,L] b"
    ),
    "T5 bias from an embedding": between(
        "e = Gather<axis=0>(wtable, i) b = Transpose<perm=[2,0,1]>(e) zero = Constant<value_ints=[0]>()"
        " bias = Unsqueeze(b, zero) t = Add(s, bias) p = Softmax<axis=-1>(t)",
        "int64[L,L] i, float[8,2] wtable",
    ),
    "DeBERTa: three products added": between(
        "qr = MatMul(q, wr) c2p = GatherElements<axis=-1>(qr, i) krt = Transpose<perm=[0,1,3,2]>(k)"
        " kr = MatMul(wq, krt) p2c = GatherElements<axis=-2>(kr, i) t = Add(s, c2p) u = Add(t, p2c)"
        " p = Softmax<axis=-1>(u)",
        "int64[B,2,L,L] i, float[4,8] wr, float[8,4] wq",
    ),
    "Shaw: product of Q with relative keys by Einsum": between(
        'r = Einsum<equation="bhid,ijd->bhij">(q, rel) t = Add(s, r) p = Softmax<axis=-1>(t)', "float[L,L,4] rel"
    ),
    "SAM: the axis of the keys split into height and width, and merged again": Example(
        "(float[4,6,4] q, float[4,6,4] k, float[4,6,4] v, float[4,2,3,2] h, float[4,2,3,3] b_) => (float[4,6,4] y) {"
        " kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) five = Constant<value_ints=[4,2,3,2,3]>()"
        " s5 = Reshape(s, five) last = Constant<value_ints=[4]>() before = Constant<value_ints=[3]>()"
        " h5 = Unsqueeze(h, last) w5 = Unsqueeze(b_, before) t = Add(s5, h5) u = Add(t, w5)"
        " three = Constant<value_ints=[4,6,6]>() r = Reshape(u, three) p = Softmax<axis=-1>(r) y = MatMul(p, v) }"
    ),
    "Transformer-XL: a second product, its rows shifted by Pad and Reshape": Example(
        "(float[1,2,5,4] q, float[1,2,5,4] k, float[1,2,5,4] v, float[1,2,4,5] wr) => (float[1,2,5,4] y) {"
        f" {SCORES} b = MatMul(q, wr) pads = Constant<value=int64[8] {{0,0,0,1,0,0,0,0}}>() b1 = Pad(b, pads)"
        " n = Constant<value_ints=[1,2,6,5]>() b2 = Reshape(b1, n) one = Constant<value_ints=[1]>()"
        " end = Constant<value_ints=[6]>() two = Constant<value_ints=[2]>() b3 = Slice(b2, one, end, two)"
        " t = Add(s, b3) p = Softmax<axis=-1>(t) y = MatMul(p, v) }"
    ),
    "scores scattered back after top-k": between(
        "n = Constant<value_ints=[2]>() best, where = TopK<axis=-1>(s, n) shape = Shape(s)"
        " low = ConstantOfShape<value = float[1] {-10000.0}>(shape) t = ScatterElements<axis=-1>(low, where, best)"
        " p = Softmax<axis=-1>(t)"
    ),
    # --- the softmax itself
    "LogSoftmax and Exp": between("l = LogSoftmax<axis=-1>(s) p = Exp(l)"),
    "decomposed": between(
        "a = Constant<value_ints=[-1]>() m = ReduceMax<axes=[-1]>(s) d = Sub(s, m) e = Exp(d)"
        " z = ReduceSum<keepdims=1>(e, a) p = Div(e, z)"
    ),
    "decomposed with Reciprocal": between(
        "a = Constant<value_ints=[-1]>() e = Exp(s) z = ReduceSum<keepdims=1>(e, a) r = Reciprocal(z) p = Mul(e, r)"
    ),
    "decomposed with an epsilon": between(
        "a = Constant<value_ints=[-1]>() eps = Constant<value_float=0.000001>() e = Exp(s)"
        " z = ReduceSum<keepdims=1>(e, a) zz = Add(z, eps) p = Div(e, zz)"
    ),
    "decomposed as JAX does, the sum broadcast by Reshape and Expand": between(
        "a = Constant<value_ints=[-1]>() e = Exp(s) z = ReduceSum<keepdims=0>(e, a) n ="
        " Constant<value_ints=[0,0,0,1]>()"
        " z1 = Reshape(z, n) shape = Shape(e) zz = Expand(z1, shape) p = Div(e, zz)"
    ),
    "decomposed with one more in the sum (softmax1)": between(
        "a = Constant<value_ints=[-1]>() one = Constant<value_float=1.0>() e = Exp(s) z = ReduceSum<keepdims=1>(e, a)"
        " zz = Add(one, z) p = Div(e, zz)"
    ),
    "decomposed with a mask behind Exp": between(
        "a = Constant<value_ints=[-1]>() e = Exp(s) zero = Constant<value_float=0.0>() f = Where(m, e, zero)"
        " z = ReduceSum<keepdims=1>(f, a) p = Div(f, z)",
        "bool[B,2,L,L] m",
    ),
    "before opset 13, over the last axis by its number": between("p = Softmax<axis=3>(s)", opset=11),
    "axis -2, V on the left": Example(
        f"({QKV}) => (float[B,2,4,L] y) {{ qt = Transpose<perm=[0,1,3,2]>(q) s = MatMul(k, qt) p ="
        f" Softmax<axis=-2>(s)"
        " vt = Transpose<perm=[0,1,3,2]>(v) y = MatMul(vt, p) }"
    ),
    "float32 inside float16": Example(
        "(float16[B,2,L,4] q, float16[B,2,L,4] k, float16[B,2,L,4] v) => (float16[B,2,L,4] y) {"
        f" {SCORES} f = Cast<to=1>(s) pf = Softmax<axis=-1>(f) p = Cast<to=10>(pf) y = MatMul(p, v) }}"
    ),
    "float16": Example(
        "(float16[B,2,L,4] q, float16[B,2,L,4] k, float16[B,2,L,4] v) => (float16[B,2,L,4] y) {"
        f" {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    "double": Example(
        "(double[B,2,L,4] q, double[B,2,L,4] k, double[B,2,L,4] v) => (double[B,2,L,4] y) {"
        f" {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    # --- between the softmax and the product with V
    "guard of fully masked rows": between(
        "r = Softmax<axis=-1>(s) nan = IsNaN(r) zero = Constant<value_float=0.0>() p = Where(nan, zero, r)"
    ),
    "mask applied again": between(
        "r = Softmax<axis=-1>(s) zero = Constant<value_float=0.0>() p = Where(m, r, zero)", "bool[B,1,1,L] m"
    ),
    "casts that change nothing": between("r = Softmax<axis=-1>(s) r1 = Cast<to=1>(r) p = Cast<to=1>(r1)"),
    "Dropout": between("r = Softmax<axis=-1>(s) ratio = Constant<value_float=0.1>() p, drop = Dropout(r, ratio)"),
    "head mask": between("r = Softmax<axis=-1>(s) p = Mul(r, hm)", "float[1,2,1,1] hm"),
    "renormalization": between(
        "r = Softmax<axis=-1>(s) a = Constant<value_ints=[-1]>() eps = Constant<value_float=0.00000001>()"
        " r1 = Mul(r, m) z = ReduceSum<keepdims=1>(r1, a) zz = Add(z, eps) p = Div(r1, zz)",
        "float[B,1,1,L] m",
    ),
    "sinks: one more score, cut off behind the softmax": between(
        "shape = Shape<start=0, end=3>(s) one = Constant<value_ints=[1]>() full = Concat<axis=0>(shape, one)"
        " sinks = Expand(wsink, full) t = Concat<axis=-1>(s, sinks) r = Softmax<axis=-1>(t)"
        " a = Constant<value_ints=[0]>() b = Constant<value_ints=[-1]>() p = Slice(r, a, b, b)",
        "float[1,2,1,1] wsink",
    ),
    "talking heads": between(
        "st = Transpose<perm=[0,2,3,1]>(s) sm = MatMul(st, wa) sb = Transpose<perm=[0,3,1,2]>(sm) r ="
        " Softmax<axis=-1>(sb)"
        " rt = Transpose<perm=[0,2,3,1]>(r) rm = MatMul(rt, wb) p = Transpose<perm=[0,3,1,2]>(rm)",
        "float[2,2] wa, float[2,2] wb",
    ),
    "talking heads by Conv": between(
        "sm = Conv<kernel_shape=[1,1]>(s, wa) r = Softmax<axis=-1>(sm) p = Conv<kernel_shape=[1,1]>(r, wb)",
        "float[2,2,1,1] wa, float[2,2,1,1] wb",
    ),
    "talking heads by Einsum": between(
        'sm = Einsum<equation="bhij,hg->bgij">(s, wa) r = Softmax<axis=-1>(sm) p ='
        ' Einsum<equation="bhij,hg->bgij">(r, wb)',
        "float[2,2] wa, float[2,2] wb",
    ),
    "talking heads, more of them in the softmax than outside": between(
        "st = Transpose<perm=[0,2,3,1]>(s) sm = MatMul(st, wa) sb = Transpose<perm=[0,3,1,2]>(sm) r ="
        " Softmax<axis=-1>(sb)"
        " rt = Transpose<perm=[0,2,3,1]>(r) rm = MatMul(rt, wb) p = Transpose<perm=[0,3,1,2]>(rm)",
        "float[2,3] wa, float[3,2] wb",
    ),
    "talking heads by Einsum, more of them in the softmax than outside": between(
        'sm = Einsum<equation="bhij,hg->bgij">(s, wa) r = Softmax<axis=-1>(sm) p ='
        ' Einsum<equation="bhij,hg->bgij">(r, wb)',
        "float[2,3] wa, float[3,2] wb",
    ),
    "differential: two maps of one softmax, picked by Gather": Example(
        "(float[B,4,5,4] q, float[B,4,5,4] k, float[B,2,5,4] v, float[1] wl) => (float[B,2,5,4] y) {"
        f" {SCORES} r = Softmax<axis=-1>(s) n = Constant<value_ints=[-1,2,2,5,5]>() r5 = Reshape(r, n)"
        " zero = Constant<value_int=0>() one = Constant<value_int=1>() p1 = Gather<axis=2>(r5, zero)"
        " p2 = Gather<axis=2>(r5, one) p2l = Mul(p2, wl) p = Sub(p1, p2l) y = MatMul(p, v) }"
    ),
    "query, key and value picked from one tensor by Gather": Example(
        "(float[3,B,2,L,4] qkv) => (float[B,2,L,4] y) { i = Constant<value_int=0>() j = Constant<value_int=1>()"
        " m = Constant<value_ints=[2]>() q = Gather<axis=0>(qkv, i) k = Gather<axis=0>(qkv, j)"
        " w = Gather<axis=0>(qkv, m) zero = Constant<value_ints=[0]>() v = Squeeze(w, zero)"
        f" {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    "Exp of the scores less their ReduceLogSumExp": between(
        "z = ReduceLogSumExp<axes=[-1], keepdims=1>(s) d = Sub(s, z) p = Exp(d)"
    ),
    **{
        f"decomposed, times {what} the row sum": between(
            f"m = ReduceMax<axes=[-1]>(s) d = Sub(s, m) e = Exp(d) a = Constant<value_ints=[-1]>() z = ReduceSum(e, a)"
            f" {inverse} p = Mul(e, r)"
        )
        for what, inverse in {
            "1 over": "one = Constant<value_float=1.0>() r = Div(one, z)",
            "the power -1 of": "n = Constant<value_float=-1.0>() r = Pow(z, n)",
        }.items()
    },
    "heads merged by a Reshape to a part of a Shape, and a scale that is computed": Example(
        "(float[B,2,L,4] q, float[B,2,L,4] k, float[B,2,L,4] v) => (float[B,2,L,4] y) { sh = Shape(k) i0 ="
        " Constant<value_ints=[0]>() i2 = Constant<value_ints=[-2]>() i3 = Constant<value_ints=[9223372036854775807]>()"
        " outer = Slice(sh, i0, i2) inner = Slice(sh, i2, i3) minus = Constant<value_ints=[-1]>()"
        " flat = Concat<axis=0>(minus, inner) k3 = Reshape(k, flat) kt3 = Transpose<perm=[0,2,1]>(k3)"
        " d = Slice(inner, minus, i3) n = Slice(inner, i0, minus) turned = Concat<axis=0>(outer, d, n)"
        " kt = Reshape(kt3, turned) df = Cast<to=1>(d) r = Sqrt(df) c = Reciprocal(r) kc = Mul(kt, c)"
        " s = MatMul(q, kc) p = Softmax<axis=-1>(s) y = MatMul(p, v) }"
    ),
    "Exp, normalized by ReduceL1": between(
        "m = ReduceMax<axes=[-1]>(s) d = Sub(s, m) e = Exp(d) z = ReduceL1<axes=[-1]>(e)"
        " low = Constant<value_float=1e-12>() c = Clip(z, low) p = Div(e, c)"
    ),
    "heads merged with the batch around the softmax": Example(
        "(float[B,2,5,4] q, float[B,2,5,4] k, float[B,2,5,4] v) => (float[B,2,5,4] y) {"
        f" {SCORES} n = Constant<value_ints=[-1,5,5]>() s3 = Reshape(s, n) r = Softmax<axis=-1>(s3)"
        " n4 = Constant<value_ints=[-1,2,5,5]>() p = Reshape(r, n4) y = MatMul(p, v) }"
    ),
    "differential: the difference of two softmax": between(
        "p1 = Softmax<axis=-1>(s) k2t = Transpose<perm=[0,1,3,2]>(k2) s2 = MatMul(q, k2t) p2 = Softmax<axis=-1>(s2)"
        " p2l = Mul(p2, wlambda) p = Sub(p1, p2l)",
        "float[B,2,L,4] k2, float[1] wlambda",
        sites=2,
    ),
    "one softmax, two products with V": Example(
        f"({QKV}, float[B,2,L,3] v2) => (float[B,2,L,4] y, float[B,2,L,3] z) {{ {SCORES} p = Softmax<axis=-1>(s)"
        " y = MatMul(p, v) z = MatMul(p, v2) }"
    ),
    "the probabilities are an output": Example(
        f"({QKV}) => (float[B,2,L,4] y, float[B,2,L,L] p) {{ {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    # --- the products
    "three axes": Example(
        "(float[B,L,4] q, float[B,L,4] k, float[B,L,4] v) => (float[B,L,4] y) {"
        " kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) y = MatMul(p, v) }"
    ),
    "two axes, by Gemm": Example(
        "(float[L,4] q, float[L,4] k, float[L,4] v) => (float[L,4] y) {"
        " s = Gemm<transB=1>(q, k) p = Softmax<axis=-1>(s) y = Gemm(p, v) }"
    ),
    "FusedMatMul": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ s = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(q, k)"
        " p = Softmax<axis=-1>(s) y = com.microsoft.FusedMatMul(p, v) }"
    ),
    "Einsum": Example(
        "(float[B,L,2,4] q, float[B,M,2,4] k, float[B,M,2,4] v) => (float[B,L,2,4] y) {"
        ' s = Einsum<equation="bqhd,bkhd->bhqk">(q, k) p = Softmax<axis=-1>(s)'
        ' y = Einsum<equation="bhqk,bkhd->bqhd">(p, v) }'
    ),
    "Einsum as Keras writes it, the keys first": Example(
        "(float[B,L,2,4] q, float[B,M,2,4] k, float[B,M,2,4] v) => (float[B,L,2,4] y) {"
        ' s = Einsum<equation="aecd,abcd->acbe">(k, q) p = Softmax<axis=-1>(s)'
        ' y = Einsum<equation="acbe,aecd->abcd">(p, v) }'
    ),
    "Einsum with an ellipsis": Example(
        f'({QKV}) => (float[B,2,L,4] y) {{ s = Einsum<equation="...qd,...kd->...qk">(q, k) p = Softmax<axis=-1>(s)'
        ' y = Einsum<equation="...qk,...kd->...qd">(p, v) }'
    ),
    "multi-query: one head of keys and values": Example(
        "(float[B,2,L,4] q, float[B,1,M,4] k, float[B,1,M,4] v) => (float[B,2,L,4] y) {"
        f" {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    "grouped query in five axes": Example(
        "(float[B,2,3,L,4] q, float[B,2,1,M,4] k, float[B,2,1,M,4] v) => (float[B,2,3,L,4] y) {"
        " kt = Transpose<perm=[0,1,2,4,3]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) y = MatMul(p, v) }"
    ),
    "MLA: the key's projection absorbed into the query, one latent for keys and values": Example(
        "(float[B,2,L,4] q, float[B,M,6] latent, float[2,4,6] wk, float[2,6,4] wv) => (float[B,2,L,4] y) {"
        " qa = MatMul(q, wk) one = Constant<value_ints=[1]>() c = Unsqueeze(latent, one)"
        " ct = Transpose<perm=[0,1,3,2]>(c) s = MatMul(qa, ct) p = Softmax<axis=-1>(s) u = MatMul(p, c)"
        " y = MatMul(u, wv) }"
    ),
    "latent queries, as in Perceiver and attention pooling": Example(
        "(float[B,L,4] x, float[1,3,4] wlatent, float[4,4] wk, float[4,4] wv) => (float[B,3,4] y) {"
        " k = MatMul(x, wk) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(wlatent, kt) p = Softmax<axis=-1>(s)"
        " v = MatMul(x, wv) y = MatMul(p, v) }"
    ),
    "memory: learned keys and values beside those of the input": Example(
        "(float[1,L,4] q, float[1,M,4] k, float[1,M,4] v, float[1,2,4] wk, float[1,2,4] wv) => (float[1,L,4] y) {"
        " kk = Concat<axis=1>(k, wk) vv = Concat<axis=1>(v, wv) kt = Transpose<perm=[0,2,1]>(kk) s = MatMul(q, kt)"
        " p = Softmax<axis=-1>(s) y = MatMul(p, vv) }"
    ),
    "two sets of keys under one softmax": Example(
        "(float[B,L,4] q, float[B,3,4] k, float[B,5,4] k2, float[B,3,4] v, float[B,5,4] v2) => (float[B,L,4] y) {"
        " kt = Transpose<perm=[0,2,1]>(k) s1 = MatMul(q, kt) k2t = Transpose<perm=[0,2,1]>(k2) s2 = MatMul(q, k2t)"
        " s = Concat<axis=-1>(s1, s2) p = Softmax<axis=-1>(s) n = Constant<value_ints=[3,5]>()"
        " p1, p2 = Split<axis=-1>(p, n) c1 = MatMul(p1, v) c2 = MatMul(p2, v2) y = Add(c1, c2) }"
    ),
    "keys split into blocks behind the softmax": Example(
        "(float[2,6,4] q, float[2,6,4] k, float[2,3,2,4] v) => (float[2,6,4] y) { kt = Transpose<perm=[0,2,1]>(k)"
        " s = MatMul(q, kt) p = Softmax<axis=-1>(s) n = Constant<value_ints=[2,6,3,2]>() b = Reshape(p, n)"
        " bt = Transpose<perm=[0,2,1,3]>(b) c = MatMul(bt, v) a = Constant<value_ints=[1]>()"
        " y = ReduceSum<keepdims=0>(c, a) }"
    ),
    "cached keys and values": Example(
        "(float[B,2,1,4] q, float[B,2,1,4] k, float[B,2,1,4] v, float[B,2,P,4] pk, float[B,2,P,4] pv)"
        " => (float[B,2,1,4] y, float[B,2,T,4] kk, float[B,2,T,4] vv) {"
        " kk = Concat<axis=2>(pk, k) vv = Concat<axis=2>(pv, v) kt = Transpose<perm=[0,1,3,2]>(kk) s = MatMul(q, kt)"
        " p = Softmax<axis=-1>(s) y = MatMul(p, vv) }"
    ),
    "non-local block: pixels attend to pixels after 1x1 convolutions": Example(
        "(float[B,3,H,W] x, float[4,3,1,1] wf, float[4,3,1,1] wg, float[5,3,1,1] wh) => (float[B,5,N] y) {"
        " f = Conv(x, wf) g = Conv(x, wg) h = Conv(x, wh) n4 = Constant<value_ints=[0,4,-1]>()"
        " n5 = Constant<value_ints=[0,5,-1]>() f3 = Reshape(f, n4) g3 = Reshape(g, n4) h3 = Reshape(h, n5)"
        " ft = Transpose<perm=[0,2,1]>(f3) s = MatMul(ft, g3) p = Softmax<axis=-1>(s)"
        " pt = Transpose<perm=[0,2,1]>(p) y = MatMul(h3, pt) }"
    ),
    "channels attend to channels (DANet)": Example(
        "(float[B,6,N] x) => (float[B,6,N] y) { xt = Transpose<perm=[0,2,1]>(x) s = MatMul(x, xt)"
        " p = Softmax<axis=-1>(s) y = MatMul(p, x) }"
    ),
    "blocks of keys, each with its neighbour": Example(
        "(float[B,3,4,4] q, float[B,3,4,4] k, float[B,3,4,4] before, float[B,3,4,4] v, float[B,3,4,4] vbefore)"
        " => (float[B,3,4,4] y) { kk = Concat<axis=2>(before, k) vv = Concat<axis=2>(vbefore, v)"
        " kt = Transpose<perm=[0,1,3,2]>(kk) s = MatMul(q, kt) p = Softmax<axis=-1>(s) y = MatMul(p, vv) }"
    ),
    "Swin: shifted windows, the mask on a fifth axis": Example(
        "(float[8,2,6,4] q, float[8,2,6,4] k, float[8,2,6,4] v, float[1,4,1,6,6] m) => (float[8,2,6,4] y) {"
        f" {SCORES} five = Constant<value_ints=[-1,4,2,6,6]>() s5 = Reshape(s, five) t = Add(s5, m)"
        " four = Constant<value_ints=[-1,2,6,6]>() s4 = Reshape(t, four) p = Softmax<axis=-1>(s4) y = MatMul(p, v) }"
    ),
    "fused projection of query, key and value, split by Gather": Example(
        "(float[B,L,8] x, float[8,24] w) => (float[B,2,L,4] y) { qkv = MatMul(x, w) n ="
        " Constant<value_ints=[0,0,3,2,4]>()"
        " r = Reshape(qkv, n) t = Transpose<perm=[2,0,3,1,4]>(r) i0 = Constant<value_int=0>() i1 ="
        " Constant<value_int=1>()"
        " i2 = Constant<value_int=2>() q = Gather<axis=0>(t, i0) k = Gather<axis=0>(t, i1) v = Gather<axis=0>(t, i2)"
        f" {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}"
    ),
    # --- where it is
    "in both branches of an If": Example(
        f"(bool c, {QKV}) => (float[B,2,L,4] y) {{ {SCORES} y = If(c) <"
        " then_branch = then () => (float[B,2,L,4] y1) { p1 = Softmax<axis=-1>(s) y1 = MatMul(p1, v) },"
        " else_branch = other () => (float[B,2,L,4] y2) { t2 = Add(s, s) p2 = Softmax<axis=-1>(t2) y2 ="
        " MatMul(p2, v) }"
        "> }",
        sites=2,
    ),
    "softmax in an If, products outside": Example(
        f"(bool c, {QKV}) => (float[B,2,L,4] y) {{ {SCORES} p = If(c) <"
        " then_branch = then () => (float[B,2,L,L] p1) { p1 = Softmax<axis=-1>(s) },"
        " else_branch = other () => (float[B,2,L,L] p2) { t2 = Add(s, s) p2 = Softmax<axis=-1>(t2) }"
        "> y = MatMul(p, v) }",
        sites=2,
    ),
    "mask chosen by an If": between(
        "t = If(c) < then_branch = then () => (float[B,2,L,L] t1) { t1 = Add(s, m) },"
        " else_branch = other () => (float[B,2,L,L] t2) { t2 = Identity(s) } > p = Softmax<axis=-1>(t)",
        "bool c, float[B,1,1,L] m",
    ),
    "in the body of a Loop": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ n = Constant<value_int=3>() y = Loop(n, , q) <"
        " body = step (int64 i, bool go, float[B,2,L,4] x) => (bool still, float[B,2,L,4] out) {"
        " still = Identity(go) kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(x, kt) p = Softmax<axis=-1>(s)"
        " out = MatMul(p, v) }> }"
    ),
    "in the body of a Scan": Example(
        "(float[T,L,4] q, float[L,4] k, float[L,4] v) => (float[T,L,4] y) { y = Scan<num_scan_inputs=1,"
        " body = step (float[L,4] x) => (float[L,4] out) { kt = Transpose<perm=[1,0]>(k) s = MatMul(x, kt)"
        " p = Softmax<axis=-1>(s) out = MatMul(p, v) }>(q) }"
    ),
    "a function, called twice": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ x = local.attend(q, k, v) y = local.attend(x, k, v) }}",
        sites=2,
        functions='<domain: "local", opset_import: ["" : 17]> attend (q, k, v) => (y)'
        f" {{ {SCORES} p = Softmax<axis=-1>(s) y = MatMul(p, v) }}",
    ),
    "softmax in a function within a function, product with V in its caller": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ {SCORES} p = local.outer(s) y = MatMul(p, v) }}",
        functions='<domain: "local", opset_import: ["" : 17, "local" : 1]> outer (x) => (y) { t = Add(x, x) y ='
        " local.inner(t) }"
        ' <domain: "local", opset_import: ["" : 17]> inner (x) => (y) { y = Softmax<axis=-1>(x) }',
    ),
    "the products in functions, the softmax in the main graph": Example(
        f"({QKV}) => (float[B,2,L,4] y) {{ s = local.scores(q, k) p = Softmax<axis=-1>(s) y = local.weigh(p, v) }}",
        functions='<domain: "local", opset_import: ["" : 17]> scores (q, k) => (s)'
        f" {{ {SCORES} }}"
        ' <domain: "local", opset_import: ["" : 17]> weigh (p, v) => (y) { y = MatMul(p, v) }',
    ),
}
