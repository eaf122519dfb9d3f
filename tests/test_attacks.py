"""Rewritten models that were tampered with, so that codes and outputs look right: none of them is verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnx_attnq.errors import AttnqError
from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.scheme import preset
from onnx_attnq.verification import Limit, Limits, Verification, verify
from onnx_attnq.verification.rewrite_again import other_than_rewritten

TEXT = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[1,2,L,4] q, float[1,2,L,4] k, float[1,2,L,4] v, bool c) => (float[1,2,L,4] y, float[1,2,L,4] z)
<float[4] w = {1, 2, 3, 4}> {
  kt = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, kt)  p = Softmax<axis=-1>(s)  a = MatMul(p, v)
  at = Transpose<perm=[0,1,3,2]>(a)  t = MatMul(a, at)  r = Softmax<axis=-1>(t)  b = MatMul(r, v)
  n = own.shift(b)  y = Mul(n, w)
  z = If(c) <then_branch = yes () => (float[1,2,L,4] u) { u = Add(y, w) },
    else_branch = no () => (float[1,2,L,4] x) { x = Sub(y, w) }> }
<domain: "own", opset_import: ["" : 21]> shift (i) => (o) { one = Constant<value=float[1] {1.0}>()  o = Add(i, one) }"""

LAX = Limits((Limit("relative_error", 10.0), Limit("cosine", -1.0)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("attacks")
    onnx.save(parser.parse_model(TEXT), folder / "a.onnx")
    compress(folder / "a.onnx", folder / "b.onnx", scheme=preset("row-log"), verification=None)
    return folder / "a.onnx", folder / "b.onnx"


def record_of(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    return next(entry for entry in model.metadata_props if entry.key == "onnx_attnq")


def ours(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == "onnx_attnq"]


def body(model: onnx.ModelProto, domain: str) -> onnx.FunctionProto:
    return next(function for function in model.functions if function.domain == domain)


def tensor(node: onnx.NodeProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    attribute = next(attribute for attribute in node.attribute if attribute.name == name)
    attribute.t.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(attribute.t)), attribute.t.name))


def forge(model: onnx.ModelProto, change: Callable[[dict[str, object]], object]) -> None:
    entry = record_of(model)
    data = json.loads(entry.value)
    change(data)
    entry.value = json.dumps(data)


def another_scale(model: onnx.ModelProto) -> None:
    tensor(ours(model)[0], "scale", lambda scale: scale * np.float32(1.1))


def another_step(model: onnx.ModelProto) -> None:
    tensor(ours(model)[1], "step", lambda step: step * np.float32(1.5))


def query_and_key_swapped(model: onnx.ModelProto) -> None:
    node = ours(model)[0]
    node.input[0], node.input[1] = node.input[1], node.input[0]


def another_body(model: onnx.ModelProto) -> None:
    """Adds what is too small to see in the codes."""
    function = body(model, "onnx_attnq")
    (output,) = function.output
    last = next(node for node in function.node if output in node.output)
    last.output[0] = "nearly"
    function.node.append(helper.make_node("Constant", [], ["bit"], value=numpy_helper.from_array(np.float32(1e-7))))
    function.node.append(helper.make_node("Add", ["nearly", "bit"], [output]))


def another_opset_of_the_body(model: onnx.ModelProto) -> None:
    next(entry for entry in body(model, "onnx_attnq").opset_import if not entry.domain).version = 20


def sites_swapped(model: onnx.ModelProto) -> None:
    def swap(data: dict[str, object]) -> None:
        first, second = data["sites"]  # type: ignore[misc]
        first["id"], second["id"] = second["id"], first["id"]

    forge(model, swap)


def another_scheme_in_the_record(model: onnx.ModelProto) -> None:
    forge(model, lambda data: data["sites"][0]["scheme"].update(threshold=0.5))  # type: ignore[index]


def a_site_left_out(model: onnx.ModelProto) -> None:
    another_scale(model)
    forge(model, lambda data: data["sites"].pop(0))  # type: ignore[attr-defined]


def no_sites(model: onnx.ModelProto) -> None:
    another_scale(model)
    forge(model, lambda data: data["sites"].clear())  # type: ignore[attr-defined]


def another_op_outside(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.output[0] == "y").op_type = "Add"


def one_more_node_outside(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.output[0] == "y").output[0] = "before"
    index = next(i for i, node in enumerate(model.graph.node) if node.op_type == "If")
    model.graph.node.insert(index, helper.make_node("Tanh", ["before"], ["y"]))


def another_weight_in_a_function(model: onnx.ModelProto) -> None:
    tensor(body(model, "own").node[0], "value", lambda one: one * 2)


def a_function_in_place_of_a_standard_op(model: onnx.ModelProto) -> None:
    """onnxruntime inlines it, if it has no kernel; what it does is not what its name says."""
    nodes = [helper.make_node("Sub", ["a", "b"], ["c"])]
    model.functions.append(helper.make_function("", "Mul", ["a", "b"], ["c"], nodes, [helper.make_opsetid("", 21)]))


def another_op_in_the_branch_that_is_not_taken(model: onnx.ModelProto) -> None:
    for node in (node for node in model.graph.node if node.op_type == "If"):
        for attribute in node.attribute:
            attribute.g.node[0].op_type = "Mul"


def a_weight_that_may_be_overridden(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4]))


def outputs_in_another_order(model: onnx.ModelProto) -> None:
    model.graph.output.insert(0, model.graph.output[1])
    del model.graph.output[2]


def an_output_that_is_another_value(model: onnx.ModelProto) -> None:
    """y and z have swapped their names."""
    for node in model.graph.node:
        names = {"y": "z", "z": "y"}
        node.output[:] = [names.get(name, name) for name in node.output]


ATTACKS = (
    *(another_scale, another_step, query_and_key_swapped, another_body, another_opset_of_the_body, sites_swapped),
    *(another_scheme_in_the_record, a_site_left_out, no_sites, another_op_outside, one_more_node_outside),
    *(another_weight_in_a_function, a_function_in_place_of_a_standard_op, a_weight_that_may_be_overridden),
    *(another_op_in_the_branch_that_is_not_taken, outputs_in_another_order, an_output_that_is_another_value),
)


def checked(models: tuple[Path, Path], folder: Path, attack: Callable[[onnx.ModelProto], None]) -> Verification:
    original, written = models
    model = onnx.load(written)
    attack(model)
    onnx.save(model, folder / "b.onnx")
    a = load(original)
    samples = [sample | {"c": np.array(True)} for sample in generate_samples(a, 2, 0)]
    return verify(a, load(folder / "b.onnx"), samples, limits=LAX)


def test_what_was_not_tampered_with_is_verified(models: tuple[Path, Path], tmp_path: Path) -> None:
    found = checked(models, tmp_path, lambda model: None)
    assert found.passed, found.failures
    assert not found.notes


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_what_was_tampered_with_is_not(
    attack: Callable[[onnx.ModelProto], None], models: tuple[Path, Path], tmp_path: Path
) -> None:
    try:
        found = checked(models, tmp_path, attack)
    except AttnqError:
        return
    assert not found.passed


SHOWN = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,2,L,4] q, float[1,2,L,4] k, float[1,2,L,4] v) => (float[1,2,L,4] y, float[1,2,L,L] p) {
  kt = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, kt)  p = Softmax<axis=-1>(s)  y = MatMul(p, v) }"""
LEARNED = """<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>
g (float[1,L,16] q, float[1,L,16] k, float[1,L,16] v) => (float[1,L,16] y, float[1,2,16] z)
{
  y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)
  z = com.microsoft.MultiHeadAttention<num_heads=2>(a, b, c) }"""


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (SHOWN, RewriteSettings(quantize_outputs=True)),
        (SHOWN, RewriteSettings()),
        (TEXT, RewriteSettings(int16_products=True)),
        (TEXT, RewriteSettings(exclude=("p",))),
        (TEXT, RewriteSettings(inline=True)),
        (LEARNED, RewriteSettings(keep_fused=False)),  # the second is taken apart, and is no attention
    ],
)
def test_every_way_to_rewrite_is_found_again(text: str, settings: RewriteSettings, tmp_path: Path) -> None:
    model = parser.parse_model(text)
    if text == LEARNED:
        rows = np.random.default_rng(0).normal(size=(3, 1, 2, 16)).astype(np.float32)
        model.graph.initializer.extend(map(numpy_helper.from_array, rows, "abc"))
    onnx.save(model, tmp_path / "a.onnx")
    result = compress(tmp_path / "a.onnx", tmp_path / "b.onnx", rewriting=settings)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    assert result.record is not None
    found = other_than_rewritten(load(tmp_path / "a.onnx"), load(tmp_path / "b.onnx"), result.record)
    assert found == ("", ())


def test_a_model_that_is_of_another_original_is_held_to_limits_only(models: tuple[Path, Path], tmp_path: Path) -> None:
    def of_another(model: onnx.ModelProto) -> None:
        another_scale(model)
        forge(model, lambda data: data.update(structure_hash="0" * 64))

    found = checked(models, tmp_path, of_another)
    assert any(note.startswith("B says that it was made from another model than A") for note in found.notes)
    a, b = load(models[0]), load(tmp_path / "b.onnx")
    (failure,) = verify(a, b, generate_samples(a, 2, 0)).failures
    assert "give a limit on how far it may be off" in failure
