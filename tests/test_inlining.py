"""Calls of functions become their bodies: named as onnx_ir's own pass names them, in linear time."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx_ir.passes.common import InlinePass

from onnx_attnq.find.inlining import inline_functions
from onnx_attnq.model import load, structure_hash

MODELS = sorted(path for folder in ("models", "gallery") for path in (Path(__file__).parent / folder).glob("**/*.onnx"))
WITH_FUNCTIONS = [path for path in MODELS if onnx.load(path, load_external_data=False).functions]

CALLS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[n] x, bool c) => (float[n] y) {
    a = local.twice(x)
    b = local.twice(a)
    c_2 = local.branch(c, b)
    y = local.twice(c_2)
}
<domain: "local", opset_import: ["" : 17, "local" : 1]>
twice (x) => (z) { z_2 = local.once(x) z = local.once(z_2) }
<domain: "local", opset_import: ["" : 17]>
once (x) => (z) { z = Neg(x) }
<domain: "local", opset_import: ["" : 17]>
branch (c, x) => (z) {
    z = If(c) <then_branch = g1 () => (float[n] z) { z = Abs(x) }, else_branch = g2 () => (float[n] z) { z = Neg(x) }>
}
"""


@pytest.mark.parametrize("path", WITH_FUNCTIONS, ids=lambda path: path.stem)
def test_the_names_are_those_of_onnx_ir(path: Path) -> None:
    ours, theirs = load(path), load(path)
    inline_functions(ours)
    InlinePass()(theirs)
    assert not ours.functions
    assert structure_hash(ours) == structure_hash(theirs)


def test_the_names_are_those_of_onnx_ir_in_nested_calls_and_branches(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(CALLS), tmp_path / "a.onnx")
    ours, theirs = load(tmp_path / "a.onnx"), load(tmp_path / "a.onnx")
    inline_functions(ours)
    InlinePass()(theirs)
    assert structure_hash(ours) == structure_hash(theirs)


def test_the_work_grows_with_the_number_of_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "\n".join(f"v{i + 1} = local.once(v{i})" for i in range(500))
    text = CALLS.replace("z_2 = local.once(x) z = local.once(z_2)", f"v0 = Neg(x) {lines} z = Neg(v500)")
    onnx.save(onnx.parser.parse_model(text), tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    asked = 0

    class Counting(set[str]):
        def __contains__(self, name: object) -> bool:
            nonlocal asked
            asked += 1
            return super().__contains__(name)

    monkeypatch.setattr("onnx_attnq.find.inlining.set", Counting, raising=False)
    monkeypatch.setattr("onnx_ir.passes.common.inliner.set", Counting, raising=False)
    inline_functions(model)
    nodes = sum(1 for _ in model.graph.all_nodes())
    assert nodes > 1500
    assert 0 < asked < 10 * nodes
