"""Cases that are no graph to rewrite: hostile files, bodies that must be careful, names, and what constants hold."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import parser
from test_cli import Run, run

from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import Plan, SitePlan, rewrite
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.verification import verify

__all__ = ["run"]  # the fixture of test_cli

CASES = Path(__file__).parent / "cases"
TWO = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,2,5,8] q, float[1,2,8,5] k, float[1,2,5,8] v) => (float[1,2,5,8] y) {
  s = MatMul(q, k)  p = Softmax<axis=-1>(s)  c = MatMul(p, v)
  t = MatMul(c, k)  r = Softmax<axis=-1>(t)  y = MatMul(r, v) }"""


@pytest.mark.parametrize(
    ("command", "name", "code", "message"),
    [
        ("compress", "forged_record_cycle", 2, "the model is rewritten already"),
        ("revert", "forged_record_cycle", 2, "the model was changed after it was rewritten"),
        ("compress", "function_bomb15", 2, "nodes when inlined, too many for the size of the file"),
        ("inspect", "function_bomb15", 2, "nodes when inlined, too many for the size of the file"),
        ("compress", "wrong_attribute_type_a", 3, "axis 22 of a tensor of rank 5, which has no such axis"),
        ("compress", "wrong_attribute_type_b", 2, "Mul node 'sc' has 1 inputs; 2 are allowed"),
    ],
)
def test_hostile_files_are_refused_in_a_line(
    command: str, name: str, code: int, message: str, tmp_path: Path, run: Run
) -> None:
    output = [] if command == "inspect" else ["-o", tmp_path / "out.onnx"]
    found, _, err = run(command, CASES / f"{name}.onnx", *output)
    assert found == code, err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_queries_may_be_missing_altogether(tmp_path: Path, run: Run) -> None:
    code, _, err = run(CASES / "mha_no_queries.onnx", "-o", tmp_path / "o.onnx", "--json", tmp_path / "o.json")
    assert code == 0, err
    assert json.loads((tmp_path / "o.json").read_text())["verification"]["passed"]


@pytest.mark.parametrize("thresholds", [(1e-2, 1e-60), (1e-60, 1e-2)])
def test_one_body_is_as_careful_as_the_lowest_threshold_needs(thresholds: tuple[float, float], tmp_path: Path) -> None:
    onnx.save(parser.parse_model(TWO), tmp_path / "m.onnx")
    original = load(tmp_path / "m.onnx")
    model = original.clone()
    found = find_sites(expose(model))
    schemes = [QuantScheme("row-max", "unit", t, 8, "log", "nearest", name=f"t{t}") for t in thresholds]  # type: ignore[arg-type]
    entries = (SitePlan(site.id, scheme) for site, scheme in zip(found.sites, schemes, strict=True))
    rewrite(model, found, Plan(found.exposed.structure_hash, tuple(entries)))
    save(model, tmp_path / "o.onnx")
    result = verify(original, load(tmp_path / "o.onnx"), generate_samples(original, 2))
    assert result.passed, result.failures


def test_reading_a_constant_does_not_rename_it(tmp_path: Path) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (int64[2,4] ids) => (float[2,4,3] y) '
        "{ w = Constant<value = float[2,3] named {1,2,3,4,5,6}>() y = Gather<axis=0>(w, ids) }"
    )
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    tensor = next(node for node in model.graph if node.op_type == "Constant").attributes["value"].as_tensor()
    generate_samples(model, 1)
    find_sites(expose(model))
    assert tensor.name == "named"


def test_keys_times_one_query_are_found_behind_a_squeeze(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,2,8,1] q, float[1,2,5,8] k, float[1,2,5,8] v) => (float[1,2,1,8] y) {
      s = MatMul(k, q)  last = Constant<value_ints=[-1]>()  r = Squeeze(s, last)  p = Softmax<axis=-1>(r)
      before = Constant<value_ints=[-2]>()  u = Unsqueeze(p, before)  y = MatMul(u, v) }"""
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    (site,) = find_sites(load(tmp_path / "m.onnx")).sites
    assert site.chain == ("MatMul", "Squeeze", "[Softmax]", "Unsqueeze", "MatMul")
