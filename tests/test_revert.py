"""A rewritten model gives its original graph back, or says why it does not."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import small_models
import small_transformers

from onnx_attnq.cli import main
from onnx_attnq.diff import diff_models
from onnx_attnq.errors import CannotRevert, NothingToRewrite
from onnx_attnq.graph import Snapshot
from onnx_attnq.graph.undo import LIMIT
from onnx_attnq.job import compress, plan_only
from onnx_attnq.model import load, save, structure_hash
from onnx_attnq.rewriting import Plan, RewriteSettings, SitePlan, read_record, revert
from onnx_attnq.rewriting.record import METADATA, write_record
from onnx_attnq.scheme import preset

MODELS = sorted((Path(__file__).parent / "models").glob("*.onnx"))


@pytest.fixture
def rewritten(tmp_path):
    original = small_models.write(small_models.attention(), tmp_path / "a.onnx")
    compress(original, tmp_path / "b.onnx", verification=None)
    return original, tmp_path / "b.onnx"


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"quantize_outputs": True}], ids=str)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_gives_back_the_original(path, options, tmp_path):
    try:
        compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(keep_fused=False, **options), verification=None)
    except NothingToRewrite:
        pytest.skip("has no attention that can be rewritten")
    model = load(tmp_path / "b.onnx")
    assert not diff_models(load(path), load(tmp_path / "b.onnx")).equal
    revert(model)
    save(model, tmp_path / "c.onnx")
    original, back = load(path), load(tmp_path / "c.onnx")
    assert diff_models(original, back, metadata=True).equal
    # Names and order too, which diff ignores.
    assert structure_hash(original) == structure_hash(back)
    assert [node.name for node in original.graph] == [node.name for node in back.graph]


def test_gives_back_types_of_values(rewritten, tmp_path):
    original, path = rewritten
    model = load(path)
    revert(model)
    typed = {v.name: (v.type, v.shape) for node in load(original).graph for v in node.outputs}
    assert {v.name: (v.type, v.shape) for node in model.graph for v in node.outputs} == typed


def test_some_sites_only(tmp_path):
    path = next(path for path in MODELS if path.stem == "odd_if__ts17-script")
    ids = [site.id for site in plan_only(path).sites.sites]
    for chosen in itertools.chain.from_iterable(itertools.combinations(ids, n) for n in range(1, len(ids))):
        entries = [SitePlan(i, preset()) if i in chosen else SitePlan(i, None, "left") for i in ids]
        plan = Plan(structure_hash(load(path)), tuple(entries))
        result = compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(plan=plan), verification=None)
        assert result.record.plan == plan.hash
        model = load(tmp_path / "b.onnx")
        revert(model)
        assert diff_models(load(path), model, metadata=True).equal


def test_an_original_has_nothing_to_revert(rewritten):
    with pytest.raises(CannotRevert, match="carries no record"):
        revert(load(rewritten[0]))


def test_a_model_that_was_changed_afterwards(rewritten):
    model = load(rewritten[1])
    node = model.graph.node(0)
    model.graph.insert_after(node, ir.Node("", "Identity", [node.outputs[0]], name="added"))
    with pytest.raises(CannotRevert, match="changed after it was rewritten"):
        revert(model)
    model = load(rewritten[1])
    model.graph.outputs[0].name = "renamed"
    with pytest.raises(CannotRevert, match="changed after it was rewritten"):
        revert(model)


def test_what_was_too_large_to_keep_is_said_so(rewritten, tmp_path):
    original, path = rewritten
    model = load(original)
    table = ir.tensor(np.zeros(LIMIT, np.uint8), name="table")
    constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", table)])
    model.graph.insert_before(model.graph.node(0), constant)
    snapshot = Snapshot(model)
    model.graph.remove(constant)
    reason = snapshot.undo(model)
    assert reason == "what was removed is too large to be kept"

    model = load(path)
    write_record(model, dataclasses.replace(read_record(model), undo=None, irreversible=reason))
    save(model, tmp_path / "c.onnx")
    with pytest.raises(CannotRevert, match=reason):
        revert(load(tmp_path / "c.onnx"))


def test_a_removed_node_with_subgraphs_cannot_be_put_back():
    model = load(next(path for path in MODELS if path.stem == "odd_if__ts17-script"))
    branch = next(node for node in model.graph if node.op_type == "If")
    snapshot = Snapshot(model)
    model.graph.remove(branch)
    assert "has subgraphs" in snapshot.undo(model)


def test_the_same_bytes_each_time(tmp_path):
    for path in MODELS[:1]:
        compress(path, tmp_path / "b.onnx", verification=None)
        compress(path, tmp_path / "c.onnx", verification=None)
        assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_damaged_record(rewritten):
    model = load(rewritten[1])
    data = json.loads(model.metadata_props[METADATA])
    data["undo"]["graphs"][0]["removed"] = [10_000]
    model.metadata_props[METADATA] = json.dumps(data)
    with pytest.raises(CannotRevert, match="changed after it was rewritten"):
        revert(model)


def test_command_line(rewritten, tmp_path, capsys):
    original, path = rewritten
    with pytest.raises(SystemExit) as stop:
        main(["revert", str(path), "-o", str(tmp_path / "c.onnx"), "--json", "-"])
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["structure_hash"] == structure_hash(load(original))
    assert diff_models(load(original), load(tmp_path / "c.onnx"), metadata=True).equal
    with pytest.raises(SystemExit) as stop:
        main(["revert", str(original), "-o", str(tmp_path / "d.onnx")])
    assert stop.value.code == 2
    assert str(original) in capsys.readouterr().err
    assert not (tmp_path / "d.onnx").exists()


def test_inspect_reads_the_provenance(rewritten, capsys):
    original, path = rewritten
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--json", "-"])
    data = json.loads(capsys.readouterr().out)
    assert data["original"]["structure_hash"] == structure_hash(load(original))
    assert data["plan"]["sha256"] == plan_only(original).plan.hash
    assert data["written_by"] == read_record(load(path)).version
    assert data["sites"][0]["scheme"] == preset().to_json()
    assert data["revertible"]


def test_the_record_of_the_first_version_is_read(tmp_path: Path) -> None:
    save(small_transformers.bert_like(17), tmp_path / "m.onnx")
    result = compress(tmp_path / "m.onnx", verification=None)
    written = load(tmp_path / "m.attnq.onnx")
    data = json.loads(written.metadata_props[METADATA])
    data["original"] = data.pop("structure_hash")
    written.metadata_props[METADATA] = json.dumps(data)
    assert read_record(written) == result.record
    assert revert(written) == result.record


def test_a_removed_node_with_external_data_cannot_be_kept(tmp_path: Path) -> None:
    graph = small_transformers.bert_like(17)
    (tmp_path / "w").write_bytes(bytes(4))
    tensor = ir.ExternalTensor("w", 0, 4, ir.DataType.FLOAT, shape=ir.Shape([1]), name="w", base_dir=tmp_path)
    node = ir.node("Constant", [], {"value": tensor})
    node.outputs[0].name = "unused"
    graph.graph.append(node)
    snapshot = Snapshot(graph)
    graph.graph.remove(node)
    undo = snapshot.undo(graph)
    assert isinstance(undo, str)
    assert "external data" in undo


ORPHANS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,2,L,4] q, float[1,2,L,4] k, float[1,2,L,4] v, float given) => (float[1,2,L,4] y, float shown)
<float unused = {7.0}, float half = {0.5}, float given = {0.5}, float shown = {3.0}, float low = {-1e9}, float[1,1,L,L] big>
{
    kt = Transpose<perm=[0,1,3,2]>(k)
    s = MatMul(q, kt)
    a = Mul(s, half)
    b = Add(a, big)
    p = Softmax<axis=-1>(b)
    y = MatMul(p, v)
}
"""


@pytest.mark.parametrize("inline", [False, True])
def test_initializers_that_the_rewrite_leaves_unused_are_removed_and_come_back(inline: bool, tmp_path: Path) -> None:
    path = small_models.write(small_models.parse(ORPHANS, big=np.zeros((1, 1, 1, 1), np.float32)), tmp_path / "m.onnx")
    compress(path, tmp_path / "o.onnx", rewriting=RewriteSettings(inline=inline), verification=None)
    written, original = load(tmp_path / "o.onnx"), load(path)
    gone = set(original.graph.initializers) - set(written.graph.initializers)
    assert gone == (set() if inline else {"half"})  # what was unused before stays, as do an input and an output
    revert(written)
    assert diff_models(original, written, metadata=True).equal
    assert list(written.graph.initializers) == list(original.graph.initializers)


def test_a_large_initializer_stays_since_the_record_does_not_keep_it(tmp_path: Path) -> None:
    filled = ORPHANS.replace("b = Add(a, big)", "b = Add(a, big) c = Mul(a, half)").replace("(b)", "(c)")
    table = np.zeros((1, 1, 40, 40), np.float32)
    path = small_models.write(small_models.parse(filled, big=table), tmp_path / "m.onnx")
    compress(path, tmp_path / "o.onnx", verification=None)
    written = load(tmp_path / "o.onnx")
    assert "big" in written.graph.initializers
    revert(written)
    assert structure_hash(written) == structure_hash(load(path))


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_nothing_is_left_unused_that_was_used(path: Path, inline: bool, tmp_path: Path) -> None:
    try:
        compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(inline=inline), verification=None)
    except NothingToRewrite:
        pytest.skip("has no attention that can be rewritten")
    written = load(tmp_path / "b.onnx")
    assert _unused(written) <= _unused(load(path))


def _unused(model: ir.Model) -> set[str]:
    graphs = [model.graph, *model.graph.subgraphs(), *(function.graph for function in model.functions.values())]
    return {
        f"{node.op_type} {node.name}"
        for graph in graphs
        for node in graph
        if not any(value.uses() or value.is_graph_output() for value in node.outputs)
    } | {
        name
        for graph in graphs
        for name, value in graph.initializers.items()
        if not (value.uses() or value.is_graph_input() or value.is_graph_output())
    }
