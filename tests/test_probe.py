"""Values anywhere in a model can be made its outputs."""

from __future__ import annotations

import numpy as np
import pytest
from attention_forms import FORMS
from small_graphs import parse

from onnx_attnq.errors import InvalidModel
from onnx_attnq.graph import probe
from onnx_attnq.inputs import generate_samples
from onnx_attnq.run import Session
from onnx_attnq.scheme import numerics


def test_a_value_of_the_main_graph_and_nothing_that_it_does_not_need() -> None:
    model = parse(FORMS["plain"].text, inferred=True)
    (feeds,) = generate_samples(model, 1, 0)
    cut = probe(model, ["s", "p"])
    assert [node.op_type for node in cut.graph] == ["Transpose", "MatMul", "Softmax"]
    scores, probabilities = Session(cut).run(feeds).values()
    np.testing.assert_allclose(probabilities, numerics.softmax(scores), rtol=1e-5)
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_an_input_of_the_model_is_a_value_too() -> None:
    model = parse(FORMS["plain"].text, inferred=True)
    (feeds,) = generate_samples(model, 1, 0)
    (q,) = Session(probe(model, ["q"])).run(feeds).values()
    np.testing.assert_array_equal(q, feeds["q"])


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("inferred", [True, False])
def test_a_value_in_a_branch_is_empty_where_the_other_was_taken(taken: bool, inferred: bool) -> None:
    model = parse(FORMS["in both branches of an If"].text, inferred=inferred)
    (feeds,) = generate_samples(model, 1, 0)
    feeds = {**feeds, "c": np.array(taken)}
    for value, branch, here in (("p1", "then_branch", taken), ("p2", "else_branch", not taken)):
        (found,) = Session(probe(model, [value], f"main/If_y.{branch}")).run(feeds).values()
        if here:
            np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
        else:
            assert found.size == 0


@pytest.mark.parametrize("inferred", [True, False])
def test_a_value_in_a_loop_has_an_axis_of_iterations(inferred: bool) -> None:
    model = parse(FORMS["in the body of a Loop"].text, inferred=inferred)
    (feeds,) = generate_samples(model, 1, 0)
    p, out = Session(probe(model, ["p", "out"], "main/Loop_y.body")).run(feeds).values()
    assert p.shape[0] == out.shape[0] == 3
    x = feeds["q"]
    for step in range(3):
        expected = numerics.softmax(x.astype(np.float64) @ feeds["k"].swapaxes(-1, -2))
        np.testing.assert_allclose(p[step], expected, rtol=1e-3, atol=1e-6)
        x = out[step]


@pytest.mark.parametrize("inferred", [True, False])
def test_a_value_in_a_scan_has_an_axis_of_iterations(inferred: bool) -> None:
    model = parse(FORMS["in the body of a Scan"].text, inferred=inferred)
    (feeds,) = generate_samples(model, 1, 0)
    (p,) = Session(probe(model, ["p"], "main/Scan_y.body")).run(feeds).values()
    expected = numerics.softmax(feeds["q"].astype(np.float64) @ feeds["k"].T)
    np.testing.assert_allclose(p, expected, rtol=1e-3, atol=1e-6)


def test_a_value_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidModel, match="no value 'nowhere' in main"):
        probe(parse(FORMS["plain"].text), ["nowhere"])
