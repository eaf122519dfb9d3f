"""The part of a model behind a value computes what the whole model computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass
from small_graphs import parse
from small_transformers import bert_like, gpt2_like

from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import find_sites
from onnx_attnq.graph import probe, suffix
from onnx_attnq.inputs import generate_samples
from onnx_attnq.run import Session

ROUNDING = 1e-6
"""Two sessions may fuse other nodes, which rounds otherwise."""


@pytest.mark.parametrize("model", [bert_like(17), gpt2_like(17), bert_like(11)], ids=["bert", "gpt2", "opset 11"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_suffix_gives_the_outputs_of_the_whole(model: ir.Model, index: int) -> None:
    ShapeInferencePass()(model)
    (sample,) = generate_samples(model, 1, 0)
    part = suffix(model, find_sites(model).sites[index].probabilities)
    feeds = Session(probe(model, [part.start, *part.boundary])).run(sample)
    expected = Session(model).run(sample)
    found = Session(part.model).run(feeds)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=ROUNDING, atol=ROUNDING)


def test_the_suffix_leaves_out_what_does_not_change() -> None:
    model = bert_like(17)
    ShapeInferencePass()(model)
    sites = find_sites(model).sites
    sizes = [sum(1 for _ in suffix(model, site.probabilities).model.graph) for site in sites]
    assert sizes[1] < sizes[0] < sum(1 for _ in model.graph)


def test_what_a_branch_reads_from_outside_is_an_input() -> None:
    model = parse(
        "(float[2,2] x, bool c) => (float[2,2] y) { p = Softmax(x) q = Neg(x)"
        " y = If(c) <then_branch = t () => (float[2,2] a) { a = Add(p, q) },"
        " else_branch = e () => (float[2,2] b) { b = Identity(p) }> }",
        opset=17,
    )
    ShapeInferencePass()(model)
    (start,) = (v for node in model.graph if node.op_type == "Softmax" for v in node.outputs)
    part = suffix(model, start)
    assert set(part.boundary) == {"c", "q"}
    x = np.eye(2, dtype=np.float32)
    out = Session(part.model).run({"p": x, "q": x, "c": np.array(True)})
    np.testing.assert_array_equal(out["y"], 2 * x)


def test_a_value_that_no_output_depends_on_has_no_suffix() -> None:
    model = parse("(float[2,2] x) => (float[2,2] y) { p = Softmax(x) y = Neg(x) }", opset=17)
    (start,) = (v for node in model.graph if node.op_type == "Softmax" for v in node.outputs)
    with pytest.raises(InvalidModel, match="no output of the model depends on 'p'"):
        suffix(model, start)
