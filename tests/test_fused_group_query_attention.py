"""com.microsoft GroupQueryAttention against onnxruntime's kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from fused_case import CURRENT_KERNELS, UNTIMED, Array, Case, assert_close, random_array
from hypothesis import given
from hypothesis import strategies as st

pytestmark = CURRENT_KERNELS


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A step as the kernel takes it: a prompt (padded on the right), one token, or more tokens of batch 1."""

    queries: int
    cache: int | None
    keys: tuple[int, ...]

    @property
    def total(self) -> int:
        return max(self.keys)


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    batch = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["prompt", "token", "tokens"]))
    if kind == "prompt":
        queries = draw(st.integers(1, 6))
        keys = [queries, *draw(st.lists(st.integers(1, queries), min_size=batch - 1, max_size=batch - 1))]
        return Chunk(queries, draw(st.none() | st.just(0) | st.integers(queries, 9)), tuple(keys))
    if kind == "token":
        total = draw(st.integers(2, 8))
        keys = [total, *draw(st.lists(st.integers(1, total), min_size=batch - 1, max_size=batch - 1))]
        return Chunk(1, draw(st.sampled_from([total - 1, 9])), tuple(keys))
    queries, past = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    return Chunk(queries, draw(st.sampled_from([past, 9])), (past + queries,))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    chunk = draw(chunks())
    kv_heads, group, head_size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from([16, 32]))
    heads, batch, length = kv_heads * group, len(chunk.keys), chunk.queries

    def tensor(*shape: int) -> Array:
        return random_array(rng, shape, dtype)

    inputs: list[Array | None] = [
        *(
            (tensor(batch, length, (heads + 2 * kv_heads) * head_size), None, None)
            if draw(st.booleans())
            else (tensor(batch, length, count * head_size) for count in (heads, kv_heads, kv_heads))
        ),
        *(None if chunk.cache is None else tensor(batch, kv_heads, chunk.cache, head_size) for _ in range(2)),
        np.array(chunk.keys, np.int32) - 1,
        np.array(chunk.total, np.int32),
        *[None] * 5,
    ]
    attributes: dict[str, float] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if draw(st.booleans()):
        attributes |= {"do_rotary": 1, "rotary_interleaved": draw(st.integers(0, 1))}
        columns = draw(st.sampled_from([8, head_size // 2]))
        inputs[7:9] = [tensor(16, columns), tensor(16, columns)]
        if draw(st.booleans()):
            inputs[9] = rng.integers(0, 16 - length, (batch, length))
    if draw(st.booleans()):
        shape = draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), length, chunk.total
        inputs[10] = tensor(*shape)
    sink = draw(st.sampled_from(["none", "smooth", "per head"]))
    if sink == "smooth":
        attributes["smooth_softmax"] = 1
    elif sink == "per head":
        inputs[11] = tensor(heads)
    if draw(st.booleans()):
        attributes["local_window_size"] = draw(st.integers(1, 5))
    elif draw(st.booleans()):
        attributes["causal"] = 0
    if draw(st.booleans()):
        attributes["softcap"] = draw(st.sampled_from([0.5, 30.0]))
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.0, 0.3]))
    attributes["qk_output"] = draw(st.integers(0, 2))
    outputs = (3, 4, 4, 4 * (attributes["qk_output"] > 0))
    opset = draw(st.sampled_from([11, 12, 13, 14, 17, 18, 20, 21, 22, 23, 24]))
    return Case("GroupQueryAttention", inputs, attributes, outputs, opset=opset, fixed_shapes=draw(st.booleans()))


def defined(case: Case, arrays: list[Array]) -> list[Array]:
    """The outputs with zeros where the operator's text leaves them open: rows of padding, and keys behind the last."""
    queries, keys = case.inputs[0].shape[1], case.inputs[5] + 1
    context, key, value, *scores = (array.copy() for array in arrays)
    for entry, count in enumerate(keys):
        context[entry, count:] = 0
        for cache in (key, value):
            cache[entry, :, count:] = 0
        for output in scores:
            output[entry, :, count:] = 0
            output[entry, :, :, count:] = 0
    assert queries >= 1
    return [context, key, value, *scores]


@UNTIMED
@given(case=cases())
def test_equals_the_kernel(case: Case) -> None:
    assert_close(defined(case, case.decomposed()), defined(case, case.original()))


@st.composite
def padded_chunks(draw: st.DrawFn) -> Case:
    """Chunks of one length, of which each batch entry fills as much as it has, behind a cache of its own length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, length, capacity = draw(st.integers(1, 3)), draw(st.integers(1, 4)), 12
    filled = rng.integers(1, length + 1, batch)
    keys = filled + rng.integers(0, capacity - length + 1, batch)
    caches = [random_array(rng, (batch, 2, capacity, 16)) for _ in range(2)]
    queries, *key_value = (random_array(rng, (batch, length, count * 16)) for count in (4, 2, 2))
    lengths = [(keys - 1).astype(np.int32), np.array(capacity, np.int32)]
    rotary = [random_array(rng, (16, 8)) for _ in range(2)]
    inputs = [queries, *key_value, *caches, *lengths, *rotary, *[None] * 7, filled.astype(np.int32)]
    attributes = {
        "num_heads": 4,
        "kv_num_heads": 2,
        "do_rotary": 1,
        "local_window_size": draw(st.sampled_from([-1, 3])),
    }
    return Case("GroupQueryAttention", inputs, attributes, (3, 4, 4))


@UNTIMED
@given(case=padded_chunks())
def test_padded_chunks_equal_the_kernel(case: Case) -> None:
    def valid(arrays: Sequence[Array]) -> list[Array]:
        context, *caches = (array.copy() for array in arrays)
        for entry, (count, last) in enumerate(zip(case.inputs[16], case.inputs[5], strict=True)):
            context[entry, count:] = 0
            for cache in caches:
                cache[entry, :, last + 1 :] = 0
        return [context, *caches]

    assert_close(valid(case.decomposed()), valid(case.original()))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("queries", "capacity", "keys"), [(1, 8, (6, 4)), (3, 8, (6,)), (4, 4, (4,)), (1, 5, (5,))])
def test_a_layer_without_keys_reads_the_cache_of_another(
    queries: int, capacity: int, keys: tuple[int, ...], rotary: bool
) -> None:
    rng = np.random.default_rng(0)
    batch = len(keys)
    inputs = [
        random_array(rng, (batch, queries, 64)),
        *(np.zeros((batch, 0, 32), np.float32) for _ in range(2)),
        *(random_array(rng, (batch, 2, capacity, 16)) for _ in range(2)),
        np.array(keys, np.int32) - 1,
        np.array(max(keys), np.int32),
        *(random_array(rng, (16, 8)) for _ in range(2 * rotary)),
    ]
    attributes = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": int(rotary)}
    case = Case("GroupQueryAttention", inputs, attributes, (3, 4, 4), fixed_shapes=True)
    assert_close(defined(case, case.decomposed()), defined(case, case.original()))


QUERY, CACHE = np.zeros((1, 2, 64), np.float32), np.zeros((1, 2, 4, 16), np.float32)
KEY, LAST, TOTAL = np.zeros((1, 2, 32), np.float32), np.array([1], np.int32), np.array(2, np.int32)
CORE = [QUERY, KEY, KEY, None, None, LAST, TOTAL]


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        ([QUERY, KEY, KEY, CACHE, CACHE, LAST, TOTAL], {}, "name that output"),
        ([QUERY, KEY, None, None, None, LAST, TOTAL], {}, "must come together"),
        ([QUERY, KEY, KEY], {}, "no input 'seqlens_k'"),
        (CORE, {"do_rotary": 1}, "cos_cache and sin_cache"),
        (CORE, {"kv_num_heads": 3}, "cannot share"),
        (CORE, {"local_window_size": 0}, "local_window_size 0"),
        (CORE, {"local_window_size": 2, "causal": 0}, "local_window_size 2"),
        (CORE, {"sliding_window_cache": 1, "local_window_size": 2}, "use a full cache"),
        (CORE, {"kv_cache_bit_width": 8}, "without scales"),
        ([*CORE, *[None] * 5, np.ones(1, np.float32)], {}, "must come together"),
        ([*CORE, *[None] * 7, np.ones(16, np.float32)], {}, "'q_norm_weight'"),
        ([*CORE, None, None, np.zeros((1, 2), np.int64), *[None] * 6, LAST], {}, "'position_ids'"),
    ],
)
def test_declines(inputs: list[Array | None], attributes: dict[str, int], reason: str) -> None:
    case = Case("GroupQueryAttention", inputs, {"num_heads": 4, "kv_num_heads": 2, **attributes}, fixed_shapes=True)
    assert reason in case.declined()
