"""What the comparison says: one change, one difference, at its place."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import variants
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attnq.cli.diff import diff
from onnx_attnq.diff import Difference, diff_models, format_diff
from onnx_attnq.diff.tensor_content import value_difference
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings

BASE = """
    e = Gather <axis = 0> (table, ids)
    q = MatMul (e, w)
    t = Transpose <perm = [0, 2, 1]> (e)
    s = MatMul (q, t)
    p = Softmax <axis = -1> (s)
    y = MatMul (p, e)
"""
TABLE = "float[4,3] table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}"
WEIGHT = "float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}"
SIGNATURE = f"(int64[B,S] ids) => (float[B,S,3] y) <{TABLE}, {WEIGHT}>"


def model(body: str = BASE, signature: str = SIGNATURE) -> ir.Model:
    """A model whose nodes have no names, so they go by their results."""
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> net {signature} {{ {body} }}')


def differences(b: ir.Model, a: ir.Model | None = None) -> list[tuple[str, str, str | None, str | None]]:
    def node(difference: Difference, side: str) -> str | None:
        place = getattr(difference, side)
        return None if place is None else place.node

    found = diff_models(a or model(), b).differences
    return [(str(item.kind), item.message, node(item, "a"), node(item, "b")) for item in found]


def changed(old: str, new: str) -> ir.Model:
    assert old in BASE
    return model(BASE.replace(old, new))


def test_equal_models_have_no_difference() -> None:
    renamed = model(BASE.replace("t = ", "k = ").replace("t)", "k)"))
    diff = diff_models(model(), renamed)
    assert diff.equal
    assert diff.fingerprint_a == diff.fingerprint_b


def test_attribute() -> None:
    assert differences(changed("axis = -1", "axis = 1")) == [("attribute", "attribute axis = -1 became 1", "p", "p")]
    removed = changed(" <axis = -1>", "")
    assert differences(removed) == [("attribute", "attribute axis = -1 became nothing", "p", "p")]


def test_operator() -> None:
    softmax = changed("p = Softmax", "x = LogSoftmax")
    softmax.graph.node(5).replace_input_with(0, softmax.graph.node(4).outputs[0])
    assert differences(softmax) == [("operator", "Softmax became LogSoftmax", "p", "x")]


def test_swapped_operands() -> None:
    assert differences(changed("MatMul (q, t)", "MatMul (t, q)")) == [
        ("wiring", "operand 0: 'q' became 't'", "s", "s"),
        ("wiring", "operand 1: 't' became 'q'", "s", "s"),
    ]


def test_added_and_removed_nodes() -> None:
    added = changed("MatMul (p, e)", "MatMul (r, e)")
    relu = ir.node("Relu", [added.graph.node(4).outputs[0]], name="r")
    added.graph.insert_before(added.graph.node(5), relu)
    added.graph.node(6).replace_input_with(0, relu.outputs[0])
    assert differences(added) == [("added", "Relu added", None, "r")]
    assert differences(model(), added) == [("removed", "Relu removed", "r", None)]


def test_two_nodes_in_a_row_between() -> None:
    casts = model(BASE.replace("Softmax <axis = -1> (s)", "Softmax <axis = -1> (d)").replace(
        "p = ", "c = Cast <to = 11> (s)  d = Cast <to = 1> (c)  p = "))  # fmt: skip
    assert differences(casts) == [("added", "Cast, Cast added", None, "c")]


def test_nodes_that_replace_others_are_one_difference() -> None:
    fused = model(BASE.replace("p = Softmax <axis = -1> (s)", "").replace(
        "s = MatMul (q, t)", "").replace("y = MatMul (p, e)", "r = Relu (t)  y = my.Attention (q, r, e)"))  # fmt: skip
    (difference,) = diff_models(model(), fused).differences
    assert difference.message == "MatMul, Softmax, MatMul became Relu, my.Attention"
    nodes = [[place.node for place in (first, *more) if place]
             for first, more in ((difference.a, difference.more_a), (difference.b, difference.more_b))]  # fmt: skip
    assert nodes == [["s", "p", "y"], ["r", "y"]]
    assert format_diff(diff_models(model(), fused)).split("\n")[2:] == [
        "@@ MatMul, Softmax, MatMul became Relu, my.Attention @@ node 's' (MatMul) @@ in the other model node 'r' (Relu)",
        "  q = MatMul (e, float[3,3] w)",
        "  t = Transpose <perm = [0, 2, 1]> (e)",
        "- s = MatMul (q, t)",
        "- p = Softmax <axis = -1> (s)",
        "- y = MatMul (p, e)",
        "+ r = Relu (t)",
        "+ y = my.Attention (q, r, e)",
        "1 difference",
    ]


def test_layers_behind_what_was_replaced_are_found_again() -> None:
    layer = "q{i} = MatMul (x{i}, w{i})  r{i} = Reshape (q{i}, shape)  {body}  x{j} = Add (y{i}, x{i})"
    before = "a{i} = Mul (r{i}, r{i})  b{i} = Sub (a{i}, r{i})  y{i} = Abs (b{i})"
    weights = ", ".join(f"float[3,3] w{i} = {{{', '.join(str(i + k) for k in range(9))}}}" for i in range(5))
    signature = f"(float[3,3] x0) => (float[3,3] x5) <{weights}, int64[1] shape = {{-1}}>"

    def layers(body: str) -> ir.Model:
        return model(" ".join(layer.format(i=i, j=i + 1, body=body.format(i=i)) for i in range(5)), signature)

    found = differences(layers("y{i} = my.Fused (r{i})"), layers(before))
    assert found == [("replaced", "Mul, Sub, Abs became my.Fused", f"a{i}", f"y{i}") for i in range(5)]
    longer = layers(before.replace("y{i}", "c{i}") + "  y{i} = Relu (c{i})")
    found = differences(longer, layers(before))
    assert found == [("added", "Relu added", None, f"y{i}") for i in range(5)]


@pytest.mark.parametrize("name", ["albert__optimum", "t5-decoder_model_merged__optimum", "timm_vit__ts13", "fused_mha__qkout",
                                  "bert__fp16-blocksoftmax", "odd_if__ts17-script", "vit__qoperator"])  # fmt: skip
def test_a_rewrite_is_one_difference_a_site(name: str, tmp_path: Path) -> None:
    original = Path(__file__).parent / "gallery" / f"{name}.onnx"
    done = compress(
        original, tmp_path / "rewritten.onnx", rewriting=RewriteSettings(keep_fused=False), verification=None
    )
    found = diff_models(ir.load(original), load(tmp_path / "rewritten.onnx")).differences
    assert done.record is not None
    assert sum(item.kind in ("operator", "replaced", "added", "removed") for item in found) == len(done.record.sites)
    assert all(item.kind in ("opset", "output", "function") for item in found if item.a is item.b is None)


def test_several_changes_come_along_the_data_flow() -> None:
    other = model(BASE.replace("perm = [0, 2, 1]", "perm = [0, 1, 2]").replace("axis = -1", "axis = 1"))
    assert [(kind, node) for kind, _, node, _ in differences(other)] == [("attribute", "t"), ("attribute", "p")]


def test_weight() -> None:
    other = model()
    array = other.graph.initializers["w"].const_value.numpy().copy()
    array[1, 1] += 0.25
    other.graph.initializers["w"].const_value = ir.tensor(array)
    (difference,) = diff_models(model(), other).differences
    assert difference.values is not None
    assert (difference.values.count, difference.values.size, difference.values.max_abs) == (1, 9, 0.25)
    assert difference.message.endswith("1 of 9 values differ, max abs difference 0.25")
    assert difference.a is not None
    assert difference.a.node == "q"


def test_interface_and_opset() -> None:
    signature = SIGNATURE.replace("int64[B,S] ids", "int64[B,T] ids").replace("float[B,S,3] y", "double[B,S,3] y")
    other = model(signature=signature)
    other.opset_imports[""] = 20
    assert differences(other) == [
        ("opset", "opset ai.onnx: 21 became 20", None, None),
        ("input", "input ids: int64[B,S] ids became int64[B,T] ids", None, None),
        ("output", "output y: float[B,S,3] y became double[B,S,3] y", None, None),
    ]


def test_renamed_input_is_one_difference() -> None:
    other = model(BASE.replace("ids", "tokens"), SIGNATURE.replace("ids", "tokens"))
    assert differences(other) == [("input", "input ids: int64[B,S] ids became int64[B,S] tokens", None, None)]


def test_order_of_inputs_and_outputs() -> None:
    a = model("c = Neg (a)  d = Neg (b)", "(float a, float b) => (float c, float d)")
    b = model("c = Neg (a)  d = Neg (b)", "(float b, float a) => (float d, float c)")
    assert differences(b, a) == [
        ("input", "inputs: order a, b became b, a", None, None),
        ("output", "outputs: order c, d became d, c", None, None),
    ]


def test_two_nodes_in_another_order() -> None:
    a = model("t = Neg (x)  y = Abs (t)", "(float x) => (float y)")
    b = model("t = Abs (x)  y = Neg (t)", "(float x) => (float y)")
    assert differences(b, a) == [("replaced", "Neg, Abs became Abs, Neg", "t", "t")]


def test_unused_constant() -> None:
    a, b = (
        model("y = Neg (x)", "(float x) => (float y) <float t = {1.0}>"),
        model("y = Neg (x)", "(float x) => (float y)"),
    )
    assert differences(b, a) == [("constant", "unused constant float {1.0} of the graph removed", None, None)]


def test_which_of_two_equal_nodes_is_read() -> None:
    a = model("t = Neg (x)  u = Neg (x)  v = Add (t, u)  y = Mul (v, t)", "(float x) => (float y)")
    b = model("t = Neg (x)  u = Neg (x)  v = Add (t, u)  y = Mul (v, u)", "(float x) => (float y)")
    (found,) = differences(b, a)
    assert found == ("wiring", "y = Mul (%Add_0, %Neg_0) became y = Mul (%Add_0, %Neg_1)", "y", "y")


def test_node_computed_once_more() -> None:
    a = model("t = Neg (x)  y = Add (t, t)", "(float x) => (float y)")
    b = model("t = Neg (x)  u = Neg (x)  y = Add (t, u)", "(float x) => (float y)")
    assert [(kind, node) for kind, _, _, node in differences(b, a)] == [("added", "t")]


def test_subgraph_and_function_say_where_they_are() -> None:
    a = variants.load("decoder")
    b = variants.copy(a)
    node = next(node for node in variants.all_nodes(b) if node.name.endswith("block.1/layer.0/SelfAttention/Softmax"))
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    (difference,) = diff_models(a, b).differences
    assert difference.a is not None
    assert difference.a.node == node.name
    assert difference.a.inside[0].split(" of ")[0] in ("then_branch", "else_branch")

    a = variants.load("bert__dynamo18-functions")
    b = variants.copy(a)
    node = next(node for node in variants.all_nodes(b) if node.op_type == "Softmax")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    (difference,) = diff_models(a, b).differences
    assert difference.a is not None
    assert difference.a.inside == ("function pkg.attn.SafeSoftmax",)


def test_function_signature_and_presence() -> None:
    a = variants.load("bert__dynamo18-functions")
    b = variants.copy(a)
    function = b.functions[("pkg.attn", "SafeSoftmax", "")]
    function.opset_imports[""] = 17
    del b.functions[("pkg.attn", "SplitHeads", "")]
    assert [(kind, message) for kind, message, *_ in differences(b, a)] == [
        ("opset", "opset ai.onnx of function pkg.attn.SafeSoftmax: 18 became 17"),
        ("function", "function pkg.attn.SplitHeads removed"),
    ]


def test_metadata_on_request() -> None:
    other = model()
    other.metadata_props["plan"] = "1"
    assert diff_models(model(), other).equal
    (difference,) = diff_models(model(), other, metadata=True).differences
    assert difference.message == "metadata 'plan' of model: nothing became 1"
    other = model()
    other.graph.node(4).metadata_props["layer"] = "0"
    (difference,) = diff_models(model(), other, metadata=True).differences
    assert difference.kind == "metadata"
    assert difference.b is not None
    assert difference.b.node == "p"


@settings(max_examples=100, deadline=None)
@given(rng=st.integers(0, 2**32 - 1).map(random.Random))
def test_any_change_of_a_random_graph_is_a_difference(rng: random.Random) -> None:
    original = variants.random_model(rng)
    mutated = variants.copy(original)
    if variants.mutate(mutated, rng) is None:
        return
    variants.rename(mutated, rng)
    variants.reorder(mutated, rng)
    assert not diff_models(original, mutated).equal
    assert not diff_models(mutated, original).equal


def test_any_two_models_can_be_compared() -> None:
    names = sorted(variants.FILES)
    for a, b in itertools.pairwise(names):
        assert not diff_models(variants.load(a), variants.load(b)).equal


def test_text_reads_like_a_text_diff() -> None:
    assert format_diff(diff_models(model(), changed("axis = -1", "axis = 1")), "a.onnx", "b.onnx").split("\n") == [
        "--- a.onnx",
        "+++ b.onnx",
        "@@ attribute axis = -1 became 1 @@ node 'p' (Softmax)",
        "  s = MatMul (q, t)",
        "- p = Softmax <axis = -1> (s)",
        "+ p = Softmax <axis = 1> (s)",
        "  y = MatMul (p, e)",
        "1 difference",
    ]


def test_value_difference_knows_nan_infinity_and_wide_integers() -> None:
    def apart(a: object, b: object, dtype: object = np.float32) -> tuple[int, float | None]:
        found = value_difference(ir.tensor(np.array(a, dtype)), ir.tensor(np.array(b, dtype)))
        assert found is not None
        return found.count, found.max_abs

    assert apart([np.nan, 1.0], [np.nan, 1.0]) == (0, 0.0)
    assert apart([np.nan, 1.0], [0.0, 1.0]) == (1, float("inf"))
    assert apart([np.inf, -np.inf], [np.inf, np.inf]) == (1, float("inf"))
    assert apart([0.0], [-0.0]) == (0, 0.0)
    assert apart([2**63 - 1], [2**63 - 2], np.int64) == (1, 1.0)
    assert apart([255], [0], np.uint8) == (1, 255.0)
    signalling = np.array([0x7C01, 0x3C00], np.uint16).view(np.float16)
    assert apart(signalling, [1.0, 1.0], np.float16) == (1, float("inf"))
    assert value_difference(ir.tensor([1.0]), ir.tensor([1])) is None


def test_command_line(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")
    ir.save(model(), a)
    ir.save(changed("axis = -1", "axis = 1"), b)
    run = CliRunner().invoke
    same = run(diff, [a, a], catch_exceptions=False)
    assert same.exit_code == 0
    assert same.output.startswith(f"{a} and {a} are equal")
    other = run(diff, [a, b, "--context", "0"], catch_exceptions=False)
    assert other.exit_code == 1
    assert "- p = Softmax <axis = -1> (s)\n+ p = Softmax <axis = 1> (s)\n1 difference\n" in other.output
    machine = run(diff, [a, b, "--json", "-"], catch_exceptions=False)
    assert machine.exit_code == 1
    result = json.loads(machine.output)
    assert result["equal"] is False
    assert result["differences"][0]["a"]["node"] == "p"
    assert run(diff, [a, b, "--limit", "0"]).exit_code == 2


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_json_is_strict_json(value: float) -> None:
    a, b = model(), model()
    array = b.graph.initializers["w"].const_value.numpy().copy()
    array[0, 0] = value
    b.graph.initializers["w"].const_value = ir.tensor(array)
    result = diff_models(a, b).to_json()
    assert json.loads(json.dumps(result, allow_nan=False))["differences"][0]["values"]["max_abs"] == "inf"
