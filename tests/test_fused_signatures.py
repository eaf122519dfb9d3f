"""The table of fused attention ops against the schemas of onnx and onnxruntime, and what follows from a row of it."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime_state
import pytest
from small_graphs import parse

from onnx_attnq.find.fused import FUSED_OPS, REFUSED_OPS
from onnx_attnq.graph import FUSED_SIGNATURES, Holds, input_holds, signature_of
from onnx_attnq.inputs.mask_meaning import Meaning, mask_meaning
from onnx_attnq.inputs.roles import Role, role_of
from onnx_attnq.inputs.signature import ModelInput


def _schemas() -> dict[tuple[str, str], Any]:
    ours = {(s.domain, s.name): s for s in onnxruntime_state.get_all_operator_schema() if s.domain == "com.microsoft"}
    return {**ours, ("", "Attention"): onnx.defs.get_schema("Attention", 24)}


@pytest.mark.parametrize("op", sorted(FUSED_SIGNATURES))
def test_names_and_places_are_those_of_the_schemas(op: tuple[str, str]) -> None:
    schema, known = _schemas()[op], FUSED_SIGNATURES[op]
    assert [one.name for one in known.inputs] == [one.name for one in schema.inputs]
    assert len(known.output_ranks) <= len(schema.outputs)
    later = {"left_window_size", "right_window_size"}  # of opset 25
    assert known.attributes - later <= set(schema.attributes)


def test_what_is_decomposed_is_described_and_what_is_described_is_decomposed_or_refused() -> None:
    assert set(FUSED_SIGNATURES) >= FUSED_OPS
    assert set(FUSED_SIGNATURES) <= FUSED_OPS | set(REFUSED_OPS)


def _input(op_type: str, place: int, domain: str, element: ir.DataType, *shape: str) -> tuple[ir.Model, ir.Value]:
    value = ir.val("x", element, shape)
    others = [ir.val(f"v{i}", ir.DataType.FLOAT, ("B", "L", 8)) for i in range(place)]
    node = ir.node(op_type, [*others, value], domain=domain, attributes={"num_heads": 2})
    graph = ir.Graph([*others, value], node.outputs, nodes=[node], opset_imports={"": 23, "com.microsoft": 1}, name="g")
    return ir.Model(graph, ir_version=10), value


@pytest.mark.parametrize(
    ("domain", "op_type", "name", "element", "shape", "role"),
    [
        ("com.microsoft", "MultiHeadAttention", "key_padding_mask", ir.DataType.INT32, ("B", "L"), Role.MASK),
        ("com.microsoft", "MultiHeadAttention", "key_padding_mask", ir.DataType.INT32, ("B",), Role.LENGTHS),
        ("com.microsoft", "MultiHeadAttention", "past_value", ir.DataType.FLOAT, ("B", "N", "P", "D"), Role.PAST),
        ("com.microsoft", "DecoderMaskedMultiHeadAttention", "past_key", ir.DataType.FLOAT, ("B",) * 4, Role.PAST),
        ("com.microsoft", "GroupQueryAttention", "seqlens_k", ir.DataType.INT32, ("B",), Role.LAST_INDEX),
        ("com.microsoft", "GroupQueryAttention", "query_seqlens", ir.DataType.INT32, ("B",), Role.LENGTHS),
        ("", "Attention", "past_value", ir.DataType.FLOAT, ("B", "N", "P", "D"), Role.PAST),
        ("", "Attention", "nonpad_kv_seqlen", ir.DataType.INT64, ("B",), Role.LENGTHS),
    ],
)
def test_the_role_of_an_input_is_what_the_op_reads_it_as(
    domain: str, op_type: str, name: str, element: ir.DataType, shape: tuple[str, ...], role: Role
) -> None:
    places = [one.name for one in FUSED_SIGNATURES[domain, op_type].inputs]
    model, value = _input(op_type, places.index(name), domain, element, *shape)
    item = ModelInput("x", element.numpy(), shape)
    assert role_of(model, value, item) is role


@pytest.mark.parametrize(
    ("domain", "op_type", "name", "element", "meaning"),
    [
        ("com.microsoft", "MultiHeadAttention", "attention_bias", ir.DataType.FLOAT, Meaning.ADDED),
        ("com.microsoft", "GroupQueryAttention", "attention_bias", ir.DataType.FLOAT, Meaning.ADDED),
        ("com.microsoft", "DecoderMaskedMultiHeadAttention", "mask_index", ir.DataType.INT32, Meaning.ONE_IS_VISIBLE),
        ("com.microsoft", "DecoderMaskedMultiHeadAttention", "attention_bias", ir.DataType.FLOAT, Meaning.ADDED),
        ("", "Attention", "attn_mask", ir.DataType.BOOL, Meaning.ONE_IS_VISIBLE),
        ("", "Attention", "attn_mask", ir.DataType.FLOAT, Meaning.ADDED),
        ("", "Attention", "past_value", ir.DataType.FLOAT, None),  # at the place of com.microsoft's attention_bias
    ],
)
def test_the_meaning_of_a_mask_is_what_the_op_makes_of_it(
    domain: str, op_type: str, name: str, element: ir.DataType, meaning: Meaning | None
) -> None:
    places = [one.name for one in FUSED_SIGNATURES[domain, op_type].inputs]
    model, value = _input(op_type, places.index(name), domain, element, "B", "N", "L", "K")
    assert mask_meaning(model, value) is meaning


def test_what_is_made_of_a_mask_before_it_is_added_counts() -> None:
    model = parse(
        "(float[B,L,8] q, float[B,1,1,L] m) => (float[B,L,8] y) { one = Constant<value_float=1.0>()"
        " low = Constant<value_float=-10000.0>() hidden = Sub(one, m) bias = Mul(hidden, low)"
        " y = com.microsoft.MultiHeadAttention<num_heads=2>(q, q, q, , , bias) }"
    )
    mask = next(value for value in model.graph.inputs if value.name == "m")
    assert mask_meaning(model, mask) is Meaning.ONE_IS_VISIBLE


def test_an_op_of_another_domain_is_not_described() -> None:
    node = ir.node("Attention", [ir.val("x")], domain="my.ops")
    assert signature_of(node) is None
    assert input_holds(node, 0) is None
    assert input_holds(ir.node("Attention", [ir.val(c) for c in "qkvm"], domain="ai.onnx"), 3) is Holds.MASK
