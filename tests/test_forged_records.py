"""Forged or damaged records of a rewrite: `revert` refuses them, and reads and writes nothing for them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper

from onnx_attnq.cli import main
from onnx_attnq.errors import CannotRevert, InvalidModel
from onnx_attnq.graph import Snapshot, apply
from onnx_attnq.job import compress
from onnx_attnq.model import load, recheck, structure_hash
from onnx_attnq.rewriting import read_record, revert
from onnx_attnq.rewriting.record import METADATA

Data = dict[str, Any]


@pytest.fixture
def rewritten(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    original = small_models.write(small_models.attention(), folder / "a.onnx")
    compress(original, folder / "b.onnx", verification=None)
    return folder / "b.onnx"


def forge(path: Path, change: Callable[[Data], None]) -> None:
    """Change the record of a model file, and let it claim the fingerprint of what its undo gives, if it gives any."""
    proto = onnx.load(path)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == METADATA)
    data = json.loads(entry.value)
    change(data)
    entry.value = json.dumps(data)
    onnx.save(proto, path)
    try:
        model = load(path)
        apply(read_record(model).undo, model)
        del model.metadata_props[METADATA]
        entry.value = json.dumps(data | {"structure_hash": structure_hash(model)})
    except Exception:
        return
    onnx.save(proto, path)


def change_nodes(data: Data, change: Callable[[onnx.GraphProto], None]) -> None:
    """Change the nodes that are put back."""
    graph = data["undo"]["graphs"][0]
    proto = onnx.GraphProto.FromString(base64.b64decode(graph["nodes"]))
    before = len(proto.node)
    change(proto)
    graph["nodes"] = base64.b64encode(proto.SerializeToString()).decode()
    first = max(graph["removed"]) + 1
    graph["removed"] += range(first, first + len(proto.node) - before)


def external_tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="leak", data_type=TensorProto.UINT8, dims=[32], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["leak"], value=external_tensor(location))


def in_a_node(location: str) -> Callable[[Data], None]:
    return lambda data: change_nodes(data, lambda graph: graph.node.append(constant(location)))


def in_a_subgraph(location: str) -> Callable[[Data], None]:
    inner = helper.make_graph(
        [constant(location)], "inner", [], [helper.make_tensor_value_info("leak", TensorProto.UINT8, [32])]
    )
    node = helper.make_node("If", ["nowhere"], ["chosen"], then_branch=inner, else_branch=inner)
    return lambda data: change_nodes(data, lambda graph: graph.node.append(node))


def in_a_function(location: str) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        function = helper.make_function(
            "local", "Leak", [], ["leak"], [constant(location)], [helper.make_opsetid("", 17)]
        )
        data["undo"]["functions"].append(base64.b64encode(function.SerializeToString()).decode())

    return change


@pytest.mark.parametrize("place", [in_a_node, in_a_subgraph, in_a_function])
@pytest.mark.parametrize("kind", ["secret", "relative", "pipe", "device", "own"])
def test_nothing_is_read_for_a_record(
    kind: str, place: Callable[[str], Callable[[Data], None]], rewritten: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "secret").write_text("TOP-SECRET-0123456789-abcdefghij")
    os.mkfifo(tmp_path / "pipe")
    (rewritten.parent / "own").write_bytes(bytes(32))
    locations = {"secret": str(tmp_path / "secret"), "relative": "../secret", "pipe": str(tmp_path / "pipe")}
    forge(rewritten, place((locations | {"device": "/dev/zero", "own": "own"})[kind]))
    before = sorted(os.listdir(rewritten.parent))
    with pytest.raises(SystemExit) as stop:
        main(["revert", str(rewritten), "-o", str(rewritten.with_name("out.onnx"))])
    assert stop.value.code == 2
    assert sorted(os.listdir(rewritten.parent)) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert "changed after it was rewritten" in line


def cycle(data: Data) -> None:
    change_nodes(
        data,
        lambda graph: graph.node.extend(
            [helper.make_node("Identity", ["z1"], ["z2"]), helper.make_node("Identity", ["z2"], ["z1"])]
        ),
    )


def later_value(data: Data) -> None:
    """A node that reads what the last one makes; sorted, this would be a valid model, but not the original."""
    change_nodes(data, lambda graph: graph.node.insert(0, helper.make_node("Identity", ["context"], ["z"])))


def undefined_value(data: Data) -> None:
    change_nodes(data, lambda graph: graph.node.append(helper.make_node("Identity", ["nowhere"], ["z"])))


def defined_twice(data: Data) -> None:
    change_nodes(data, lambda graph: graph.node.append(helper.make_node("Identity", ["x"], ["context"])))


def no_bytes(data: Data) -> None:
    tensor = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**50])
    change_nodes(data, lambda graph: graph.node.append(helper.make_node("Constant", [], ["z"], value=tensor)))


def bomb(data: Data) -> None:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(40):
        called = ("Neg", "") if level == 0 else (f"f{level - 1}", "local")
        body = [helper.make_node(called[0], [x], [y], domain=called[1]) for x, y in (("x", "y"), ("y", "z"))]
        function = helper.make_function("local", f"f{level}", ["x"], ["z"], body, imports)
        data["undo"]["functions"].append(base64.b64encode(function.SerializeToString()).decode())
    data["undo"]["opsets"]["local"] = 1


def opset(data: Data) -> None:
    data["undo"]["opsets"][""] = 1000


def no_version(data: Data) -> None:
    data["undo"]["ir_version"] = 0


def large_version(data: Data) -> None:
    data["undo"]["ir_version"] = 2**62


def another_output(data: Data) -> None:
    data["undo"]["graphs"][0]["outputs"] = ["nowhere"]


def no_outputs(data: Data) -> None:
    data["undo"]["graphs"][0]["outputs"] = []


def last_node(data: Data) -> None:
    data["undo"]["graphs"][0]["inserted"] = [-1]


def node_twice(data: Data) -> None:
    data["undo"]["graphs"][0]["inserted"] *= 2


def graph_twice(data: Data) -> None:
    data["undo"]["graphs"] *= 2


def another_graph(data: Data) -> None:
    data["undo"]["graphs"][0]["graph"] = 7


def another_function(data: Data) -> None:
    data["undo"]["added_functions"] = [["onnx_attnq", "Nothing", ""]]


def another_initializer(data: Data) -> None:
    data["undo"]["graphs"][0]["initializers"] = ["nothing"]


def orphan(tensor: TensorProto, *places: int) -> Callable[[Data], None]:
    """An initializer that is put back."""

    def change(data: Data) -> None:
        change_nodes(data, lambda graph: graph.initializer.append(tensor))
        data["undo"]["graphs"][0]["orphans"] = list(places)

    return change


ORPHANS = {
    "external": orphan(external_tensor("own"), 0),
    "there": orphan(helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0]), 0),
    "nowhere": orphan(helper.make_tensor("more", TensorProto.FLOAT, [1], [1.0]), 99),
    "behind": orphan(helper.make_tensor("more", TensorProto.FLOAT, [1], [1.0]), -1),
    "without a place": orphan(helper.make_tensor("more", TensorProto.FLOAT, [1], [1.0])),
    "two places": orphan(helper.make_tensor("more", TensorProto.FLOAT, [1], [1.0]), 0, 1),
    "no name": orphan(helper.make_tensor("", TensorProto.FLOAT, [1], [1.0]), 0),
    "no bytes": orphan(TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**50]), 0),
    "no type": orphan(TensorProto(name="odd", data_type=99, dims=[1]), 0),
}


@pytest.mark.parametrize("name", ORPHANS)
def test_a_forged_initializer_is_refused(name: str, rewritten: Path) -> None:
    (rewritten.parent / "own").write_bytes(bytes(32))
    forge(rewritten, ORPHANS[name])
    with pytest.raises(CannotRevert, match="changed after it was rewritten"):
        revert(load(rewritten))


FORGERIES = (
    cycle, later_value, undefined_value, defined_twice, no_bytes, bomb, opset, no_version, large_version,
    another_output, no_outputs, last_node, node_twice, graph_twice, another_graph, another_function, another_initializer,
)  # fmt: skip


@pytest.mark.parametrize("change", FORGERIES, ids=lambda change: change.__name__)
def test_a_forged_record_is_refused(change: Callable[[Data], None], rewritten: Path) -> None:
    forge(rewritten, change)
    with pytest.raises(CannotRevert, match="changed after it was rewritten"):
        revert(load(rewritten))


def inside(data: Data, path: tuple[str | int, ...], value: object) -> None:
    for step in path[:-1]:
        data = data[step]
    data[path[-1]] = value


UNREADABLE = {
    (): [],
    ("version",): 1,
    ("structure_hash",): None,
    ("original",): None,
    ("inlined",): "no",
    ("irreversible",): ["\n"],
    ("sites",): {},
    ("sites", 0): "site",
    ("sites", 0, "id"): {"a": 1},
    ("sites", 0, "form"): "new",
    ("sites", 0, "inputs"): [1],
    ("sites", 0, "scheme", "threshold"): "0.1",
    ("sites", 0, "scheme", "bits"): 2.5,
    ("sites", 0, "more"): 1,
    ("undo",): [1],
    ("undo", "ir_version"): 9.5,
    ("undo", "opsets"): {"": True},
    ("undo", "graphs", 0, "graph"): "0",
    ("undo", "graphs", 0, "nodes"): "*",
    ("undo", "graphs", 0, "inputs"): [[1, 2]],
    ("undo", "graphs", 0, "inserted"): [0.0],
    ("undo", "graphs", 0, "outputs"): "y",
    ("undo", "graphs", 0, "orphans"): ["scale"],
    ("undo", "added_functions"): [["onnx_attnq"]],
    ("undo", "functions"): [1],
}


@pytest.mark.parametrize("where", UNREADABLE, ids=str)
def test_a_record_of_other_types_cannot_be_read(where: tuple[str | int, ...], rewritten: Path) -> None:
    model = load(rewritten)
    data = json.loads(model.metadata_props[METADATA])
    if where:
        inside(data, where, UNREADABLE[where])
    model.metadata_props[METADATA] = json.dumps(data if where else [])
    with pytest.raises(InvalidModel, match=r"\Athe metadata 'onnx_attnq' of the model cannot be read: [^\n]+\Z"):
        read_record(model)


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, '{"version": NaN}', '{"version": 1e999}', '{"version": 1' + "0" * 5000 + "}"]
)
def test_a_record_that_is_no_json(text: str, rewritten: Path) -> None:
    model = load(rewritten)
    model.metadata_props[METADATA] = text
    with pytest.raises(InvalidModel, match=r"\Athe metadata 'onnx_attnq' of the model cannot be read: [^\n]{,200}\Z"):
        read_record(model)


# The checks that a snapshot, an undo and a reverted model have to pass


@pytest.mark.parametrize("place", [in_a_node, in_a_subgraph, in_a_function, lambda _: ORPHANS["external"]])
def test_an_undo_with_external_data_is_not_applied(
    place: Callable[[str], Callable[[Data], None]], rewritten: Path
) -> None:
    """Not only the model that comes of it is checked: by then, files would have been looked at."""
    (rewritten.parent / "own").write_bytes(bytes(32))
    forge(rewritten, place("own"))
    model = load(rewritten)
    record = read_record(model)
    assert record is not None
    assert record.undo is not None
    with pytest.raises(ValueError, match="the undo has external data"):
        apply(record.undo, model)


def test_an_undo_never_has_external_data(tmp_path: Path) -> None:
    proto = small_models.attention()
    tensor = external_tensor("weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(32))
    proto.graph.node.append(helper.make_node("Constant", [], ["unused"], name="far", value=tensor))
    proto.functions.append(
        helper.make_function("local", "F", ["x"], ["leak"], [constant("weights.bin")], [helper.make_opsetid("", 17)])
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    path = small_models.write(proto, tmp_path / "a.onnx")

    model = load(path)
    snapshot = Snapshot(model)
    model.graph.remove(next(node for node in model.graph if node.name == "far"))
    assert snapshot.undo(model) == "Constant 'far', which was removed, has external data"

    model = load(path)
    snapshot = Snapshot(model)
    model.functions.clear()
    assert snapshot.undo(model) == "a function, which was removed, has external data"

    model = load(path)
    snapshot = Snapshot(model)
    model.graph.remove(next(node for node in model.graph if node.op_type == "Add"))
    assert not isinstance(snapshot.undo(model), str)


def test_a_changed_model_is_held_to_the_rules_of_a_loaded_one(tmp_path: Path) -> None:
    path = small_models.write_external(small_models.attention(), tmp_path / "a.onnx")
    recheck(load(path))

    model = load(path)
    model.graph.initializers["weight"].const_value.base_dir = str(tmp_path.parent)
    with pytest.raises(InvalidModel, match="not in the folder of the model"):
        recheck(model)

    model = load(path)
    nodes = list(model.graph)
    model.graph.remove(nodes)
    model.graph.extend(reversed(nodes))
    with pytest.raises(InvalidModel, match="not in topological order"):
        recheck(model)

    model = load(path)
    first = next(iter(model.graph))
    first.replace_input_with(0, list(model.graph)[-1].outputs[0])
    with pytest.raises(InvalidModel, match="cycle"):
        recheck(model)

    model = load(path)
    model.graph.append(ir.node("Identity", [ir.Value(name="nowhere")]))
    with pytest.raises(InvalidModel, match="which nothing defines"):
        recheck(model)


def test_a_revert_with_data_beside_a_link_to_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    original = small_models.write_external(small_models.attention(), folder / "a.onnx")
    compress(original, folder / "b.onnx", verification=None)
    (tmp_path / "blob").mkdir()
    (folder / "b.onnx").rename(tmp_path / "blob" / "b")
    (folder / "b.onnx").symlink_to("../blob/b")
    model = load(folder / "b.onnx")
    revert(model)
    assert structure_hash(model) == structure_hash(load(original))
