"""Sizes of made-up inputs are those that the graph takes: fixed by constants, by heads of a cache, by windows."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs import Sample, generate_samples, made_up_samples
from onnx_attnq.inputs.fitting import fit
from onnx_attnq.inputs.shape_check import Misfit, ShapeCheck
from onnx_attnq.model import load
from onnx_attnq.run import Session

CASES = Path(__file__).parent / "cases"
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def model_of(text: str) -> ir.Model:
    return ir.from_proto(small_models.parse(HEADER + text))


FIXED = {
    "positions of an image": """
    m (float[batch, 3, height, width] pixels) => (float[batch, 65, 8] y)
    <float[8, 3, 4, 4] kernel, float[1, 1, 8] cls, float[1, 65, 8] positions> {
        cut = Conv<strides = [4, 4]>(pixels, kernel)
        flat = Constant<value_ints = [0, 8, -1]>()
        rows = Reshape(cut, flat)
        tokens = Transpose<perm = [0, 2, 1]>(rows)
        shape = Shape<start = 0, end = 1>(tokens)
        one = Constant<value_ints = [1]>()
        eight = Constant<value_ints = [8]>()
        wide = Concat<axis = 0>(shape, one, eight)
        first = Expand(cls, wide)
        all = Concat<axis = 1>(first, tokens)
        y = Add(all, positions)
    }""",
    "strips as in text recognition": """
    m (float[batch, 3, height, width] x) => (float[batch, n, 8] y)
    <float[8, 3, 4, 4] kernel, float[1, 8, 2, 20] positions> {
        cut = Conv<strides = [4, 4]>(x, kernel)
        a = Add(cut, positions)
        flat = Constant<value_ints = [0, 8, -1]>()
        rows = Reshape(a, flat)
        y = Transpose<perm = [0, 2, 1]>(rows)
    }""",
    "a reshape to constants": """
    m (float[batch, n, 12] x) => (float[batch, 77, 3, 4] y) {
        shape = Constant<value_ints = [0, 77, 3, 4]>()
        y = Reshape(x, shape)
    }""",
    "a batch of one": """
    m (float[batch, n, 12] x) => (float[1, n, 3, 4] y) <float[1, 1, 3, 4] bias> {
        count = Shape<start = 1, end = 2>(x)
        one = Constant<value_ints = [1]>()
        rest = Constant<value_ints = [3, 4]>()
        shape = Concat<axis = 0>(one, count, rest)
        cut = Reshape(x, shape)
        y = Add(cut, bias)
    }""",
    "a batch of one, by a reshape that allows zeros": """
    m (float[batch, n, 12] x) => (float[1, n, 3, 4] y) {
        count = Shape<start = 1, end = 2>(x)
        one = Constant<value_ints = [1]>()
        rest = Constant<value_ints = [3, 4]>()
        shape = Concat<axis = 0>(one, count, rest)
        y = Reshape<allowzero = 1>(x, shape)
    }""",
    "windows": """
    m (float[batch, height, width, 4] x) => (float[windows, 7, 7, 4] y) {
        shape = Shape(x)
        seven = Constant<value_ints = [7]>()
        none = Constant<value_ints = [0]>()
        first = Constant<value_ints = [1]>()
        second = Constant<value_ints = [2]>()
        batch = Gather(shape, none)
        h = Gather(shape, first)
        w = Gather(shape, second)
        rows = Div(h, seven)
        columns = Div(w, seven)
        four = Constant<value_ints = [4]>()
        cut = Concat<axis = 0>(batch, rows, seven, columns, seven, four)
        a = Reshape(x, cut)
        b = Transpose<perm = [0, 1, 3, 2, 4, 5]>(a)
        flat = Constant<value_ints = [-1, 7, 7, 4]>()
        y = Reshape(b, flat)
    }""",
    "frames of a spectrogram": """
    m (float[batch, 80, frames] mel) => (float[batch, 8, 750] y)
    <float[8, 80, 3] first, float[8, 8, 3] second, float[8, 750] positions> {
        a = Conv<pads = [1, 1]>(mel, first)
        b = Conv<pads = [1, 1], strides = [2]>(a, second)
        y = Add(b, positions)
    }""",
    "a text and another text": """
    m (float[batch, n, 4] x, float[batch, m, 4] z) => (float[batch, 33, 4] y) <float[33, 4] positions> {
        both = Concat<axis = 1>(x, z)
        y = Add(both, positions)
    }""",
    "positions of a text": """
    m (int64[batch, n] ids) => (float[batch, 40, 8] y) <float[50, 8] table, float[40, 8] positions> {
        x = Gather(table, ids)
        y = Add(x, positions)
    }""",
}


@pytest.mark.parametrize("name", FIXED)
def test_sizes_that_a_constant_fixes_are_found(name: str) -> None:
    model = model_of(FIXED[name])
    session = Session(model)
    for sample in generate_samples(model):
        assert all(np.isfinite(array).all() for array in session.run(sample).values())


def test_only_what_does_not_fit_is_changed() -> None:
    shapes = [s["x"].shape for s in generate_samples(model_of(FIXED["a reshape to constants"]))]
    assert shapes == [(2, 77, 12), (1, 77, 12), (2, 77, 12), (1, 77, 12)]


def test_an_image_is_large_enough_for_all_convolutions() -> None:
    model = model_of("""
    m (float[batch, 3, height, width] x) => (float[batch, 8, h, w] y)
    <float[8, 3, 3, 3] first, float[8, 8, 3, 3] second> {
        a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, first)
        b = Relu(a)
        c = Conv<strides = [2, 1], pads = [1, 1, 1, 1]>(b, second)
        y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
    }""")
    (sample,) = generate_samples(model, 1)
    assert sample["x"].shape == (2, 3, 64, 32)
    assert Session(model).run(sample)["y"].shape == (2, 8, 8, 8)


def pasts(samples: tuple[Sample, ...]) -> list[tuple[int, ...]]:
    return [next(array.shape for name, array in sample.items() if "past" in name) for sample in samples]


def test_the_head_axis_of_a_cache_may_be_called_anything() -> None:
    model = load(CASES / "gqa_kv_cache_dim.onnx")
    found = made_up_samples(model, 4)
    assert found.refused == ()
    # One row of several tokens, steps with a past of several and of one token, and one with room to spare.
    assert pasts(found.samples) == [(2, 1, 0, 16), (1, 1, 6, 16), (2, 1, 0, 16), (1, 1, 6, 16)]
    for sample in found.samples:
        assert (sample["attention_mask"].sum(axis=1) > 0).all()


def test_the_head_axis_follows_from_what_a_past_is_put_before() -> None:
    model = model_of("""
    m (float[batch, n, 8] x, float[batch, p, h, d] past) => (float[batch, t, 2, 4] present) {
        shape = Constant<value_ints = [0, 0, 2, 4]>()
        keys = Reshape(x, shape)
        present = Concat<axis = 1>(past, keys)
    }""")
    samples = generate_samples(model)
    assert pasts(samples) == [(2, 6, 2, 4), (1, 6, 2, 4), (2, 0, 2, 4), (1, 1, 2, 4)]
    for sample in samples:
        Session(model).run(sample)


def test_inputs_of_any_number_are_bounded_together() -> None:
    with pytest.raises(InvalidData, match=r"input 'x0' of shape \(134217728,\) is too large to be made up"):
        generate_samples(load(CASES / "many_large_inputs.onnx"))
    inputs = ", ".join(f"float[4194304] x{i}" for i in range(32))
    with pytest.raises(InvalidData, match="need 512 MiB, which is too large to be made up"):
        generate_samples(model_of(f" m ({inputs}) => (float[n] y) {{ y = Identity(x0) }}"))


def test_samples_of_any_number_are_bounded_together() -> None:
    model = model_of(" m (float[4194304] x) => (float[n] y) { y = Identity(x) }")
    assert len(generate_samples(model, 2)) == 2
    with pytest.raises(InvalidData, match="100 samples need 1600 MiB, which is too large to be made up"):
        generate_samples(model, 100)


def test_where_nothing_fits_one_line_says_what_was_tried() -> None:
    model = model_of("""
    m (float[batch, n, 4] x) => (float[batch, 8] y) <float[1, 5, 4] a, float[1, 6, 4] b, int64[1] axis = {1}> {
        s = Concat<axis = 2>(x, a)
        t = Concat<axis = 2>(x, b)
        u = ReduceSum<keepdims = 0>(s, axis)
        v = ReduceSum<keepdims = 0>(t, axis)
        y = Add(u, v)
    }""")
    with pytest.raises(InvalidData, match=r"\A[^\n]*x of shape[^\n]*Concat[^\n]*tried [^\n]*n: [^\n]*\Z"):
        made_up_samples(model, 2)


def test_what_onnxruntime_says_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no shape inference at all, as where a custom op hides everything."""
    monkeypatch.setattr(ShapeCheck, "misfit", lambda *_: None)
    found = made_up_samples(model_of(FIXED["positions of a text"]), 2)
    assert [sample["ids"].shape[1] for sample in found.samples] == [40]


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 40))
def test_a_size_that_is_a_multiple_is_found(target: int, stride: int, start: int) -> None:
    def check(sizes: dict[str, int]) -> Misfit | None:
        made = math.ceil(sizes["n"] / stride)
        return None if made == target else Misfit(1, "Add", "no", ((made, target),))

    found = fit(check, {"n": start, "other": 3}, [("other",), ("n",)])
    assert found.misfit is None
    assert math.ceil(found.sizes["n"] / stride) == target


def test_shapes_that_a_graph_does_not_take_are_told_with_the_node() -> None:
    check = ShapeCheck(model_of(FIXED["positions of a text"]))
    assert check.misfit({"ids": (np.dtype(np.int64), (2, 40))}, {}) is None
    misfit = check.misfit({"ids": (np.dtype(np.int64), (2, 41))}, {})
    assert misfit is not None
    assert misfit.gaps == ((41, 40),)
    assert misfit.place == 2
    assert str(misfit).startswith("Add")


@pytest.mark.parametrize(
    ("inputs", "steps"),
    [
        ("float[a, 4] x", "i = Constant<value_ints=[1]>() y = Gather<axis=7>(x, i)"),
        ("float[a, 4, 8, 8] x", "w = Constant<value_floats=[1.0, 2.0]>() y = Conv(x, w)"),
        ("float[a, 4] x", "i = Constant<value_int=-1>() y = Reshape(x, i)"),
        ("float[a, 3, h, w] x", "y = Conv<strides=[2]>(x, k)"),
        ("float[a, 3, n] x", "y = Conv<strides=[1], dilations=[1]>(x, k)"),
    ],
)
def test_ranks_and_attributes_that_an_op_does_not_have_are_left_to_onnxruntime(inputs: str, steps: str) -> None:
    kernel = "<float[8, 3, 4, 4] k>" if "k)" in steps else ""
    model = model_of(f"m ({inputs}) => (float[] y) {kernel} {{ {steps} }}")
    assert generate_samples(model, 1)


@pytest.mark.parametrize(
    "steps",
    [
        "n = Constant<value_ints=[3000, 3000]>() o = Constant<value_int=1>() c = Expand(o, n)",
        "n = Constant<value_ints=[3000, 3000]>() c = ConstantOfShape(n)",
        "a = Constant<value_int=0>() n = Constant<value_int=9000000>() o = Constant<value_int=1>() c = Range(a, n, o)",
        "n = Constant<value_ints=[9000000]>() o = Constant<value_ints=[1]>() c = Tile(o, n)",
        "n = Constant<value_ints=[0, 9000000]>() o = Constant<value_ints=[1]>() c = Pad(o, n)",
        "r = Constant<value_ints=[1, 2, 3, 4, 5, 6, 7, 8, 9]>() t = Constant<value_ints=[25]>() u = Tile(r, t) "
        "i = Constant<value_ints=[1, 2]>() j = Constant<value_ints=[0, 2]>() k = Constant<value_ints=[0, 1]>() "
        "v = Unsqueeze(u, i) w = Unsqueeze(u, j) x3 = Unsqueeze(u, k) c = Max(v, w, x3)",
    ],
    ids=["Expand", "ConstantOfShape", "Range", "Tile", "Pad", "Max of three"],
)
def test_no_values_are_computed_that_are_far_larger_than_the_file(steps: str) -> None:
    text = f"{{ {steps} s = Cast<to=1>(c) z = ReduceSum<keepdims=0>(s) y = Add(x, z) }}"
    model = model_of(f"m (float[a, 4] x) => (float[a, 4] y) {text}")
    tracemalloc.start()
    try:
        assert generate_samples(model, 1)[0]["x"].shape[1] == 4
        assert tracemalloc.get_traced_memory()[1] < 20e6  # of 72 MB that the value has
    finally:
        tracemalloc.stop()
