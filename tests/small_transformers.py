"""BERT-like and GPT-2-like graphs in ops of any opset from 11 on."""

from __future__ import annotations

import onnx_ir as ir
from small_graphs import parse

_ATTEND = """
    q{i} = MatMul(x{i}, wq{i}) k{i} = MatMul(x{i}, wk{i}) v{i} = MatMul(x{i}, wv{i})
    q{i}r = Reshape(q{i}, split) k{i}r = Reshape(k{i}, split) v{i}r = Reshape(v{i}, split)
    q{i}h = Transpose<perm=[0,2,1,3]>(q{i}r) kt{i} = Transpose<perm=[0,2,3,1]>(k{i}r) v{i}h = Transpose<perm=[0,2,1,3]>(v{i}r)
    a{i} = MatMul(q{i}h, kt{i}) s{i} = Div(a{i}, two) {mask} p{i} = Softmax<axis={axis}>(m{i}) c{i} = MatMul(p{i}, v{i}h)
    ct{i} = Transpose<perm=[0,2,1,3]>(c{i}) cr{i} = Reshape(ct{i}, merge) o{i} = MatMul(cr{i}, wo{i}) r{i} = Add(x{i}, o{i})
    mean{i} = ReduceMean<axes=[-1]>(r{i}) d{i} = Sub(r{i}, mean{i}) sq{i} = Mul(d{i}, d{i})
    var{i} = ReduceMean<axes=[-1]>(sq{i}) ve{i} = Add(var{i}, eps) sd{i} = Sqrt(ve{i}) n{i} = Div(d{i}, sd{i})
    h{i} = MatMul(n{i}, wa{i}) g{i} = Tanh(h{i}) f{i} = MatMul(g{i}, wb{i}) x{j} = Add(n{i}, f{i})
"""


def _transformer(opset: int, inputs: str, start: str, mask: str, layers: int) -> ir.Model:
    weights = [f"float[8,8] w{name}{i}" for i in range(layers) for name in "qkvoab"]
    constants = (
        "two = Constant<value = float {2.0}>() eps = Constant<value = float {0.00001}>()"
        " low = Constant<value = float {-10000.0}>() one = Constant<value = float {1.0}>()"
        " split = Constant<value = int64[4] {0,0,2,4}>() merge = Constant<value = int64[3] {0,0,8}>()"
    )
    body = "".join(
        _ATTEND.format(i=i, j=i + 1, axis=3 if opset < 13 else -1, mask=mask.format(i=i)) for i in range(layers)
    )
    signature = ", ".join([inputs, "float[20,8] wte", *weights, "float[8,20] wlm"])
    text = f"({signature}) => (float[B,L,20] logits) {{ {constants} {start} {body} logits = MatMul(x{layers}, wlm) }}"
    if opset >= 18:  # axes became an input
        text = text.replace("ReduceMean<axes=[-1]>(r", "ReduceMean(r").replace(
            "ReduceMean<axes=[-1]>(sq", "ReduceMean(sq"
        )
        for i in range(layers):
            text = text.replace(f"ReduceMean(r{i})", f"ReduceMean(r{i}, last)")
            text = text.replace(f"ReduceMean(sq{i})", f"ReduceMean(sq{i}, last)")
        text = text.replace("{ two =", "{ last = Constant<value = int64[1] {-1}>() two =", 1)
    return parse(text, opset=opset, inferred=True, ir_version=8 if opset < 23 else 11)


def bert_like(opset: int, layers: int = 2) -> ir.Model:
    """input_ids and attention_mask (B, L) to logits (B, L, 20); padding masked by an added -10000."""
    return _transformer(
        opset,
        "int64[B,L] input_ids, int64[B,L] attention_mask",
        "x0 = Gather(wte, input_ids) keep = Cast<to=1>(attention_mask) shape = Constant<value = int64[4] {0,1,1,-1}>()"
        " kept = Reshape(keep, shape) away = Sub(one, kept) bias = Mul(away, low)",
        "m{i} = Add(s{i}, bias)",
        layers,
    )


def gpt2_like(opset: int, layers: int = 2) -> ir.Model:
    """input_ids (B, L) to logits (B, L, 20); causal, by a Where over positions."""
    return _transformer(
        opset,
        "int64[B,L] input_ids, float[L] positions",
        "x0 = Gather(wte, input_ids) column = Constant<value = int64[2] {-1,1}>() rows = Reshape(positions, column)"
        " later = Less(rows, positions)",
        "m{i} = Where(later, low, s{i})",
        layers,
    )
