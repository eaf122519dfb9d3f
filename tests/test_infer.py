"""Rank and dtype where an exporter wrote none."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_graphs import parse

from onnx_attnq.graph import certain_rank_of, dtype_of, rank_of

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def output_of(text: str) -> ir.Value:
    """The value named u of a graph without shapes."""
    values = {value.name: value for node in parse(text).graph for value in node.outputs}
    return values["u"]


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("(float[a,b,c] x) => (float[a,b,c] y) { u = Tanh(x) y = Neg(u) }", 3),
        ("(float[a,b] x) => (float[b,a] y) { u = Transpose<perm=[1,0]>(x) y = Neg(u) }", 2),
        ("(int64[a,b] i, float[9,4] w) => (float[a,b,4] y) { u = Gather(w, i) y = Neg(u) }", 3),
        (
            "(int64[a,b] i, float[9,4] w, float[4,1] wg) => (float[a,b,1] y) { e = Gather(w, i) u = MatMul(e, wg)"
            " y = Neg(u) }",
            3,
        ),
        ("(float[a,b] x) => (float[a,1,b] y) { n = Constant<value_ints=[1]>() u = Unsqueeze(x, n) y = Neg(u) }", 3),
        (
            "(float[a,b] x) => (float[a,b,1,1] y) { n = Constant<value_ints=[0,0,1,1]>() u = Reshape(x, n)"
            " y = Neg(u) }",
            4,
        ),
        ("(float[a,b] x, int64[n] s) => (float y) { t = Reshape(x, s) u = Neg(t) y = ReduceSum<keepdims=0>(u) }", None),
        (
            "(float[a,b] x, int64[n] s, float[4,4] w) => (float y) { t = Reshape(x, s) u = MatMul(t, w)"
            " y = ReduceSum<keepdims=0>(u) }",
            None,
        ),
        (
            "(float[a,b] x, int64[n] s, float[4,4] w) => (float y) { t = Reshape(x, s) v = Transpose(w)"
            " u = MatMul(t, v) y = ReduceSum<keepdims=0>(u) }",
            None,
        ),
        (
            "(float[a,b] x, int64[n] s, float[a,b,c,d] m) => (float y) { t = Reshape(x, s) u = Add(t, m)"
            " y = ReduceSum<keepdims=0>(u) }",
            4,
        ),
        (  # a causal mask has as many axes, whatever it is added to
            "(float[a,b] x, int64[n] s, float[b,b] m) => (float y) { t = Reshape(x, s) u = Add(t, m)"
            " y = ReduceSum<keepdims=0>(u) }",
            None,
        ),
    ],
)
def test_rank(text: str, rank: int | None) -> None:
    assert rank_of(output_of(text)) == rank


def expanded(shape: str) -> str:
    """torch's x.expand(shape) as TorchScript writes it: a size of -1 becomes 1, by comparison with as many ones."""
    return f"""(float[a,b] x, int64[n] s, int64[a] d) => (float y) {{
        minus = Constant<value_ints=[-1]>() zero = Constant<value_int=0>() sizes = Shape(x) one = Gather(sizes, zero)
        part = Unsqueeze(one, zero) {shape} flat = Reshape(c, minus) n_ = Shape(flat)
        ones = ConstantOfShape<value=int64[1]{{1}}>(n_) wild = Mul(ones, minus) keep = Equal(flat, wild)
        e = Where(keep, ones, flat) u = Expand(x, e) y = ReduceSum<keepdims=0>(u)
    }}"""


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ("c = Concat<axis=0>(part, minus, part, part)", 4),
        ("c = Concat<axis=0>(part)", 2),  # never fewer axes than there were
        ("c = Concat<axis=0>(part, s)", None),
        ("c = Identity(s)", None),
        ("m_ = Unsqueeze(s, zero) c = Concat<axis=0>(m_, m_)", None),  # as many as the matrix has numbers
    ],
)
def test_the_rank_of_an_expand_is_the_length_of_its_shape(shape: str, rank: int | None) -> None:
    value = output_of(expanded(shape))
    assert (rank_of(value), certain_rank_of(value)) == (rank, rank)


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("(float[a,b,c] x) => (int64 y) { u = Shape(x) y = ReduceSum<keepdims=0>(u) }", 1),
        ("(float[a,b,c] x) => (float y) { u = Flatten<axis=2>(x) y = ReduceSum<keepdims=0>(u) }", 2),
        ("(int64 e) => (int64 y) { o = Constant<value_int=0>() i = Constant<value_int=1>() u = Range(o, e, i)"
         " y = ReduceSum<keepdims=0>(u) }", 1),
        ("(float[a,b,c] x) => (float y) { n = Shape(x) u = ConstantOfShape(n) y = ReduceSum<keepdims=0>(u) }", 3),
        ("(int64[n] s) => (float y) { u = ConstantOfShape(s) y = ReduceSum<keepdims=0>(u) }", None),
    ],
)  # fmt: skip
def test_the_rank_of_what_positions_and_masks_are_made_with(text: str, rank: int | None) -> None:
    assert rank_of(output_of(text)) == rank


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("(float16[a,b] x) => (float16[a,b] y) { u = Tanh(x) y = Neg(u) }", FLOAT16),
        ("(float16[a,b] x) => (float[a,b] y) { u = Cast<to=1>(x) y = Neg(u) }", FLOAT),
        ("(bool[a,b] c, float16[a,b] x) => (float16[a,b] y) { u = Where(c, x, x) y = Neg(u) }", FLOAT16),
        ("(uint8[a,b] x, float s, uint8 z) => (float[a,b] y) { u = DequantizeLinear(x, s, z) y = Neg(u) }", FLOAT),
        ("(float[a,b] x, float s, uint8 z) => (uint8[a,b] u) { u = QuantizeLinear(x, s, z) }", ir.DataType.UINT8),
        ("(float[a,b] x, float s) => (uint8[a,b] u) { u = QuantizeLinear(x, s) }", None),
        ("(int64[a,b] i, float16[9,4] w) => (float16[a,b,4] y) { u = Gather(w, i) y = Neg(u) }", FLOAT16),
        ("(float[a,b] x) => (bool[a,b] y) { u = Less(x, x) y = Not(u) }", ir.DataType.BOOL),
        ("(float[a,b] x) => (int64[n] y) { u = Shape(x) y = Identity(u) }", ir.DataType.INT64),
        ("(int32[a,b] x) => (int32[b,a] y) { u = Transpose(x) y = Identity(u) }", ir.DataType.INT32),
        ("(bool[a] c, int32[a] x) => (int32[a] y) { u = Where(c, x, x) y = Identity(u) }", ir.DataType.INT32),
        ("(float[a] x, int64[1] k) => (float[n] v, int64[n] u) { v, u = TopK(x, k) }", ir.DataType.INT64),
        ("(float16[a,b] x) => (float16[a,b] y, bool[a,b] u) { y, u = Dropout(x) }", ir.DataType.BOOL),
        ("(int64[2] s) => (float[a,b] y) { u = ConstantOfShape(s) y = Neg(u) }", FLOAT),
        ("(int64[2] s, int64 k) => (float[a,b] y) { m = ConstantOfShape<value=float16[1]{-1}>(s) u = Trilu(m, k)"
         " y = Neg(u) }", FLOAT16),
        ("(int64 a, int64 b, int64 c) => (int64[n] y) { u = Range(a, b, c) y = Neg(u) }", ir.DataType.INT64),
        ("(int64[2] s) => (float[a,b] y) { m = RandomNormal<shape=[1]>() u = Expand(m, s) y = Neg(u) }", None),
        ("(int64 k) => (float[a,b] y) { m = RandomNormal<shape=[1]>() u = Pow(m, k) y = Neg(u) }", None),
    ],
)  # fmt: skip
def test_dtype(text: str, dtype: ir.DataType | None) -> None:
    value = output_of(text)
    value.type = None
    assert dtype_of(value) == dtype


def test_a_mask_says_nothing_certain_about_the_rank_of_what_it_is_added_to() -> None:
    added = output_of(
        "(float[a,b] x, int64[n] s, float[a,b,c,d] m) => (float y) { t = Reshape(x, s) u = Add(t, m)"
        " y = ReduceSum<keepdims=0>(u) }"
    )
    assert (rank_of(added), certain_rank_of(added)) == (4, None)
    joined = output_of(
        "(float[a,b] x, int64[n] s) => (float y) { t = Reshape(x, s) u = Concat<axis=0>(t, x) y = Abs(u) }"
    )
    assert certain_rank_of(joined) == 2


def test_branches_that_meet_again_are_walked_once() -> None:
    # Each layer doubles the number of paths: 2 ** 60 of them end here.
    text = " ".join(f"x{i + 1} = Add(x{i}, x{i})" for i in range(60))
    value = output_of(
        f"(float[a,b] x, int64[n] s) => (float y) {{ x0 = Reshape(x, s) {text} u = Neg(x60) y = Abs(u) }}"
    )
    assert rank_of(value) is None
    assert dtype_of(value) == FLOAT
