"""A site is called the same before and after, whatever nodes are called and whatever is left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_attnq.errors import InvalidPlan
from onnx_attnq.find import expose, find_sites
from onnx_attnq.graph import Dataflow
from onnx_attnq.job import compress
from onnx_attnq.model import structure_hash
from onnx_attnq.rewriting import RewriteSettings, rewrite, uniform_plan
from onnx_attnq.scheme import preset

NAMES = st.sampled_from(["", "a", "/a", "a/", "a#2", "a#3", "y0", "y1", "attn", "[0]"])


def decomposed(names: list[str]) -> onnx.ModelProto:
    """Attentions of standard ops whose softmax have the names."""
    nodes = []
    for i, name in enumerate(names):
        nodes += [
            helper.make_node("MatMul", ["q", "k"], [f"s{i}"]),
            helper.make_node("Softmax", [f"s{i}"], [f"p{i}"], name=name, axis=-1),
            helper.make_node("MatMul", [f"p{i}", "v"], [f"y{i}"]),
        ]
    shapes = {"q": (1, 2, 5, 8), "k": (1, 2, 8, 5), "v": (1, 2, 5, 8)}
    return model(nodes, shapes, {f"y{i}": (1, 2, 5, 8) for i in range(len(names))})


def fused(names: list[str]) -> onnx.ModelProto:
    """MultiHeadAttentions that have the names."""
    nodes = [
        helper.make_node("MultiHeadAttention", ["q", "k", "v"], [f"y{i}"], name, domain="com.microsoft", num_heads=2)
        for i, name in enumerate(names)
    ]
    return model(nodes, dict.fromkeys("qkv", (1, 5, 16)), {f"y{i}": (1, 5, 16) for i in range(len(names))})


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
) -> onnx.ModelProto:
    ins, outs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in x.items()] for x in (inputs, outputs)
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", ins, outs), opset_imports=opsets, ir_version=10)


def ids(proto: onnx.ModelProto) -> list[str]:
    return [site.id for site in find_sites(expose(ir.from_proto(proto))).sites]


@pytest.mark.parametrize("make", [decomposed, fused])
@settings(deadline=None, max_examples=25)
@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_ids_are_unique_and_the_same_whatever_is_kept(make, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    proto = make(names)
    found = ids(proto)
    assert len(set(found)) == len(found) == len(names)
    for kept in itertools.combinations(found, len(found) // 2):
        sites = find_sites(expose(ir.from_proto(proto), keep=lambda site, kept=kept: site in kept)).sites
        assert [s.id for s in sites] == [i for i in found if make is decomposed or i not in kept]


def test_the_site_that_is_excluded_is_the_one_that_stays(tmp_path: Path) -> None:
    onnx.save(fused(["/attn", "attn"]), tmp_path / "m.onnx")
    result = compress(tmp_path / "m.onnx", rewriting=RewriteSettings(exclude=("attn",)))
    assert result.record is not None
    assert result.output is not None
    assert [site.id for site in result.record.sites] == ["attn#2"]
    assert result.verification is not None
    assert result.verification.passed
    (left,) = (node for node in onnx.load(result.output).graph.node if node.op_type == "MultiHeadAttention")
    assert left.output == ["y0"]


def test_each_call_of_a_function_is_a_site(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    body = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], "attn", domain="com.microsoft", num_heads=2)
    proto = model(
        [helper.make_node("Block", ["q", "k", "v"], [f"y{i}"], f"b{i}", domain="loc") for i in range(2)],
        dict.fromkeys("qkv", (1, 5, 16)),
        {f"y{i}": (1, 5, 16) for i in range(2)},
    )
    proto.functions.append(helper.make_function("loc", "Block", list("qkv"), ["y"], [body], opsets))
    proto.opset_import.append(helper.make_opsetid("loc", 1))
    first, second = ids(proto)
    onnx.save(proto, tmp_path / "m.onnx")
    result = compress(tmp_path / "m.onnx", rewriting=RewriteSettings(exclude=(first,)))
    assert result.record is not None
    assert [site.id for site in result.record.sites] == [second]


def test_subgraphs_of_nodes_with_one_name_are_told_apart() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (bool c, float[2,3] x) => (float[2,3] y0, float[2,3] y1) {
      y0 = If (c) <then_branch = t0 () => (float[2,3] a0) { a0 = Exp (x) },
                   else_branch = e0 () => (float[2,3] b0) { b0 = Neg (x) }>
      y1 = If (c) <then_branch = t1 () => (float[2,3] a1) { a1 = Exp (x) },
                   else_branch = e1 () => (float[2,3] b1) { b1 = Neg (x) }>
    }"""
    loaded = ir.from_onnx_text(text)
    for node in loaded.graph:
        node.name = "n"
    flow = Dataflow(loaded)
    scopes = [flow.scope(graph) for graph in flow.graphs]
    assert len(set(scopes)) == len(scopes) == 5
    assert [
        name for graph in flow.graphs[1:] for name in flow.values_in(flow.scope(graph)) if name in ("a0", "a1")
    ] == [
        "a0",
        "a1",
    ]


def test_a_plan_that_is_not_used_up_fails() -> None:
    loaded = ir.from_proto(fused(["a", "b"]))
    plan = uniform_plan(structure_hash(loaded), ["a", "b"], preset())
    found = find_sites(expose(loaded, keep=lambda site: site == "a"))
    with pytest.raises(InvalidPlan, match="'a', which the model does not have"):
        rewrite(loaded, found, plan)


def test_sites_of_another_model_are_refused() -> None:
    loaded = ir.from_proto(fused(["a"]))
    found = find_sites(expose(loaded))
    other = loaded.clone()
    with pytest.raises(InvalidPlan, match="another model"):
        rewrite(other, found, uniform_plan(found.exposed.structure_hash, ["a"], preset()))


def test_nothing_is_left_in_the_meta_of_the_model() -> None:
    loaded = ir.from_proto(fused(["a", "b"]))
    found = find_sites(expose(loaded, keep=lambda site: site == "a"))
    rewrite(loaded, found, uniform_plan(found.exposed.structure_hash, ["b"], preset()))
    values = [value for node in loaded.graph for value in node.outputs]
    assert not any(x.meta for x in (loaded, loaded.graph, *loaded.graph, *values))
