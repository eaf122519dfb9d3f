"""ai.onnx Attention against onnxruntime's kernel and against the reference evaluator of onnx."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from fused_case import CURRENT_KERNELS, UNTIMED, Array, Case, assert_close, assert_same, random_array
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from onnx_attnq.find.fused import Declined, decompose

pytestmark = CURRENT_KERNELS

BFLOAT16_STEP = 2.0**-8  # of numbers from 0.5 to 1


@st.composite
def cases(draw: st.DrawFn, opsets: tuple[int, ...] = (23, 24, 25)) -> Case:
    """What both the kernel and the reference compute: no mask that is shorter than the keys."""
    opset = draw(st.sampled_from(opsets))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    batch, queries, new = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    head_size, value_size = draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([2, 8]))
    past = draw(st.none() | st.integers(0, 3))
    in_heads = draw(st.booleans())
    heads, keys = kv_heads * group, new + (past or 0)

    def tensor(heads: int, length: int, size: int) -> Array:
        shape = (batch, heads, length, size) if in_heads else (batch, length, heads * size)
        return random_array(rng, shape, dtype)

    inputs: list[Array | None] = [
        tensor(heads, queries, head_size),
        tensor(kv_heads, new, head_size),
        tensor(kv_heads, new, value_size),
        None,
        *((None, None) if past is None else ()),
        *(
            ()
            if past is None
            else (random_array(rng, (batch, kv_heads, past, size), dtype) for size in (head_size, value_size))
        ),
    ]
    if (kind := draw(st.sampled_from(["none", "bool", "float", "infinite"]))) != "none":
        leading = [(), (1,), (heads,), (batch, 1), (1, heads), (batch, heads)]
        shape = (*draw(st.sampled_from(leading)), queries, keys)
        kept = rng.random(shape) < 0.6
        mask = random_array(rng, shape, dtype)
        inputs[3] = kept if kind == "bool" else mask if kind == "float" else np.where(kept, mask, dtype(-np.inf))
    if opset >= 24 and past is None and draw(st.booleans()):
        inputs.append(rng.integers(0, keys + 1, batch))
    attributes: dict[str, float] = {"is_causal": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.1, 1.0]))
    if draw(st.booleans()):
        attributes["softcap"] = draw(st.sampled_from([0.5, 30.0]))
    if draw(st.booleans()):
        attributes["softmax_precision"] = draw(st.sampled_from([1, 10]))
    if not in_heads:
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    if opset >= 25:
        attributes["left_window_size"] = draw(st.integers(-1, 3))
        attributes["right_window_size"] = draw(st.integers(-1, 3))
    attributes["qk_matmul_output_mode"] = draw(st.integers(0, 3))
    present = past is not None or draw(st.booleans())
    if opset >= 24 and len(inputs) == 7:
        present = False
    outputs = (4 if in_heads else 3, 4 * present, 4 * present, 4 * draw(st.booleans()))
    return Case("Attention", inputs, attributes, outputs, "", opset, fixed_shapes=draw(st.booleans()))


def past_key(case: Case) -> Array | None:
    return case.inputs[4] if len(case.inputs) > 4 else None


def finite(arrays: Sequence[Array]) -> list[Array]:
    """The kernel, and we, show masked scores as the lowest number in mode 2, where the standard says -inf."""
    return [np.maximum(array, np.finfo(array.dtype).min) for array in arrays]


@UNTIMED
@given(case=cases())
def test_equals_the_kernel(case: Case) -> None:
    # The kernel lets a single query see every key once there is a past, the standard's text does not.
    queries, new, past = (array.shape[-2] if array is not None else 0 for array in (*case.inputs[:2], past_key(case)))
    assume(not (case.attributes["is_causal"] and queries == 1 and past and new > 1))
    assert_close(finite(case.decomposed()), finite(case.original()))


@UNTIMED
@given(case=cases())
def test_equals_the_reference(case: Case) -> None:
    # In mode 0 the reference shows the scores after the softcap, the standard's text those before.
    assume(not (case.attributes["qk_matmul_output_mode"] == 0 and case.attributes.get("softcap")))
    # A softmax in float16 is done in float32, which only the reference does as it is told.
    assume(case.attributes.get("softmax_precision") != TensorProto.FLOAT16 or case.inputs[0].dtype == np.float16)
    expected = ReferenceEvaluator(case.model()).run(None, case.feeds())
    assert_close(finite(case.decomposed()), finite([np.asarray(array) for array in expected]))


def test_bfloat16() -> None:
    """onnxruntime has no CPU kernel for it: the reference runs both."""
    query, key, value = (array.astype(ml_dtypes.bfloat16) for array in query_key_value())
    mask = np.array([[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 0]], np.bool_)
    case = Case("Attention", [query, key, value, mask], {"softcap": 2.0}, (4,), "", 23)
    (expected,) = ReferenceEvaluator(case.model()).run(None, case.feeds())
    (found,) = ReferenceEvaluator(case.decomposed_model()).run(None, case.feeds())
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=2 * BFLOAT16_STEP)


def query_key_value(dtype: npt.DTypeLike = np.float32, *, keys: int = 5) -> list[Array]:
    rng = np.random.default_rng(0)
    return [random_array(rng, (2, 2, length, 8), dtype) for length in (3, keys, keys)]


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("kind", [np.bool_, np.float32])
def test_a_mask_shorter_than_the_keys_masks_the_rest(columns: int, kind: type) -> None:
    mask = np.random.default_rng(1).random((2, 1, 3, columns)) < 0.5
    inputs = [*query_key_value(), mask.astype(kind), None, None, np.array([columns, 1])]
    case = Case("Attention", inputs, {}, (4,), "", 24)
    expected = ReferenceEvaluator(case.model()).run(None, case.feeds())
    assert_close(case.decomposed(), expected)


def test_double() -> None:
    case = Case("Attention", query_key_value(np.float64), {"is_causal": 1, "softcap": 2.0}, (4,), "", 23)
    assert_close(case.decomposed(), ReferenceEvaluator(case.model()).run(None, case.feeds()))


def test_a_softmax_in_double_stays_in_double() -> None:
    case = Case("Attention", query_key_value(), {"softmax_precision": int(TensorProto.DOUBLE)}, (4,), "", 23)
    model = onnx.shape_inference.infer_shapes(case.decomposed_model())
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    (info,) = (info for info in model.graph.value_info if info.name == softmax.output[0])
    assert info.type.tensor_type.elem_type == TensorProto.DOUBLE
    assert_same(case)


def test_nan_stays_nan() -> None:
    """The guard of rows without keys looks at the mask, not at the scores."""
    query, key, value = query_key_value()
    query[0, 0, 1] = np.nan
    mask = np.array([[False] * 5, [True] * 5, [True] * 5])
    (context,) = Case("Attention", [query, key, value, mask], {}, (4,), "", 23).decomposed()
    assert np.isnan(context[0, 0, 1]).all()
    assert (context[:, :, 0] == 0).all()
    assert np.isfinite(context[0, 0, 2]).all()


@pytest.mark.parametrize(
    ("inputs", "attributes", "opset", "reason"),
    [
        ([], {"scale": -1.0}, 23, "scale -1.0 is not positive"),
        ([], {"softcap": -1.0}, 23, "softcap -1.0 is negative"),
        ([], {"qk_matmul_output_mode": 4}, 23, "qk_matmul_output_mode 4"),
        ([], {"softmax_precision": 6}, 23, "softmax_precision 6"),
        ([], {"surprise": 1}, 23, "attribute 'surprise'"),
        ([np.ones((3, 5), np.int32)], {}, 23, "attn_mask has element type INT32"),
        ([np.ones((3, 1), np.bool_)], {}, 24, "attn_mask has one column"),
        ([None, np.ones((2, 2, 1, 8), np.float32)], {}, 23, "must come together"),
    ],
)
def test_declines(inputs: list[Array | None], attributes: dict[str, float], opset: int, reason: str) -> None:
    case = Case("Attention", [*query_key_value(), *inputs], attributes, (4,), "", opset, fixed_shapes=True)
    assert reason in case.declined()


def test_declines_without_rank_or_type() -> None:
    node = ir.node("Attention", [ir.val(name) for name in "qkv"])
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": 23})
    outcome = decompose(ir.Model(graph, ir_version=10), node)
    assert isinstance(outcome, Declined)
    assert "run shape inference" in outcome.reason
