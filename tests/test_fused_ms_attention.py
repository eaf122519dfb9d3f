"""com.microsoft Attention against onnxruntime's kernel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fused_case import CURRENT_KERNELS, UNTIMED, Array, Case, assert_close, assert_same, random_array
from hypothesis import given
from hypothesis import strategies as st

pytestmark = CURRENT_KERNELS

FILTERS = st.sampled_from([-1.0, -50.0, float(np.finfo(np.float32).min)])
"""The default, -10000, is tested by itself: it rounds scores to multiples of 2**-10."""
OPSETS = st.sampled_from([11, 12, 13, 14, 17, 18, 20, 21, 22, 23, 24])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, length, heads = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    head_size, hidden = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([3, 8]))
    past = draw(st.none() | st.integers(0, 3))
    value_size = head_size if past is not None else draw(st.sampled_from([head_size, 2]))
    width, keys = heads * (2 * head_size + value_size), length + (past or 0)
    inputs: list[Array | None] = [
        random_array(rng, (batch, length, hidden)),
        random_array(rng, (hidden, width)),
        random_array(rng, (width,)) if draw(st.booleans()) else None,
        draw(masks(rng, batch, length, keys)),
        None if past is None else random_array(rng, (2, batch, heads, past, head_size)),
        None,
    ]
    if past is None and draw(st.booleans()):
        shape = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), length, keys
        inputs[5] = random_array(rng, shape)
    attributes: dict[str, float | list[int]] = {"num_heads": heads, "unidirectional": draw(st.integers(0, 1))}
    if value_size != head_size or draw(st.booleans()):
        attributes["qkv_hidden_sizes"] = [heads * head_size, heads * head_size, heads * value_size]
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.0, 0.3]))
    attributes["mask_filter_value"] = draw(FILTERS)
    present = past is not None or (value_size == head_size and draw(st.booleans()))
    return Case("Attention", inputs, attributes, (3, 5 * present), opset=draw(OPSETS), fixed_shapes=draw(st.booleans()))


@st.composite
def masks(draw: st.DrawFn, rng: np.random.Generator, batch: int, length: int, keys: int) -> Array | None:
    """Every form of mask_index that the CPU kernel implements."""
    ends, starts = rng.integers(0, keys + 1, batch), rng.integers(0, keys + 1, batch)
    forms = {
        "none": None,
        "lengths": ends,
        "ends and starts": np.concatenate([ends, starts]),
        "lengths and offsets": np.concatenate([ends, np.arange(2 * batch + 2) * keys]),
        "keys": rng.integers(0, 2, (batch, keys)),
        "dummy": rng.integers(0, 2, (draw(st.sampled_from([1, batch])), 1)),
        "queries and keys": rng.integers(0, 2, (batch, length, keys)),
    }
    mask = forms[draw(st.sampled_from(sorted(forms)))]
    return None if mask is None else mask.astype(np.int32)


@UNTIMED
@given(case=cases())
def test_equals_the_kernel(case: Case) -> None:
    assert_same(case)


def plain(*more: Array | None, **attributes: float) -> Case:
    """Batch 2, 4 tokens, 2 heads of 8."""
    rng = np.random.default_rng(0)
    inputs = [random_array(rng, shape) for shape in ((2, 4, 16), (16, 48), (48,))]
    return Case("Attention", [*inputs, *more], {"num_heads": 2, **attributes})


def test_the_default_filter_hides_keys() -> None:
    assert_same(plain(np.array([[1, 0, 1, 0], [0, 0, 0, 1]], np.int32)))


def test_the_default_filter_on_all_keys_rounds_the_scores() -> None:
    """The kernel adds the products to -10000 one by one, so that the last bits of a score, 2**-10, are its own."""
    case = plain(np.zeros((2, 4), np.int32))
    (found,), (expected,) = case.decomposed(), case.original()
    np.testing.assert_allclose(found, expected, atol=8 * 2.0**-10)


@pytest.mark.parametrize("past", [0, 3])
def test_a_square_mask_is_read_at_the_rows_of_the_queries(past: int) -> None:
    """The CPU kernel does not implement 4-D masks: compared with the 3-D mask that is cut out of it."""
    rng = np.random.default_rng(1)
    square = rng.integers(0, 2, (2, 1, 9, 9)).astype(np.int32)
    cache = random_array(rng, (2, 2, 2, past, 8))
    cut = square[:, 0, past : past + 4, : past + 4]
    case = dataclasses.replace(plain(square, cache), outputs=(3, 5))
    assert_close(case.decomposed(), dataclasses.replace(plain(cut, cache), outputs=(3, 5)).original())


@pytest.mark.parametrize("past", [0, 3, 5])
def test_a_shared_cache_holds_the_past_at_its_beginning(past: int) -> None:
    """The CPU kernel does not implement a shared cache: compared with a past of just the tokens there are."""
    buffer = random_array(np.random.default_rng(1), (2, 2, 2, 9, 8))
    shared = plain(None, buffer, None, np.array([past], np.int32), past_present_share_buffer=1, unidirectional=1)
    context, present = dataclasses.replace(shared, outputs=(3, 5)).decomposed()
    grown = dataclasses.replace(plain(None, buffer[:, :, :, :past], unidirectional=1), outputs=(3, 5))
    expected, grown_present = grown.original()
    buffer[:, :, :, : past + 4] = grown_present
    assert_close([context, present], [expected, buffer])


@pytest.mark.parametrize(
    ("more", "attributes", "reason"),
    [
        ([], {"do_rotary": 1}, "do_rotary"),
        ([None, np.zeros((2, 2, 2, 1, 8), np.float32)], {}, "only together with the output present"),
        ([None, np.zeros((2, 2, 2, 1, 8), np.float32), np.zeros((2, 2, 4, 5), np.float32)], {}, "attention_bias"),
        ([np.zeros((2, 4), np.int64)], {}, "'mask_index' is not int32"),
        ([np.zeros((2, 1, 1, 4, 4), np.int32)], {}, "rank 5"),
        ([], {"num_heads": 0}, "positive 'num_heads'"),
        ([], {"num_heads": 3}, "no multiples of 3 heads"),
        ([], {"qkv_hidden_sizes": [8, 16, 24]}, "query and key the same size"),
        ([None, None, None, None, np.zeros(1, np.float32)], {}, "more inputs"),
    ],
)
def test_declines(more: list[Array | None], attributes: dict[str, float], reason: str) -> None:
    assert reason in dataclasses.replace(plain(*more, **attributes), fixed_shapes=True).declined()
