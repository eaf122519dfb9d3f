"""com.microsoft MultiHeadAttention against onnxruntime's kernel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fused_case import CURRENT_KERNELS, UNTIMED, Array, Case, assert_close, assert_same, random_array
from hypothesis import given
from hypothesis import strategies as st

pytestmark = CURRENT_KERNELS

FILTERS = st.sampled_from([-1.0, -50.0, float(np.finfo(np.float32).min)])
"""The default, -10000, is tested with Attention: it rounds scores to multiples of 2**-10."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    batch, queries, new = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    heads, head_size, value_size = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8])), draw(st.sampled_from([2, 8]))
    past, in_heads = draw(st.none() | st.integers(0, 3)), draw(st.booleans())
    if past is not None or in_heads:
        value_size = head_size  # there the kernel wants values to be as wide as keys
    keys = new + (past or 0)

    def tensor(length: int, size: int, in_heads: bool = False) -> Array:
        shape = (batch, heads, length, size) if in_heads else (batch, length, heads * size)
        return random_array(rng, shape, dtype)

    inputs: list[Array | None] = [
        tensor(queries, head_size),
        tensor(new, head_size, in_heads),
        tensor(new, value_size, in_heads),
        random_array(rng, (heads * (2 * head_size + value_size),), dtype) if draw(st.booleans()) else None,
        draw(masks(rng, batch, queries, keys)),
        None,
    ]
    if draw(st.booleans()):
        shape = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), queries, keys
        inputs[5] = random_array(rng, shape, dtype)
    if past is not None:
        inputs += [tensor(past, size, in_heads=True) for size in (head_size, value_size)]
    attributes: dict[str, float] = {"num_heads": heads, "unidirectional": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.0, 0.3]))
    attributes["mask_filter_value"] = draw(FILTERS)
    present = 4 * (past is not None or draw(st.booleans()))
    outputs = (3, present, present, 4 * draw(st.booleans()))
    opset = draw(st.sampled_from([11, 12, 13, 14, 17, 18, 20, 21, 22, 23, 24]))
    return Case("MultiHeadAttention", inputs, attributes, outputs, opset=opset, fixed_shapes=draw(st.booleans()))


@st.composite
def masks(draw: st.DrawFn, rng: np.random.Generator, batch: int, queries: int, keys: int) -> Array | None:
    """Every form of key_padding_mask that the kernel takes."""
    ends = rng.integers(0, keys + 1, batch)
    forms = {
        "none": None,
        "lengths": ends,
        "lengths and offsets": np.concatenate([ends, np.arange(2 * batch + 2) * keys]),
        "keys": rng.integers(0, 2, (batch, keys)),
        "queries and keys": rng.integers(0, 2, (batch, queries, keys)),
    }
    mask = forms[draw(st.sampled_from(sorted(forms)))]
    return None if mask is None else mask.astype(np.int32)


@UNTIMED
@given(case=cases())
def test_equals_the_kernel(case: Case) -> None:
    assert_same(case)


def plain(*inputs: Array | None, **attributes: float) -> Case:
    return Case("MultiHeadAttention", inputs, {"num_heads": 2, **attributes})


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_query_key_and_value(with_bias: bool, fixed_shapes: bool) -> None:
    """The CPU kernel does not implement packed inputs: compared with the parts."""
    rng = np.random.default_rng(0)
    packed = random_array(rng, (2, 4, 2, 3, 8))
    bias = random_array(rng, (48,)) if with_bias else None
    parts = [packed[:, :, :, i].reshape(2, 4, 16) for i in range(3)]
    case = dataclasses.replace(plain(packed, None, None, bias), fixed_shapes=fixed_shapes)
    assert_close(case.decomposed(), plain(*parts, bias).original())


def test_packed_key_and_value() -> None:
    rng = np.random.default_rng(0)
    query, packed = random_array(rng, (2, 3, 16)), random_array(rng, (2, 4, 2, 2, 8))
    parts = [packed[:, :, :, i].reshape(2, 4, 16) for i in range(2)]
    assert_close(plain(query, packed).decomposed(), plain(query, *parts).original())


QUERY, CACHE = np.zeros((2, 4, 16), np.float32), np.zeros((2, 2, 3, 8), np.float32)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([QUERY, QUERY, QUERY, None, None, None, CACHE, CACHE], "name that output"),
        ([QUERY, QUERY, QUERY, None, None, None, CACHE], "must come together"),
        ([QUERY, QUERY, QUERY, None, None, None, None, None, np.array([1], np.int32)], "'past_sequence_length'"),
        ([QUERY, QUERY, QUERY, *[None] * 6, np.zeros((2, 1, 9), np.int32)], "'cache_indirection'"),
        ([QUERY, QUERY, QUERY, None, np.zeros((2, 1, 4, 4), np.int32)], "rank 4"),
        ([QUERY], "'query' has rank 3"),
        ([QUERY, None, QUERY], "a value without a key"),
        ([QUERY, QUERY], "'key' has rank 3"),
        ([QUERY, np.zeros((2, 4, 2, 2, 8), np.float32), None, np.zeros(48, np.float32)], "'bias'"),
        ([QUERY, QUERY.astype(np.float64), QUERY], "differ in element type"),
        ([QUERY.astype(np.int32)] * 3, "INT32"),
    ],
)
def test_declines(inputs: list[Array | None], reason: str) -> None:
    assert reason in plain(*inputs).declined()
