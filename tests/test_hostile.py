"""Damaged and hostile files: each ends in one line that names the file, none in a traceback or a hang."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from packaging.version import Version

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model import load, save, structure_hash

Change = Callable[[onnx.ModelProto], None]


def refused(path: Path, reason: str) -> None:
    with pytest.raises(InvalidModel) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert re.search(reason, message), message


def attempt(path: Path) -> ir.Model | str:
    """The model, or the message that refuses it."""
    try:
        return load(path)
    except InvalidModel as error:
        return str(error)


def weight(proto: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == "weight")


# Files that are not models


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95pickle", "not an ONNX file"),
        (b"PK\x03\x04 a zip file, as of PyTorch", "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\n" * 1000, "not an ONNX"),
        (b"\x08\x08", "no ir_version or no graph"),
    ],
)
def test_a_file_of_another_kind(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refused(path, reason)


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "does not exist")
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")


def test_a_file_of_more_than_protobuf_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with open(path, "wb") as file:
        file.truncate(2**31)
    refused(path, "larger than 2 GiB")


def test_every_truncation_ends_in_an_error_or_a_model(tmp_path: Path) -> None:
    content = small_models.attention().SerializeToString()
    path = tmp_path / "model.onnx"
    loaded = 0
    for size in range(len(content)):
        path.write_bytes(content[:size])
        result = attempt(path)
        loaded += isinstance(result, ir.Model)
        assert isinstance(result, ir.Model) or result.startswith(str(path))
    # Protobuf cannot tell that something is missing where one of the last top-level fields ends.
    assert loaded <= 3


# Models that are damaged


def change_opset(version: int) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = version

    return change


def negative_ir_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = -1


def unknown_ir_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = 2**62


def no_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].domain = "com.microsoft"


def no_nodes(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]


def no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def undefined_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "nowhere"


def undefined_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nowhere"


def defined_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].output[0] = "weight"


def cycle(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "context"


def no_op_type(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = ""


def op_type_of_two_lines(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Mat\n\x1b[31mMul"
    proto.graph.node[0].input[0] = "nowhere"


def attribute_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.append(proto.graph.node[1].attribute[0])


def attribute_without_type(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute[0].ClearField("type")


def attribute_without_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)


def attribute_without_graph(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)


def attribute_not_text(proto: onnx.ModelProto) -> None:
    node = proto.graph.node.add(op_type="Tokenize", domain="custom", input=["x"], output=["z"])
    attribute = node.attribute.add(name="text", type=onnx.AttributeProto.STRINGS)
    attribute.strings.append(b"\xff\xfe")


def name_not_text(proto: onnx.ModelProto) -> None:
    content = proto.SerializeToString().replace(b"probabilities", b"probabilitie\xff")
    proto.ParseFromString(content)


def sparse_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)


def sparse_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add()


def nameless_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.add().CopyFrom(onnx.numpy_helper.from_array(np.zeros(1), ""))


def initializer_twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(proto.graph.initializer[0])


def too_few_inputs(proto: onnx.ModelProto) -> None:
    del proto.graph.node[-1].input[1]


def too_many_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].input.extend(["x", "x"])


def no_first_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].input[0] = ""


def too_many_outputs(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].output.append("more")


def attribute_of_another_type(proto: onnx.ModelProto) -> None:
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].CopyFrom(helper.make_attribute("axis", [1.0]))


def attribute_of_a_contributed_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("FusedMatMul", ["x", "x"], ["z"], domain="com.microsoft", transA=[1.0]))


def unknown_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("transA", 1))


def attribute_of_no_function(proto: onnx.ModelProto) -> None:
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].ref_attr_name = "axis"


def required_attribute_missing(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Cast", ["x"], ["z"]))


def wrong_in_a_subgraph(proto: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["x"], ["z"])], "inner", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    proto.graph.node.append(helper.make_node("If", ["x"], ["chosen"], then_branch=inner, else_branch=inner))


def wrong_in_a_function(proto: onnx.ModelProto) -> None:
    body = [helper.make_node("Add", ["x"], ["z"])]
    proto.functions.append(helper.make_function("local", "F", ["x"], ["z"], body, [helper.make_opsetid("", 17)]))


def training(proto: onnx.ModelProto) -> None:
    proto.training_info.add()


def unknown_value_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 999


def map_value(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.map_type.key_type = TensorProto.INT64


def unknown_tensor_type(proto: onnx.ModelProto) -> None:
    weight(proto).data_type = 999


def no_tensor_type(proto: onnx.ModelProto) -> None:
    weight(proto).data_type = 0


def huge_tensor(proto: onnx.ModelProto) -> None:
    weight(proto).dims[:] = [2**40, 2**40]  # the product does not fit 64 bits


def empty_huge_tensor(proto: onnx.ModelProto) -> None:
    weight(proto).dims[:] = [2**50]
    weight(proto).ClearField("raw_data")  # onnx_ir would make zeros of it


def negative_dim(proto: onnx.ModelProto) -> None:
    weight(proto).dims[:] = [-8, -8]


def many_axes(proto: onnx.ModelProto) -> None:
    weight(proto).dims[:] = [2**62] * 100_000


def short_typed_data(proto: onnx.ModelProto) -> None:
    weight(proto).ClearField("raw_data")
    weight(proto).float_data.extend([0.0] * 63)


def huge_constant(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**50])
    proto.graph.node.append(helper.make_node("Constant", [], ["big"], value=tensor))


DAMAGES = {
    change_opset(8): "opset 8 is not supported: 9 to",
    change_opset(10_000): "opset 10000 is not supported: 9 to",
    negative_ir_version: "IR version -1 is not supported",
    unknown_ir_version: "IR version 4611686018427387904 is not supported",
    no_opset: "imports no ai.onnx operator set",
    no_nodes: "has no nodes",
    no_outputs: "has no outputs",
    undefined_input: "MatMul node '' reads 'nowhere', which nothing defines",
    undefined_output: "output 'nowhere', which nothing defines",
    defined_twice: "'weight', which is defined already",
    cycle: "cycle",
    no_op_type: "has no op_type",
    op_type_of_two_lines: r"'Mat\n\x1b[31mMul' node '' reads 'nowhere'",
    attribute_twice: "two attributes of one name",
    attribute_without_type: "'perm' has no type",
    attribute_without_tensor: "'value' has no value",
    attribute_without_graph: "'then_branch' has no value",
    attribute_not_text: "onnx_ir cannot read it: 'utf-8' codec",
    name_not_text: "the output of a NodeProto is not UTF-8: b'probabilitie\\xff'",
    sparse_attribute: "'sparse' is a sparse tensor",
    sparse_initializer: "sparse initializer",
    nameless_initializer: "initializer without a name",
    initializer_twice: "'weight' is defined twice",
    too_few_inputs: "Add node '' has 1 inputs; 2 are allowed",
    too_many_inputs: "Add node '' has 4 inputs; 2 are allowed",
    no_first_input: "Add node '' lacks its input 'A'",
    too_many_outputs: "Add node '' has 2 outputs; 1 are allowed",
    attribute_of_another_type: "Softmax node '': attribute 'axis' is of type floats; it must be int",
    attribute_of_a_contributed_operator: "FusedMatMul node '': attribute 'transA' is of type floats; it must be int",
    unknown_attribute: "MatMul node '' has the attribute 'transA', which its operator does not have",
    attribute_of_no_function: "'axis' refers to one of a function around it",
    required_attribute_missing: "Cast node '' lacks its attribute 'to'",
    wrong_in_a_subgraph: "Add node '' has 1 inputs",
    wrong_in_a_function: "Add node '' has 1 inputs",
    training: "training_info",
    unknown_value_type: "value 'x' has the unknown data type 999",
    map_value: "value 'x' has a map_type",
    unknown_tensor_type: "'weight' has the unknown data type 999",
    no_tensor_type: "'weight' has no data type",
    huge_tensor: "needs 4835703278458516698824704 bytes, but the file has 256",
    empty_huge_tensor: "needs 1125899906842624 elements, but the file has 0",
    negative_dim: "negative dimension",
    many_axes: "100000 axes",
    short_typed_data: "needs 64 elements, but the file has 63",
    huge_constant: "tensor 'big'",
}


@pytest.mark.parametrize("change", DAMAGES, ids=lambda change: change.__qualname__)
def test_a_damaged_model(change: Change, tmp_path: Path) -> None:
    proto = small_models.attention()
    change(proto)
    refused(small_models.write(proto, tmp_path / "model.onnx"), re.escape(DAMAGES[change]))


# Nesting and size


def nested(depth: int) -> onnx.ModelProto:
    """A model with If nodes inside each other."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y0"])], "inner", [], [helper.make_tensor_value_info("y0", 1, None)]
    )
    for level in range(1, depth + 1):
        other = helper.make_graph(
            [helper.make_node("Identity", ["x"], [f"z{level}"])],
            "other",
            [],
            [helper.make_tensor_value_info(f"z{level}", 1, None)],
        )
        node = helper.make_node("If", ["condition"], [f"y{level}"], then_branch=graph, else_branch=other)
        output = helper.make_tensor_value_info(f"y{level}", 1, None)
        graph = helper.make_graph([node], f"level{level}", [], [output])
    graph.input.append(helper.make_tensor_value_info("x", 1, ["n"]))
    graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_subgraphs_as_deep_as_protobuf_allows(tmp_path: Path) -> None:
    path = small_models.write(nested(20), tmp_path / "model.onnx")
    save(load(path), tmp_path / "out.onnx")
    assert structure_hash(load(tmp_path / "out.onnx")) == structure_hash(load(path))


def test_subgraphs_too_deep(tmp_path: Path) -> None:
    # Written by hand, level by level, because protobuf does not write either what it would not read.
    graph = b""
    for _ in range(5000):
        attribute = b"".join(field(number, content) for number, content in ((1, b"g"), (6, graph)))
        graph = field(1, field(4, b"If") + field(5, attribute))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph))
    refused(path, "nested too deeply")


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds text or another message."""
    size = len(content)
    digits = []
    while True:
        digits.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
        if not size:
            return bytes([number << 3 | 2, *digits]) + content


def calling(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """A model with functions, given as the operators that each calls in turn."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]

    def chain(operators: list[str]) -> list[onnx.NodeProto]:
        return [
            helper.make_node(
                operator,
                ["x" if step == 0 else f"v{step}"],
                [f"v{step + 1}" if step + 1 < len(operators) else "y"],
                domain="local" if operator in bodies else "",
            )
            for step, operator in enumerate(operators)
        ]

    functions = [
        helper.make_function("local", name, ["x"], ["y"], chain(operators), imports)
        for name, operators in bodies.items()
    ]
    value = [helper.make_tensor_value_info(name, 1, ["n"]) for name in "xy"]
    graph = helper.make_graph(chain([next(iter(bodies))]), "main", value[:1], value[1:])
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=8)


def test_functions_that_call_each_other(tmp_path: Path) -> None:
    path = small_models.write(calling({"a": ["b", "Neg"], "b": ["a"]}), tmp_path / "model.onnx")
    refused(path, "function '[ab]' calls itself")


def test_functions_that_double_at_each_level(tmp_path: Path) -> None:
    bodies = {f"f{level}": [f"f{level + 1}"] * 2 for level in range(60)} | {"f60": ["Neg"]}
    refused(small_models.write(calling(bodies), tmp_path / "model.onnx"), "nodes when inlined")


def test_a_small_file_does_not_become_a_large_graph(tmp_path: Path) -> None:
    # 2**11 nodes are within what any file may have; 2**15 are too many for a file of 2 KB.
    for levels, allowed in ((11, True), (15, False)):
        bodies = {f"f{level}": [f"f{level + 1}"] * 2 for level in range(levels)} | {f"f{levels}": ["Neg"]}
        path = small_models.write(calling(bodies), tmp_path / "model.onnx")
        if allowed:
            load(path)
        else:
            refused(path, "has more than 1.... nodes when inlined, too many for the size of the file")


def test_a_layer_that_is_called_many_times_is_no_bomb(tmp_path: Path) -> None:
    path = small_models.write(calling({"main": ["layer"] * 200, "layer": ["Neg"] * 1000}), tmp_path / "model.onnx")
    load(path)


def test_functions_too_deep(tmp_path: Path) -> None:
    bodies = {f"f{level}": [f"f{level + 1}"] for level in range(5000)} | {"f5000": ["Neg"]}
    refused(small_models.write(calling(bodies), tmp_path / "model.onnx"), "nests more than 64 functions")


def test_functions_defined_twice(tmp_path: Path) -> None:
    proto = calling({"a": ["Neg"]})
    proto.functions.append(proto.functions[0])
    refused(small_models.write(proto, tmp_path / "model.onnx"), "function 'a' is defined twice")


def test_a_function_that_is_cyclic_inside(tmp_path: Path) -> None:
    proto = calling({"a": ["Neg", "Abs"]})
    proto.functions[0].node[0].input[0] = "y"
    refused(small_models.write(proto, tmp_path / "model.onnx"), "cycle")


# External data


@pytest.fixture
def external(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return small_models.write_external(small_models.attention(), folder / "model.onnx")


def relocate(path: Path, **entries: str) -> None:
    """Change where the model says that the data of its first tensor is."""
    proto = onnx.load(path, load_external_data=False)
    tensor = weight(proto)
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    small_models.write(proto, path)


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "sub/../../secret",
        "/etc/passwd",
        "..\\secret",
        "C:\\secret",
        "C:secret",
        "\\\\server\\share\\secret",
        "\\secret",
    ],
)
def test_data_outside_of_the_folder(location: str, external: Path) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(1000))
    relocate(external, location=location)
    refused(external, "outside of the model's folder")


@pytest.mark.parametrize("location", ["", "a\0b"])
def test_data_nowhere(location: str, external: Path) -> None:
    relocate(external, location=location)
    refused(external, "but not where")


@pytest.mark.parametrize("location", ["missing.bin", "*/_ORT_MEM_ADDR_/*", "n" * 300])
def test_data_that_is_missing(location: str, external: Path) -> None:
    relocate(external, location=location, offset="140000000000000" if "ORT" in location else "0")
    refused(external, "external data '.*' cannot be read")


def test_data_behind_a_symbolic_link(external: Path, tmp_path: Path) -> None:
    data = external.parent / "weights.bin"
    data.rename(tmp_path / "secret")
    data.symlink_to("../secret")
    refused(external, "symbolic link out of the model's folder")


def test_data_in_a_linked_folder(external: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (external.parent / "weights.bin").rename(tmp_path / "elsewhere" / "weights.bin")
    (external.parent / "sub").symlink_to("../elsewhere")
    relocate(external, location="sub/weights.bin")
    refused(external, "symbolic link out of the model's folder")


def test_data_with_a_hard_link(external: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").hardlink_to(external.parent / "weights.bin")
    refused(external, "second hard link")


@pytest.mark.skipif(Version(onnx.__version__) < Version("1.23"), reason="older versions read them")
def test_onnx_refuses_hard_links_too_so_that_none_may_be_written(external: Path, tmp_path: Path) -> None:
    (tmp_path / "link.bin").hardlink_to(external.parent / "weights.bin")
    with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
        onnx.load(external)


def test_data_that_is_not_a_file(external: Path) -> None:
    data = external.parent / "weights.bin"
    data.unlink()
    data.mkdir()
    refused(external, "is not a file")
    data.rmdir()
    os.mkfifo(data)
    refused(external, "is not a file")


def test_data_that_is_too_short(external: Path) -> None:
    with open(external.parent / "weights.bin", "r+b") as file:
        file.truncate(100)
    refused(external, r"too short: tensor 'weight' needs bytes 0 to 256, the file has 100")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "-1"}, "offset of the external data is not a whole number"),
        ({"offset": "9" * 1000}, "offset of the external data is not a whole number"),
        ({"offset": str(2**62)}, "too short"),
        ({"offset": "0x10"}, "not a whole number"),
        ({"length": "1e3"}, "not a whole number"),
        ({"length": "128"}, "needs 256 bytes, but refers to 128"),
    ],
)
def test_a_wrong_reference(entries: dict[str, str], reason: str, external: Path) -> None:
    relocate(external, **entries)
    refused(external, reason)


def test_unknown_keys_of_a_reference_are_dropped(external: Path) -> None:
    relocate(external, prepacked_0="x", basepath="/etc")
    load(external)


def test_external_data_in_a_function_is_held_to_the_same_rules(external: Path) -> None:
    proto = calling({"a": ["Neg"]})
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    proto.functions[0].node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    refused(small_models.write(proto, external), "outside of the model's folder")


def test_a_link_planted_after_loading_is_not_followed(external: Path, tmp_path: Path) -> None:
    model = load(external)
    data = external.parent / "weights.bin"
    data.rename(tmp_path / "secret")
    data.symlink_to("../secret")
    with pytest.raises(InvalidModel, match="outside the base directory"):
        save(model, tmp_path / "out.onnx")
    assert not list(tmp_path.glob("*out*"))


# Anything else


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with a few places overwritten, cut out or doubled, and perhaps an end missing."""
    place = st.integers(0, len(content) - 1)
    edit = st.one_of(
        st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("cut"), place, st.integers(1, 40)),
        st.tuples(st.just("double"), place, st.integers(1, 200)),
        st.tuples(st.just("end"), place, st.just(0)),
    )

    def apply(edits: list[tuple[str, int, bytes | int]]) -> bytes:
        changed = content
        for kind, start, what in edits:
            match kind, what:
                case "set", bytes(new):
                    changed = changed[:start] + new + changed[start + len(new) :]
                case "cut", int(size):
                    changed = changed[:start] + changed[start + size :]
                case "double", int(size):
                    changed = changed[: start + size] + changed[start:]
                case _:
                    changed = changed[: max(start, 1)]
        return changed

    return st.lists(edit, min_size=1, max_size=3).map(apply)


SEEDS = {
    "attention": small_models.attention(),
    "bert": small_models.parse(small_models.BERT),
    "nested": nested(3),
    "functions": calling({"a": ["b", "Neg"], "b": ["Abs", "Neg"]}),
}


def check(content: bytes, folder: Path) -> None:
    """A file is refused in one line, or is a model that can be saved and is the same then."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    result = attempt(path)
    if isinstance(result, str):
        assert result.startswith(str(path))
        assert len(result.splitlines()) == 1
    else:
        save(result, folder / "out.onnx")
        assert structure_hash(load(folder / "out.onnx")) == structure_hash(result)


@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_ends_in_an_error_or_a_model(seed: str, data: st.DataObject, tmp_path: Path) -> None:
    check(data.draw(mutations(SEEDS[seed].SerializeToString())), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=4_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_very_many_mutations(seed: str, data: st.DataObject, tmp_path: Path) -> None:
    check(data.draw(mutations(SEEDS[seed].SerializeToString())), tmp_path)
