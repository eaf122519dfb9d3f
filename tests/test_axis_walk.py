"""One step of the walk: an axis, followed through an op, is where numpy puts the elements."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnx_attnq.find.axis_walk import Lost, Passed, Position, Product, backward, forward
from onnx_attnq.find.hidden import expose
from onnx_attnq.find.product_search import Search
from onnx_attnq.find.sites import find_sites
from onnx_attnq.graph import Dataflow, Types

MOVES = {
    "Transpose": ("Transpose<perm=[2,0,3,1]>(x)", lambda x: x.transpose(2, 0, 3, 1)),
    "Transpose, reversed": ("Transpose(x)", lambda x: x.transpose()),
    "Unsqueeze": ("Unsqueeze<axes=[1,5]>(x)", lambda x: np.expand_dims(x, (1, 5))),
    "Unsqueeze from the end": ("Unsqueeze<axes=[-2]>(x)", lambda x: np.expand_dims(x, -2)),
    "Squeeze": ("Squeeze<axes=[1]>(x)", lambda x: x.squeeze(1)),
    "Squeeze from the end": ("Squeeze<axes=[-3]>(x)", lambda x: x.squeeze(-3)),
    "Identity": ("Identity(x)", lambda x: x),
    "Gather of one": ("Gather<axis=2>(x, one)", lambda x: x[:, :, 1]),
    "Gather of a table": ("Gather<axis=2>(x, table)", lambda x: x[:, :, [[0, 1], [1, 2]]]),
    "Gather of one from the end": ("Gather<axis=-3>(x, none)", lambda x: x[:, 0]),
}
INDICES = "<int64 none = {0}, int64 one = {1}, int64[2,2] table = {0, 1, 1, 2}>"


def step(text: str) -> tuple[ir.Model, ir.Node, Types]:
    model = ir.from_onnx_text(
        f'<ir_version: 7, opset_import: ["" : 12]> g (float[2,1,3,5] x) => (float[] y) {INDICES} {{ y = {text} }}'
    )
    output = model.graph.outputs[0]
    output.shape = None
    return model, model.graph[0], Types(Dataflow(model))


@pytest.mark.parametrize("axis", [-4, -3, -2, -1])
@pytest.mark.parametrize("name", MOVES)
def test_an_axis_goes_where_its_elements_go_and_comes_back(name: str, axis: int) -> None:
    text, move = MOVES[name]
    _, node, types = step(text)
    indices = np.broadcast_to(np.arange((2, 1, 3, 5)[axis]).reshape([-1] + [1] * (-axis - 1)), (2, 1, 3, 5))
    moved = move(indices)
    along = [i - moved.ndim for i in range(moved.ndim) if (np.diff(moved, axis=i) != 0).any()]
    went = forward(node, 0, axis, types)
    if len(along) != 1:  # the axis of size 1 is gone, or could be any of that size; or several were made of one
        assert isinstance(went, Lost | Passed)
        return
    assert went == Passed((Position(node.outputs[0], along[0]),))
    assert backward(node.outputs[0], along[0], types) == Passed((Position(node.inputs[0], axis),))  # type: ignore[arg-type]


def test_a_scalar_index_into_the_first_axis_moves_none_from_the_end() -> None:
    model, node, _ = step("Gather<axis=0>(x, one)")
    assert node.inputs[0] is not None
    node.inputs[0].shape = None
    types = Types(Dataflow(model))
    assert backward(node.outputs[0], -2, types) == Passed((Position(node.inputs[0], -2),))
    assert isinstance(forward(node, 0, -2, types), Lost)  # it may be the first


def test_squeezing_the_axis_itself_ends_the_walk() -> None:
    _, node, types = step("Squeeze<axes=[1]>(x)")
    went = forward(node, 0, -3, types)
    assert isinstance(went, Lost)
    assert "the softmax axis itself" in went.reason


@pytest.mark.parametrize(
    ("text", "axis", "contracted"),
    [
        ("MatMul(x, x)", -1, True),
        ("MatMul(x, x)", -2, False),
        ('Einsum<equation="bhqd,bhkd->bhqk">(x, x)', -1, True),
        ('Einsum<equation="bhqd,bhkd->bhqk">(x, x)', -2, False),
    ],
)
def test_a_product_contracts_one_axis_of_an_operand(text: str, axis: int, contracted: bool) -> None:
    _, node, types = step(text)
    assert isinstance(forward(node, 0, axis, types), Product) == contracted


def test_codes_of_a_dynamically_quantized_value_have_its_axes_and_its_scale_has_none() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 7, opset_import: ["" : 12]> g (float[2,3] x) => (uint8[2,3] y) { y, s, z = DynamicQuantizeLinear(x) }'
    )
    node, types = model.graph[0], Types(Dataflow(model))
    x, (y, scale, zero) = node.inputs[0], node.outputs
    assert x is not None
    assert forward(node, 0, -1, types) == Passed((Position(y, -1),))
    assert backward(y, -1, types) == Passed((Position(x, -1),))
    assert isinstance(backward(scale, -1, types), Lost)
    assert isinstance(backward(zero, -1, types), Lost)


@pytest.mark.parametrize("domain", ["", "com.microsoft", "my.ops"])
def test_ops_of_other_domains_are_not_followed(domain: str) -> None:
    node = ir.node("Identity", [ir.val("x", ir.DataType.FLOAT, (2, 3))], domain=domain)
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node], opset_imports={"": 17}, name="g")  # type: ignore[arg-type]
    types = Types(Dataflow(ir.Model(graph, ir_version=8)))
    assert isinstance(forward(node, 0, -1, types), Lost) == (domain != "")  # com.microsoft has no Identity
    assert isinstance(backward(node.outputs[0], -1, types), Lost) == (domain != "")


# --- the search


def attention(between: str = "p = Softmax<axis=-1>(s)", value: str = "v") -> ir.Model:
    return ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,2,L,4] q, float[1,2,L,4] k, float[1,2,L,4] v) => (float[1,2,L,4] y) <float[1,2,4,4] w = {{{", ".join("1" * 32)}}}> {{
      kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) {between} y = MatMul(p, {value}) }}""")


def test_the_search_tells_the_products_and_the_way_to_them() -> None:
    model = attention("t = Tanh(s) p = Softmax<axis=-1>(t)")
    flow = Dataflow(model)
    search = Search(flow, Types(flow))
    values = flow.values_in("main")
    before, after = search.before(values["t"], -1), search.after(values["p"], -1)
    assert [product.node.outputs[0].name for product in before.products] == ["s"]
    assert before.chain == ("Tanh", "MatMul")
    assert [(product.node.outputs[0].name, product.is_left) for product in after.products] == [("y", True)]
    assert search.before(values["t"], -1) is before  # worked out once


@pytest.mark.parametrize(
    ("between", "value", "reason"),
    [
        ("p = Softmax<axis=-1>(s)", "w", "constant, as in a codebook"),
        ("r = MatMul(q, w) p = Softmax<axis=-1>(r)", "v", "as in a router"),
    ],
)
def test_the_search_says_why_there_is_no_product(between: str, value: str, reason: str) -> None:
    found = find_sites(attention(between, value))
    assert not found.sites
    assert reason in found.rejections[0].reason


# --- expose


def test_expose_says_what_the_model_was_and_what_became_of_its_ops() -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[1,5,16] x) => (float[1,5,16] y) {
      a = com.microsoft.MultiHeadAttention<num_heads=2>(x, x, x)
      y = com.microsoft.MultiHeadAttention<num_heads=2, unknown=1>(a, a, a) }""")
    first, second = model.graph
    exposed = expose(model)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    assert first not in exposed.origins
    assert (exposed.origins[softmax].op_type, exposed.origins[softmax].id) == ("MultiHeadAttention", "a")
    assert exposed.origins[second].id == "y"
    assert "'unknown'" in exposed.declined[second]
    found = find_sites(exposed)
    assert [site.id for site in found.sites] == ["a"]
    assert [rejection.node for rejection in found.rejections] == ["y"]
