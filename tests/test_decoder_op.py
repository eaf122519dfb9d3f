"""The op that stands for GroupQueryAttention, by its body and by the native kernel, against onnxruntime's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from fused_case import CURRENT_KERNELS, UNTIMED, Array, Case, assert_close, random_array, run
from hypothesis import assume, given, settings
from test_fused_group_query_attention import cases, defined

from onnx_attnq.find import expose, find_sites
from onnx_attnq.rewriting import Record, revert, rewrite, uniform_plan
from onnx_attnq.run import native_library
from onnx_attnq.scheme import SiteScheme, preset
from onnx_attnq.verification import verify

NATIVE = pytest.param(True, marks=pytest.mark.skipif(native_library() is None, reason="the library was not built"))
BOTH = pytest.mark.parametrize("native", [False, NATIVE])

pytestmark = CURRENT_KERNELS


def rewritten(case: Case, scheme: SiteScheme) -> tuple[ir.Model, Record]:
    model = ir.from_proto(case.model())
    exposed = expose(model)
    sites = find_sites(exposed)
    record = rewrite(model, sites, uniform_plan(exposed.structure_hash, [s.id for s in sites.sites], scheme))
    assert len(record.sites) == 1, sites.rejections
    return model, record


def session(model: ir.Model, *, native: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(native_library()))
    proto = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == "onnx_attnq"]


@BOTH
def test_keeps_nothing_but_the_op(native: bool) -> None:
    case = decoding((5,), capacity=8)
    model, _ = rewritten(case, preset("row-log"))
    # Beside the op the number of tokens, which the layers of a model share.
    assert [node.op_type for node in model.graph] == ["Shape", "QuantizedGroupQueryAttention"]
    assert session(model, native=native).run(None, case.feeds())[0].shape == (1, 1, 64)


@BOTH
@settings(UNTIMED, max_examples=30)
@given(case=cases())
def test_equals_the_kernel_of_onnxruntime(case: Case, native: bool) -> None:
    assume(case.inputs[0].dtype == np.float32)
    model, _ = rewritten(case, preset("identity"))
    found = session(model, native=native).run(None, case.feeds())
    assert_close(defined(case, found), defined(case, case.original()))


def decoding(keys: Sequence[int], capacity: int, queries: int = 1, **attributes: int) -> Case:
    """Steps of some queries at the end of that many keys, in caches of a capacity."""
    rng = np.random.default_rng(len(keys) + capacity)
    batch = len(keys)
    inputs: list[Array | None] = [
        *(random_array(rng, (batch, queries, count * 16)) for count in (4, 2, 2)),
        *(random_array(rng, (batch, 2, capacity, 16)) for _ in range(2)),
        np.array(keys, np.int32) - 1,
        np.array(max(keys), np.int32),
        *(random_array(rng, (capacity + queries, 8)) for _ in range(2)),
    ]
    return Case(
        "GroupQueryAttention", inputs, {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, **attributes}, (3, 4, 4)
    )


def shared(runner: onnxruntime.InferenceSession, case: Case) -> list[Array]:
    """The outputs where past and present are one buffer."""
    binding = runner.io_binding()
    caches = []
    for name, array in case.feeds().items():
        if name in ("i3", "i4"):
            cache = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output("o1" if name == "i3" else "o2", cache)
            caches.append(cache)
        else:
            binding.bind_cpu_input(name, array)
    binding.bind_output("o0")
    runner.run_with_iobinding(binding)
    return [binding.get_outputs()[-1].numpy().copy(), *(cache.numpy().copy() for cache in caches)]


@BOTH
@pytest.mark.parametrize(
    ("keys", "capacity", "queries"),
    [((5,), 5, 1), ((5,), 64, 1), ((9, 3), 12, 1), ((7, 7, 2), 7, 1), ((8,), 16, 3), ((40,), 64, 40), ((1,), 8, 1)],
)
@pytest.mark.parametrize("window", [-1, 4])
def test_one_buffer_for_past_and_present(
    keys: tuple[int, ...], capacity: int, queries: int, window: int, native: bool
) -> None:
    case = decoding(keys, capacity, queries, local_window_size=window)
    model, _ = rewritten(case, preset("identity"))
    expected = run_shared_original(case)
    assert_close(defined(case, shared(session(model, native=native), case)), defined(case, expected))


def run_shared_original(case: Case) -> list[Array]:
    return shared(session(ir.from_proto(case.model()), native=False), case)


@BOTH
def test_writes_no_row_of_a_shared_buffer_but_the_new_ones(native: bool) -> None:
    case = decoding((9, 3), capacity=12)
    model, _ = rewritten(case, preset("row-log"))
    _, *caches = shared(session(model, native=native), case)
    for cache, before in zip(caches, case.inputs[3:5], strict=True):
        assert before is not None
        changed = (cache != before).any(axis=(1, 3))
        np.testing.assert_array_equal(np.argwhere(changed), [[0, 8], [1, 2]])


@BOTH
def test_prompt_chunks_steps_and_a_rewind(native: bool) -> None:
    rng = np.random.default_rng(3)
    whole = decoding((12,), capacity=20, queries=12)
    model, _ = rewritten(whole, preset("identity"))
    original, ours = session(ir.from_proto(whole.model()), native=False), session(model, native=native)
    caches = [
        [onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 2, 20, 16), np.float32)) for _ in "kv"] for _ in "ab"
    ]
    for past, queries in ((0, 6), (6, 4), (10, 1), (11, 1), (8, 1), (9, 3)):
        tensors = [random_array(rng, (1, queries, count * 16)) for count in (4, 2, 2)]
        found = []
        for runner, (key, value) in zip((original, ours), caches, strict=True):
            binding = runner.io_binding()
            for name, array in zip(("i0", "i1", "i2"), tensors, strict=True):
                binding.bind_cpu_input(name, array)
            binding.bind_cpu_input("i5", np.array([past + queries - 1], np.int32))
            binding.bind_cpu_input("i6", np.array(past + queries, np.int32))
            for name in ("i7", "i8"):
                binding.bind_cpu_input(name, whole.feeds()[name])
            for i, cache in enumerate((key, value)):
                binding.bind_ortvalue_input(f"i{3 + i}", cache)
                binding.bind_ortvalue_output(f"o{1 + i}", cache)
            binding.bind_output("o0")
            runner.run_with_iobinding(binding)
            found.append(
                [binding.get_outputs()[-1].numpy(), *(c.numpy()[:, :, : past + queries] for c in (key, value))]
            )
        assert_close(found[1], found[0])


def test_the_kernel_says_what_does_not_fit() -> None:
    if native_library() is None:
        pytest.skip("the library was not built")
    case = decoding((5,), capacity=8)
    model, _ = rewritten(case, preset("row-log"))
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None  # so that onnxruntime leaves it to the kernel
    runner = session(model, native=True)
    for name, wrong, reason in (
        ("i5", np.array([90], np.int32), "seqlens_k"),
        ("i5", np.array([-7], np.int32), "seqlens_k"),
        ("i5", np.array([-(2**31)], np.int32), "seqlens_k"),
        ("i5", np.array([2**31 - 1], np.int32), "seqlens_k"),
        ("i5", np.array([], np.int32), "seqlens_k"),
        ("i6", np.array(4, np.int32), "seqlens_k"),
        ("i6", np.array(0, np.int32), "seqlens_k"),
        ("i6", np.array(-1, np.int32), "total_sequence_length"),
        ("i6", np.array([], np.int32), "total_sequence_length"),
        ("i6", np.array([5, 5], np.int32), "total_sequence_length"),
        ("i0", np.ones((1, 64), np.float32), "query"),
        ("i0", np.ones((1, 1, 0), np.float32), "key"),
        ("i2", np.ones((), np.float32), "value"),
        ("i3", np.ones((1, 2, 8, 0), np.float32), "past_key"),
        ("i3", np.ones((2, 2, 8, 16), np.float32), "past_key"),
        ("i7", np.ones((0, 8), np.float32), "cos_cache"),
        ("i7", np.ones((2, 8), np.float32), "cos_cache"),
        ("i4", np.ones((1, 2, 7, 16), np.float32), "past_value"),
        ("i0", np.ones((1, 1, 68), np.float32), "key"),
    ):
        with pytest.raises(Exception, match=reason):
            runner.run(None, {**case.feeds(), name: wrong})


@pytest.mark.parametrize("native", [NATIVE])
@pytest.mark.parametrize(
    ("batch", "queries", "past", "keys"),
    [(0, 1, 8, 0), (1, 0, 8, 5), (1, 0, 8, 0), (1, 0, 0, 0)],
    ids=["no batch", "no queries", "no queries and no keys", "nothing"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_empty_gives_empty_outputs_of_the_kernel(
    batch: int, queries: int, past: int, keys: int, dtype: type[np.floating], native: bool
) -> None:
    case = decoding((5,), capacity=8)
    sizes = [(batch, queries, 64), (batch, queries, 32), (batch, queries, 32), *[(batch, 2, past, 16)] * 2]
    bias = np.zeros((1, 4, queries, keys), dtype)
    inputs: list[Array | None] = [
        *(np.ones(size, dtype) for size in sizes),
        np.full(batch, keys - 1, np.int32),
        np.array(keys, np.int32),
        *(array if array is None else array.astype(dtype) for array in case.inputs[7:9]),
        None,
        bias,
    ]
    case = dataclasses.replace(case, inputs=inputs)
    model, _ = rewritten(case, preset("row-log"))
    output, *caches = session(model, native=native).run(None, case.feeds())
    assert output.shape == (batch, queries, 64)
    assert [cache.shape for cache in caches] == [(batch, 2, max(past, keys), 16)] * 2


@pytest.mark.parametrize("form", ["", "row_max", "_row_max_log_nearest_unit", "absolute_linear_floor_mass_mean"])
def test_the_kernel_says_that_it_does_not_know_a_form(form: str) -> None:
    if native_library() is None:
        pytest.skip("the library was not built")
    model, _ = rewritten(decoding((5,), capacity=8), preset("row-log"))
    _, node = model.graph
    node.attributes["form"] = ir.AttrString("form", form)
    with pytest.raises(Exception, match="attribute form must name a scheme's fields"):
        session(model, native=True)


def test_schemes_of_other_fields_are_other_bodies() -> None:
    """The kernel knows them apart by an attribute, the bodies are told by their names."""
    model, _ = rewritten(decoding((5,), capacity=8), preset("row-log"))
    other, _ = rewritten(decoding((5,), capacity=8), preset("ji2021"))
    (_, first), (_, second) = model.graph, other.graph
    assert first.op_type == second.op_type
    assert first.attributes["form"].as_string() == "row_max_log_nearest_unit"
    assert second.attributes["form"].as_string() == "absolute_log_floor_none"


@pytest.mark.parametrize("kind", [1, 2])
def test_scores_as_an_output_stay_standard_ops(kind: int) -> None:
    case = decoding((5,), capacity=8, qk_output=kind)
    model, _ = rewritten(dataclasses.replace(case, outputs=(3, 4, 4, 4)), preset("row-log"))
    assert ops(model) == ["QuantizedSoftmax"]


@BOTH
def test_another_body_gets_another_name_and_the_fifth_stays_standard_ops(native: bool) -> None:
    """onnxruntime would run the wrong one of two functions of one name."""
    rng = np.random.default_rng(0)
    case = decoding((6,), capacity=8)
    model = ir.from_proto(case.model())
    (first,) = model.graph
    for window in (2, 3, 4, 2, 5):
        attributes = {**first.attributes, "local_window_size": ir.AttrInt64("local_window_size", window)}
        node = ir.Node(first.domain, first.op_type, first.inputs, tuple(attributes.values()), num_outputs=3)
        for i, output in enumerate(node.outputs):
            output.name, output.type, output.shape = (
                f"p{len(model.graph)}_{i}",
                first.outputs[i].type,
                first.outputs[i].shape,
            )
        model.graph.append(node)
        model.graph.outputs.extend(node.outputs)
    original = ir.to_proto(model)
    exposed = expose(model)
    sites = find_sites(exposed)
    rewrite(model, sites, uniform_plan(exposed.structure_hash, [s.id for s in sites.sites], preset("identity")))
    name = "PrunedGroupQueryAttention"
    # The last is given its name first; the second and the fifth have one body.
    names = [name, f"{name}_2", f"{name}_2", f"{name}_3", f"{name}_4"]
    assert sorted(ops(model)) == [*names, "PrunedSoftmax_absolute_none"]
    feeds = {**case.feeds(), "i0": random_array(rng, (1, 1, 64))}
    found, expected = session(model, native=native).run(None, feeds), run(original, feeds)
    assert_close(
        [a[:, :, :6] for a in found], [a[:, :, :6] for a in expected]
    )  # behind the last key nothing is defined


def test_is_verified_and_reverted() -> None:
    case = decoding((30,), capacity=64, queries=30)
    case = dataclasses.replace(case, inputs=[*case.inputs[:3], None, None, *case.inputs[5:]])
    model, _ = rewritten(case, preset("row-log"))
    assert "QuantizedGroupQueryAttention" in ops(model)
    result = verify(ir.from_proto(case.model()), model, [case.feeds()])
    for run_of_model in result.runs.values():
        (check,) = run_of_model.sites.values()
        assert check.passed
        assert check.codes == 4 * 30 * 30
    revert(model)
    assert [node.op_type for node in model.graph] == ["GroupQueryAttention"]
