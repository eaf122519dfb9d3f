"""What all fused ops share: where the node is, what is refused, and what is read from the graph around it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused_case import CURRENT_KERNELS, Array, Case, assert_close, random_array, run
from onnx import TensorProto, helper, parser

from onnx_attnq.find import fused
from onnx_attnq.find.fused import FUSED_OPS, REFUSED_OPS, Declined, Decomposed, decompose, is_fused_attention
from onnx_attnq.graph import certain_rank_of, dtype_of, width_of


def query_key_value() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: random_array(rng, (2, 4, 16)) for name in "qkv"}


def decompose_all(model: ir.Model) -> None:
    """Decomposes every fused attention, wherever it is."""
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    found = [node for graph in graphs for node in graph.all_nodes() if is_fused_attention(node)]
    assert found
    for node in found:
        outcome = decompose(model, node)
        assert isinstance(outcome, Decomposed), outcome


def assert_all_decompose(text: str, feeds: dict[str, Array]) -> None:
    proto = parser.parse_model(text)
    model = ir.from_proto(proto)
    decompose_all(model)
    decomposed = ir.to_proto(model)
    onnx.checker.check_model(decomposed)
    assert_close(run(decomposed, feeds), run(proto, feeds))


HEADER = 'ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "local" : 1]'
INTERFACE = "(float[B, L, 16] q, float[B, L, 16] k, float[B, L, 16] v"


def test_in_a_function_that_is_called_twice() -> None:
    assert_all_decompose(
        f"""
        <{HEADER}>
        twice {INTERFACE}) => (float[B, L, 16] y) {{
            x = local.attend(q, k, v)
            y = local.attend(x, k, v)
        }}
        <domain: "local", opset_import: ["" : 17, "com.microsoft" : 1]>
        attend (query, key, value) => (context) {{
            one = Constant <value = float {{1.0}}> ()
            scaled = Mul (query, one)
            typed = Cast <to = 1> (scaled)
            rows = Constant <value = int64[3] {{0, 0, 16}}> ()
            shaped = Reshape (typed, rows)
            keys = Reshape (key, rows)
            values = Reshape (value, rows)
            context = com.microsoft.MultiHeadAttention <num_heads = 2> (shaped, keys, values)
        }}
        """,
        query_key_value(),
    )


def test_a_function_has_an_opset_of_its_own() -> None:
    """At opset 12 Squeeze has its axes in an attribute, at 17 in an input."""
    proto = parser.parse_model(
        f"""
        <{HEADER}>
        calls {INTERFACE}) => (float[B, L, 16] y) {{ y = local.attend(q, k, v) }}
        <domain: "local", opset_import: ["" : 12, "com.microsoft" : 1]>
        attend (query, key, value) => (context) {{
            typed = Cast <to = 1> (query)
            rows = Constant <value = int64[3] {{0, 0, 16}}> ()
            shaped = Reshape (typed, rows)
            keys = Reshape (key, rows)
            values = Reshape (value, rows)
            context = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (shaped, keys, values)
        }}
        """
    )
    model = ir.from_proto(proto)
    decompose_all(model)
    (function,) = model.functions.values()
    squeeze = next(node for node in function if node.op_type == "Squeeze")
    assert list(squeeze.attributes) == ["axes"]


def test_in_a_branch_that_reads_values_of_the_graph_around_it() -> None:
    feeds = query_key_value()
    text = f"""
        <{HEADER}>
        branches {INTERFACE}, bool causal) => (float[B, L, 16] y) {{
            y = If (causal) <
                then_branch = past () => (float[B, L, 16] a) {{
                    a = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (q, k, v)
                }},
                else_branch = all () => (float[B, L, 16] b) {{
                    b = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)
                }}
            >
        }}
        """
    for causal in (False, True):
        assert_all_decompose(text, {**feeds, "causal": np.array(causal)})


def test_two_attentions_that_share_their_mask() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 1]], np.int32)
    assert_all_decompose(
        f"""
        <{HEADER}>
        layers {INTERFACE}, int32[B, L] mask) => (float[B, L, 16] y, float[B, L, 16] x) {{
            x = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, , mask)
            y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, k, v, , mask)
        }}
        """,
        {**query_key_value(), "mask": mask},
    )


@CURRENT_KERNELS
def test_present_without_past_is_an_output_of_its_own() -> None:
    """In four dimensions the key itself is the present key, and still both names must be there."""
    key = random_array(np.random.default_rng(0), (2, 2, 4, 8))
    case = Case("Attention", [key, key, key], {}, (4, 4, 4), "", 23)
    assert_close(case.decomposed(), case.original())


def test_the_softmax_says_what_it_works_on() -> None:
    case = Case("MultiHeadAttention", list(query_key_value().values()), {"num_heads": 2}, fixed_shapes=True)
    model = ir.from_proto(case.model())
    outcome = decompose(model, model.graph[0])
    assert isinstance(outcome, Decomposed)
    (scores,) = outcome.softmax.inputs
    assert scores is not None
    assert (scores.dtype, scores.shape) == (ir.DataType.FLOAT, [2, 2, 4, 4])


def test_an_attribute_of_the_calling_node_is_declined() -> None:
    proto = parser.parse_model(
        f"""
        <{HEADER}>
        calls {INTERFACE}) => (float[B, L, 16] y) {{ y = local.attend <heads = 2> (q, k, v) }}
        <domain: "local", opset_import: ["" : 17, "com.microsoft" : 1]>
        attend <heads> (q, k, v) => (y) {{
            y = com.microsoft.MultiHeadAttention <num_heads: int = @heads> (q, k, v)
        }}
        """
    )
    model = ir.from_proto(proto)
    (function,) = model.functions.values()
    outcome = decompose(model, function[0])
    assert isinstance(outcome, Declined)
    assert "inline the function" in outcome.reason


def test_an_old_opset_is_declined() -> None:
    case = Case("MultiHeadAttention", list(query_key_value().values()), {"num_heads": 2}, opset=10)
    assert "needs opset 11" in case.declined()


def test_an_output_that_the_op_does_not_define_is_declined() -> None:
    case = Case("MultiHeadAttention", list(query_key_value().values()), {"num_heads": 2}, (3, 4, 4, 4, 4))
    assert "'o4'" in case.declined()


@pytest.mark.parametrize(("domain", "op_type"), sorted(REFUSED_OPS))
def test_refused_ops_are_recognized_and_declined(domain: str, op_type: str) -> None:
    node = ir.node(op_type, [ir.val("x")], domain=domain)
    model = ir.Model(ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": 17}), ir_version=8)
    assert is_fused_attention(node)
    assert (domain, op_type) not in FUSED_OPS
    outcome = decompose(model, node)
    assert isinstance(outcome, Declined)
    assert outcome.reason.startswith(op_type)


def test_an_attention_of_the_future_is_not_passed_over() -> None:
    node = ir.node("CompressedAttention", [ir.val("x")], domain="com.microsoft")
    assert is_fused_attention(node)
    assert not is_fused_attention(ir.node("BertAttention", [ir.val("x")], domain="my.functions"))


@pytest.mark.parametrize("name", sorted(fused.__all__))
def test_public_names_exist(name: str) -> None:
    assert hasattr(fused, name)


def test_types_ranks_and_widths_are_found_behind_ops_without_value_info() -> None:
    text = f"""
        <{HEADER}>
        layer (int32[B, L] ids, int32[B, L] keep, float16[B, L, 16] x, float16[16, 16] w, float16[16] bias) => (y) {{
            hidden, mask = com.microsoft.EmbedLayerNormalization (ids, ids, w, w, w, bias, bias, keep)
            projected = MatMul (hidden, w)
            q = Add (projected, bias)
            y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q, , mask)
        }}
        """
    graph = ir.from_proto(parser.parse_model(text)).graph
    q, _, _, _, mask = graph[-1].inputs
    assert q is not None
    assert mask is not None
    assert (dtype_of(q), certain_rank_of(q), width_of(q)) == (ir.DataType.FLOAT16, 3, 16)
    assert (dtype_of(mask), certain_rank_of(mask), width_of(mask)) == (ir.DataType.INT32, 1, None)


def test_a_long_chain_of_producers_is_given_up() -> None:
    nodes = [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    info = [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [2])]
    proto = helper.make_model(helper.make_graph(nodes, "chain", info, [helper.make_empty_tensor_value_info("v5000")]))
    last = ir.from_proto(proto).graph.outputs[0]
    assert (dtype_of(last), certain_rank_of(last), width_of(last)) == (None, None, None)


def test_asking_for_a_rank_renames_no_tensor_of_the_model() -> None:
    tensor = ir.tensor([2, 3], name="the caller's")
    target = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
    target.outputs[0].name = "target"
    reshaped = ir.Node("", "Reshape", [ir.Value(name="x"), target.outputs[0]])
    assert certain_rank_of(reshaped.outputs[0]) == 2
    assert tensor.name == "the caller's"
