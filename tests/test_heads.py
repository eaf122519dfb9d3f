"""A scheme for each head: one op, tables in its attributes, in every execution, in plans, records and verification."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from executions import inlined, require_opset, run_onnxruntime
from small_transformers import bert_like

from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidPlan, InvalidScheme
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import save
from onnx_attnq.rewriting import Plan, RewriteSettings, SitePlan, bodies, read_record, rewrite
from onnx_attnq.scheme import HeadSchemes, Normalize, Pruned, QuantScheme, for_heads, left_alone, numerics, preset
from onnx_attnq.verification import verify
from onnx_attnq.verification.codes import check_rows

TWO_AND_THREE = HeadSchemes((preset("row-log", bits=2, threshold=0.1), preset("row-log")))
SHARED = HeadSchemes((preset("row-log-mean", bits=2, threshold=0.1), preset("row-log-mean", bits=1, threshold=0.5)))
FAMILIES = {
    "row-log": TWO_AND_THREE,
    "row-log-mean": SHARED,
    "log-mean": HeadSchemes((preset("log-mean"), preset("log-mean", bits=2, threshold=0.1))),
    "ji2021": HeadSchemes((preset("ji2021", bits=2), preset("ji2021", threshold=0.05))),
    "linear": HeadSchemes((preset("ji2021-linear", bits=2), preset("ji2021-linear-pruned"))),
    "prune-only": HeadSchemes((preset("prune-only-row-max"), preset("prune-only-row-max", threshold=0.3))),
    "mass": HeadSchemes(
        tuple(dataclasses.replace(preset("row-log", bits=bits), normalize=Normalize.MASS) for bits in (1, 4))
    ),
    "row-max none mean": HeadSchemes(tuple(dataclasses.replace(s, normalize=Normalize.NONE) for s in SHARED.heads)),
}


def op_model(kind: str, schemes: HeadSchemes, opset: int) -> onnx.ModelProto:
    make = {"softmax": bodies.softmax_function, "probabilities": bodies.probabilities_function}[kind]
    body = make(schemes.heads[0], opset, by_head=True)
    x = ir.Value(name="x", shape=ir.Shape(["b", 2, "q", "k"]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node(bodies.DOMAIN, body.name, [x], bodies.scheme_attributes(schemes, (2, 1, 1)), name="site")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": opset, bodies.DOMAIN: 1}, name="g")
    return ir.to_proto(ir.Model(graph, ir_version=8, functions=[body]))


@pytest.mark.parametrize("opset", [12, 13, 17, 21])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["softmax", "probabilities"])
def test_every_family_takes_tables_at_every_opset(kind: str, family: str, opset: int) -> None:
    require_opset(opset)
    schemes = FAMILIES[family]
    x = np.random.default_rng(opset).normal(0.0, 3.0, (3, 2, 5, 40)).astype(np.float32)
    if kind == "probabilities":
        x = numerics.softmax(x).astype(np.float32)
    model = op_model(kind, schemes, opset)
    onnx.checker.check_model(model, full_check=True)
    with np.errstate(all="ignore"):
        results = [
            run_onnxruntime(model, x),
            run_onnxruntime(inlined(model), x, optimize=False),
            onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0],
        ]
    for y in results:
        assert check_rows(x, y, schemes, is_scores=kind == "softmax").passed
        swapped = check_rows(x, y, HeadSchemes(schemes.heads[::-1]), is_scores=kind == "softmax")
        assert not swapped.passed, "the check does not tell heads apart"


def rewritten(
    schemes: HeadSchemes | QuantScheme, *, inline: bool = False, opset: int = 17
) -> tuple[ir.Model, ir.Model]:
    original = bert_like(opset)
    random = np.random.default_rng(0)
    for value in list(original.graph.inputs):
        if value.type == ir.TensorType(ir.DataType.FLOAT):  # weights
            original.graph.inputs.remove(value)
            shape = tuple(dim for dim in value.shape or () if isinstance(dim, int))
            value.const_value = ir.tensor(random.normal(0.0, 1.0, shape).astype(np.float32), name=value.name)
            original.graph.register_initializer(value)
    model = original.clone()
    sites = find_sites(expose(model))
    first, *others = [site.id for site in sites.sites]
    entries = (SitePlan(first, schemes), *(SitePlan(other, preset()) for other in others))
    plan = Plan.from_json(json.loads(json.dumps(Plan(sites.exposed.structure_hash, entries).to_json())))
    rewrite(model, sites, plan, RewriteSettings(inline=inline))
    return original, model


@pytest.mark.parametrize("schemes", [TWO_AND_THREE, SHARED, FAMILIES["log-mean"]], ids=["zero", "mean", "absolute"])
@pytest.mark.parametrize("inline", [False, True])
def test_a_plan_with_different_bits_for_two_heads_verifies(schemes: HeadSchemes, inline: bool) -> None:
    original, model = rewritten(schemes, inline=inline)
    record = read_record(model)
    assert record is not None
    assert record.sites[0].scheme == schemes
    found = verify(original, model, generate_samples(original, 3, 0))
    assert found.passed, found.failures


@pytest.mark.parametrize("schemes", [SHARED, FAMILIES["log-mean"]], ids=["mean", "absolute"])
def test_the_commands_take_a_model_with_different_bits_for_two_heads(
    schemes: HeadSchemes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, back = (str(tmp_path / f"{name}.onnx") for name in ("a", "b", "back"))
    original, model = rewritten(schemes)
    save(original, Path(a))
    save(model, Path(b))
    shown = {}
    for name, arguments in {
        "inspect": [b],
        "verify": [a, b],
        "bisect": [a, b],
        "revert": [b, "-o", back],
        "diff": [a, back],
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([name, *arguments])
        shown[name] = stopped.value.code or 0, "".join(capsys.readouterr())
    assert not any(code for code, _ in shown.values()), shown
    assert "by head" in shown["inspect"][1]
    assert "2 sites restored" in shown["revert"][1]


def test_heads_differ_from_one_scheme_for_all() -> None:
    x = np.random.default_rng(0).normal(0.0, 3.0, (1, 2, 4, 16))
    found = for_heads(TWO_AND_THREE, numerics.quantize_scores, x)
    for head, scheme in enumerate(TWO_AND_THREE.heads):
        np.testing.assert_array_equal(found[:, head], numerics.quantize_scores(x[:, head], scheme))


@pytest.mark.parametrize("heads", [1, 3])
def test_another_number_of_heads_is_refused_with_the_site(heads: int) -> None:
    with pytest.raises(InvalidPlan, match=f"site .*: there are schemes for {heads} heads, and the site has 2"):
        rewritten(HeadSchemes((preset(),) * heads))


def test_heads_of_two_families_are_refused() -> None:
    with pytest.raises(InvalidScheme, match="pruned of head 1 is mean, of head 0 zero"):
        HeadSchemes((preset("row-log"), preset("row-log", pruned=Pruned.MEAN, bits=2)))
    with pytest.raises(InvalidScheme, match="at least one"):
        HeadSchemes(())


def test_a_plan_names_the_schemes_of_heads_in_their_order() -> None:
    plan = Plan("c0ffee", (SitePlan("a", TWO_AND_THREE), SitePlan("b", TWO_AND_THREE.heads[1])))
    data = plan.to_json()
    assert [site["scheme"] for site in data["sites"]] == [["row-log", "row-log-2"], "row-log-2"]
    assert Plan.from_json(json.loads(json.dumps(data))) == plan
    for wrong, message in ((["row-log", "other"], "'other', which the plan does not define"), ([], "at least one")):
        data["sites"][0]["scheme"] = wrong
        with pytest.raises(InvalidPlan, match=f"site 'a'.*{message}"):
            Plan.from_json(data)


LEFT = HeadSchemes(
    (preset("row-log-mean", bits=1, threshold=0.5), left_alone(preset("row-log-mean", bits=2, threshold=0.1)))
)


@pytest.mark.parametrize("family", ["row-log", "row-log-mean", "log-mean", "ji2021", "fq-log2", "prune-only"])
def test_a_head_that_is_left_alone_hardly_changes(family: str) -> None:
    x = np.random.default_rng(0).normal(0.0, 3.0, (4, 64))
    left = left_alone(preset(family))
    p = numerics.softmax(x)
    found = numerics.quantize_probabilities(p, left)
    assert np.abs(found - p).max() <= (0.05 if family == "row-log-mean" else 0.02)


def test_a_head_can_be_left_alone_beside_others(tmp_path: Path) -> None:
    original, model = rewritten(LEFT)
    assert verify(original, model, generate_samples(original, 3, 0)).passed
    plan = Plan("c0ffee", (SitePlan("a", LEFT, left=((1, "it moves the outputs"),)),))
    data = plan.to_json()
    assert data["sites"] == [{"id": "a", "scheme": ["row-log-mean", None], "left": {"1": "it moves the outputs"}}]
    assert list(data["schemes"]) == ["row-log-mean"]
    assert Plan.from_json(json.loads(json.dumps(data))) == plan


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"scheme": ["row-log-mean", None]}, "a reason for each head whose scheme is null"),
        ({"scheme": ["row-log-mean", None], "left": {"1": ""}}, "a reason for each head"),
        ({"scheme": ["row-log-mean", None], "left": {"0": "x", "1": "y"}}, "and for no other"),
        ({"scheme": ["row-log-mean", None], "left": ["x"]}, "a reason for each head"),
        ({"scheme": "row-log-mean", "left": {"0": "x"}}, "and for no other"),
        ({"scheme": [None, None], "left": {"0": "x", "1": "y"}}, "every head is left alone"),
    ],
)
def test_a_head_that_is_left_alone_has_a_reason(site: dict[str, object], message: str) -> None:
    data = Plan("c0ffee", (SitePlan("a", LEFT.heads[0]),)).to_json()
    data["sites"] = [{"id": "a", **site}]
    with pytest.raises(InvalidPlan, match=f"site 'a'.*{message}"):
        Plan.from_json(data)
