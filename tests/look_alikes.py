"""What has a softmax and a product but is no attention: small graphs, and the reason that a person should read."""

from __future__ import annotations

from typing import Final

X = "float[B,L,8] x"

LOOK_ALIKES: Final[dict[str, tuple[str, str]]] = {
    "classifier": (
        f"({X}, float[8,5] w) => (float[B,L,5] p) {{ s = MatMul(x, w) p = Softmax<axis=-1>(s) }}",
        "a weight of .* supplies",
    ),
    "mixture-of-experts router, all experts weighed": (
        f"({X}, float[8,3] wg, float[B,L,3,8] experts) => (float[B,L,1,8] y) {{ s = MatMul(x, wg) p ="
        f" Softmax<axis=-1>(s)"
        " two = Constant<value_ints=[2]>() q = Unsqueeze(p, two) y = MatMul(q, experts) }",
        "a weight of .* supplies",
    ),
    "mixture-of-experts router, the best two": (
        f"({X}, float[8,3] wg) => (float[B,L,2] g, int64[B,L,2] i) {{ s = MatMul(x, wg) p = Softmax<axis=-1>(s)"
        " n = Constant<value=int64[1] {2}>() g, i = TopK(p, n) }",
        "a weight of .* supplies",
    ),
    "soft mixture of experts: tokens dispatched to learned slots": (
        f"({X}, float[8,3] wslots) => (float[B,3,8] y) {{ s = MatMul(x, wslots) p = Softmax<axis=1>(s)"
        " pt = Transpose<perm=[0,2,1]>(p) y = MatMul(pt, x) }",
        "linear layer of one input",
    ),
    "codebook": (
        f"({X}, float[8,5] w, float[5,8] wcodes) => (float[B,L,8] y) {{ s = MatMul(x, w) p = Softmax<axis=-1>(s)"
        " y = MatMul(p, wcodes) }",
        "a weight of .* supplies",
    ),
    "vector quantizer: softmax over distances to the codes": (
        f"({X}, float[8,5] wt, float[5,8] wcodes, float[5] wnorm) => (float[B,L,8] y) {{ s = MatMul(x, wt)"
        " c = Constant<value_float=2.0>() s2 = Mul(s, c) d = Sub(s2, wnorm) p = Softmax<axis=-1>(d)"
        " y = MatMul(p, wcodes) }",
        "a weight of .* supplies",
    ),
    "distribution focal loss: the expectation of fixed bins": (
        "(float[B,4,16] s, float[16,1] wbins) => (float[B,4,1] y) { p = Softmax<axis=-1>(s) y = MatMul(p, wbins) }",
        "no product of query and key",
    ),
    "linear attention, one head": (
        f"({X}, float[8,8] wq, float[8,8] wk, float[8,8] wv) => (float[B,L,8] y) {{ q = MatMul(x, wq) k ="
        f" MatMul(x, wk)"
        " v = MatMul(x, wv) ks = Softmax<axis=1>(k) kt = Transpose<perm=[0,2,1]>(ks) c = MatMul(kt, v)"
        " qs = Softmax<axis=-1>(q) y = MatMul(qs, c) }",
        "weight of .* supplies|linear layer of one input",
    ),
    "linear attention, several heads": (
        f"({X}, float[8,8] wq, float[8,8] wk, float[8,8] wv) => (float[B,2,L,4] y) {{ q = MatMul(x, wq) k ="
        f" MatMul(x, wk)"
        " v = MatMul(x, wv) n = Constant<value_ints=[0,0,2,4]>() q4 = Reshape(q, n) k4 = Reshape(k, n) v4 ="
        " Reshape(v, n)"
        " qh = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vh = Transpose<perm=[0,2,1,3]>(v4)"
        " ks = Softmax<axis=-1>(kt) c = MatMul(ks, vh) qs = Softmax<axis=-1>(qh) y = MatMul(qs, c) }",
        "weight of .* supplies|no product of query and key|linear layer of one input",
    ),
    "linear attention on the context of another attention": (
        f"({X}, float[8,8] wk) => (float[B,8,8] y) {{ xt = Transpose<perm=[0,2,1]>(x) s = MatMul(x, xt)"
        " c = MatMul(s, x) k = MatMul(c, wk) kt = Transpose<perm=[0,2,1]>(k) r = Relu(kt) ks = Softmax<axis=-1>(r)"
        " y = MatMul(ks, x) }",
        "Relu .* is not part of an attention",
    ),
    "additive pooling with Mul and ReduceSum": (
        f"({X}, float[8,4] wa, float[4,1] wb) => (float[B,8] y) {{ h = MatMul(x, wa) t = Tanh(h) s = MatMul(t, wb)"
        " p = Softmax<axis=1>(s) u = Mul(p, x) a = Constant<value_ints=[1]>() y = ReduceSum<keepdims=0>(u, a) }",
        "linear layer of one input",
    ),
    "additive pooling with MatMul": (
        f"({X}, float[8,4] wa, float[4,1] wb) => (float[B,1,8] y) {{ h = MatMul(x, wa) t = Tanh(h) s = MatMul(t, wb)"
        " p = Softmax<axis=1>(s) pt = Transpose<perm=[0,2,1]>(p) y = MatMul(pt, x) }",
        "linear layer of one input",
    ),
    "additive pooling in several hops": (
        f"({X}, float[8,4] wa, float[4,3] wb) => (float[B,3,8] y) {{ h = MatMul(x, wa) t = Tanh(h) s = MatMul(t, wb)"
        " st = Transpose<perm=[0,2,1]>(s) p = Softmax<axis=-1>(st) y = MatMul(p, x) }",
        "linear layer of one input",
    ),
    "additive attention of a query (Bahdanau, GAT): no product": (
        f"({X}, float[B,1,8] q, float[8,1] w) => (float[B,1,8] y) {{ a = Add(x, q) t = Tanh(a) s = MatMul(t, w)"
        " st = Transpose<perm=[0,2,1]>(s) p = Softmax<axis=-1>(st) y = MatMul(p, x) }",
        "linear layer of one input",
    ),
    "dynamic convolution: the kernel is a softmax of a linear layer": (
        f"({X}, float[8,6] w, float[B,L,3,4] windows) => (float[B,L,2,4] y) {{ f = MatMul(x, w)"
        " n = Constant<value_ints=[0,0,2,3]>() h = Reshape(f, n) p = Softmax<axis=-1>(h) y = MatMul(p, windows) }",
        "a weight of .* supplies",
    ),
    "selective kernels: branches weighed by a softmax": (
        "(float[B,8] x, float[8,4] wa, float[8,4] wb, float[B,4] u, float[B,4] v) => (float[B,4] y) {"
        " a = MatMul(x, wa) b = MatMul(x, wb) one = Constant<value_ints=[1]>() a1 = Unsqueeze(a, one)"
        " b1 = Unsqueeze(b, one) s = Concat<axis=1>(a1, b1) p = Softmax<axis=1>(s) u1 = Unsqueeze(u, one)"
        " v1 = Unsqueeze(v, one) uv = Concat<axis=1>(u1, v1) m = Mul(p, uv) y = ReduceSum<keepdims=0>(m, one) }",
        "no product of query and key|adds or drops the softmax axis",
    ),
    "pointer: query and keys, but the probabilities are the answer": (
        "(float[B,L,4] q, float[B,M,4] k) => (float[B,L,M] p) { kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt)"
        " p = Softmax<axis=-1>(s) }",
        "no product with V",
    ),
    "contrastive logits of images and texts": (
        "(float[N,4] image, float[M,4] text) => (float[N,M] p) { s = Gemm<transB=1>(image, text) p ="
        " Softmax<axis=-1>(s) }",
        "no product with V",
    ),
    "mixture of softmaxes": (
        f"({X}, float[8,3] wprior, float[B,L,3,7] each) => (float[B,L,1,7] y) {{ s = MatMul(x, wprior)"
        " p = Softmax<axis=-1>(s) two = Constant<value_ints=[2]>() p1 = Unsqueeze(p, two) y = MatMul(p1, each) }",
        "a weight of .* supplies",
    ),
    "gate over time": (
        f"({X}, float[8,1] w) => (float[B,L,8] y) {{ s = MatMul(x, w) p = Softmax<axis=1>(s) y = Mul(p, x) }}",
        "linear layer of one input",
    ),
    "slots: softmax over the queries, summed over the keys": (
        "(float[B,3,4] slots, float[B,L,4] k, float[B,L,4] v) => (float[B,3,4] y) { st ="
        " Transpose<perm=[0,2,1]>(slots)"
        " s = MatMul(k, st) p = Softmax<axis=-1>(s) pt = Transpose<perm=[0,2,1]>(p) y = MatMul(pt, v) }",
        "no product with V",
    ),
    "slots that a later attention attends to": (
        "(float[B,3,4] slots, float[B,L,4] k, float[B,L,4] v, float[B,M,3] r) => (float[B,M,4] y) {"
        " st = Transpose<perm=[0,2,1]>(slots) s = MatMul(k, st) p = Softmax<axis=-1>(s) pt ="
        " Transpose<perm=[0,2,1]>(p)"
        " c = MatMul(pt, v) y = MatMul(r, c) }",
        "no product with V",
    ),
    "late normalization: the context is divided, the probabilities never exist": (
        "(float[B,L,4] q, float[B,L,4] k, float[B,L,4] v) => (float[B,L,4] y) { kt = Transpose<perm=[0,2,1]>(k)"
        " s = MatMul(q, kt) e = Exp(s) a = Constant<value_ints=[-1]>() z = ReduceSum<keepdims=1>(e, a) u ="
        " MatMul(e, v)"
        " y = Div(u, z) }",
        "the probabilities never exist",
    ),
    "late normalization, with the exponentials cast on the way": (
        "(float[B,L,4] q, float[B,L,4] k, float[B,L,4] v) => (float[B,L,4] y) { kt = Transpose<perm=[0,2,1]>(k)"
        " s = MatMul(q, kt) e = Exp(s) a = Constant<value_ints=[-1]>() z = ReduceSum<keepdims=1>(e, a) e2 = Identity(e)"
        " u = MatMul(e2, v) r = Reciprocal(z) y = Mul(u, r) }",
        "the probabilities never exist",
    ),
    "log-probabilities of a classifier": (
        f"({X}, float[8,5] w) => (float[B,L,5] p) {{ s = MatMul(x, w) p = LogSoftmax<axis=-1>(s) }}",
        "its logarithms are used as they are",
    ),
    "scores that are written into a constant, as Longformer's bands": (
        "(float[2,4] q, float[2,4] k, float[2,4] v, float[2,2] wempty) => (float[2,4] y) { kt = Transpose<perm=[1,0]>(k)"
        " s = MatMul(q, kt) at = Constant<value=int64[2,1] {0,1}>() b = ScatterND(wempty, at, s)"
        " p = Softmax<axis=-1>(b) y = MatMul(p, v) }",
        "ScatterND .* writes scores into a constant",
    ),
    "sigmoid attention": (
        "(float[B,2,L,4] q, float[B,2,L,4] k, float[B,2,L,4] v) => (float[B,2,L,4] y) {"
        " kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) p = Sigmoid(s) y = MatMul(p, v) }",
        "weighs the values in place of a softmax",
    ),
    "squared ReLU attention": (
        "(float[B,2,L,4] q, float[B,2,L,4] k, float[B,2,L,4] v) => (float[B,2,L,4] y) {"
        " kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) r = Relu(s) p = Mul(r, r) y = MatMul(p, v) }",
        "weighs the values in place of a softmax",
    ),
    "additive pooling in each head": (
        "(float[B,L,8] x, float[8,8] wk, float[4,1] wa) => (float[B,2,1,4] y) { k = MatMul(x, wk)"
        " n = Constant<value_ints=[0,0,2,4]>() r = Reshape(k, n) h = Transpose<perm=[0,2,1,3]>(r) t = Tanh(h)"
        " s = MatMul(t, wa) p = Softmax<axis=-2>(s) pt = Transpose<perm=[0,1,3,2]>(p) y = MatMul(pt, h) }",
        "linear layer of one input",
    ),
    "local attention by Mul and ReduceSum: no matrix products to replace": (
        "(float[B,L,1,4] q, float[B,L,9,4] k, float[B,L,9,4] v) => (float[B,L,4] y) { m = Mul(q, k)"
        " a = Constant<value_ints=[-1]>() s = ReduceSum<keepdims=1>(m, a) p = Softmax<axis=-2>(s) u = Mul(p, v)"
        " b = Constant<value_ints=[-2]>() y = ReduceSum<keepdims=0>(u, b) }",
        "ReduceSum .* sums what Mul .* multiplies element by element",
    ),
    "softmax of an input": ("(float[B,L] s) => (float[B,L] p) { p = Softmax<axis=-1>(s) }", "is an input of the graph"),
}
