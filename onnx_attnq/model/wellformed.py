"""What a model file must fulfil before anything else looks at it.

A file may be damaged or hostile. Everything here works on the parsed protobuf, in time and memory
linear in the size of the file, and raises `InvalidModel` with one line. What passes has names that
resolve, tensors whose bytes are there, functions that end, and nothing that onnx_ir would drop.
Nesting is bounded by protobuf's parser, which refuses more than 100 messages inside each other.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model.operator_schemas import check_operator

OLDEST_OPSET: Final = 9
"""The oldest version of the ai.onnx operator set that is supported."""

NEWEST_OPSET: Final = onnx.defs.onnx_opset_version()
"""The newest version: what the installed onnx package knows."""

MAX_RANK: Final = 32
"""Axes of a tensor; numpy before version 2 had no more."""

MAX_NODES: Final = 1_000_000
"""Nodes after all functions are inlined. Twenty functions that call each other twice make as many."""

FREE_NODES: Final = 10_000
"""Nodes that any model may have when inlined, however small its file is."""

NODES_PER_BYTE: Final = 16
"""Beyond them: nodes for each byte of nodes in the file. A layer that is called 100 times has about two."""

MAX_CALL_DEPTH: Final = 64
"""Functions within functions."""

_FunctionId: TypeAlias = tuple[str, str, str]


def check_model(proto: onnx.ModelProto) -> None:
    """Check everything but external data and the order of nodes (see `onnx_ir.Graph.sort`).

    Raises:
        InvalidModel: With the reason, without the file's name.
    """
    if not proto.ir_version or not proto.HasField("graph"):
        raise InvalidModel("not an ONNX model: it has no ir_version or no graph")
    if not 0 < proto.ir_version <= onnx.IR_VERSION:
        raise InvalidModel(f"IR version {proto.ir_version} is not supported: 1 to {onnx.IR_VERSION} are")
    _check_text(proto)
    if not proto.graph.node:
        raise InvalidModel("the graph is empty: it has no nodes")
    if not proto.graph.output:
        raise InvalidModel("the graph has no outputs")
    if proto.training_info:
        raise InvalidModel("training_info is not supported: it would be lost")
    _check_opset(proto)
    _check_calls(proto)
    for tensor in tensor_protos(proto):
        check_tensor(tensor)
    _check_graph(proto.graph, [])
    for node in _all_nodes(proto.graph.node):
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                raise InvalidModel(
                    f"{_title(node)}: attribute {attribute.name!r} refers to one of a function around it"
                )
    _check_operators(proto, proto.graph.node, proto.opset_import)
    for function in proto.functions:
        names = set(function.input)
        _check_operators(proto, function.node, function.opset_import)
        _check_attributes(function.attribute_proto, f"function {function.name!r}")
        _check_nodes(function.node, names, [])
        _check_defined(function.output, [names], f"function {function.name!r}")


def graph_protos(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph, also those in functions."""
    yield proto.graph
    for node in _all_nodes(proto.graph.node):
        yield from _subgraphs(node)
    for function in proto.functions:
        for node in _all_nodes(function.node):
            yield from _subgraphs(node)


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers and attributes, at any depth."""
    for graph in graph_protos(proto):
        yield from graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _all_nodes(nodes):
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
    for function in proto.functions:
        for attribute in function.attribute_proto:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def tensor_size(tensor: onnx.TensorProto) -> int:
    """The bytes that dims and data type demand."""
    bits: int = ir.DataType(tensor.data_type).bitwidth
    return (math.prod(tensor.dims) * bits + 7) // 8


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node)


def _check_text(message: Message) -> None:
    """Names and other texts must be UTF-8; protobuf checks that on writing only, and reads the rest as bytes."""
    for field, content in message.ListFields():
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        for item in (content,) if isinstance(content, str | bytes | Message) else content:
            if isinstance(item, bytes):
                raise InvalidModel(f"the {field.name} of a {message.DESCRIPTOR.name} is not UTF-8: {item[:40]!r}")
            if isinstance(item, Message):
                _check_text(item)


def _check_opset(proto: onnx.ModelProto) -> None:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        raise InvalidModel("the model imports no ai.onnx operator set (is the file truncated?)")
    for version in versions:
        if not OLDEST_OPSET <= version <= NEWEST_OPSET:
            raise InvalidModel(f"ai.onnx opset {version} is not supported: {OLDEST_OPSET} to {NEWEST_OPSET} are")


def _check_calls(proto: onnx.ModelProto) -> None:
    """Functions must not call themselves, and must not grow beyond all bounds when they are inlined."""
    bodies: dict[_FunctionId, onnx.FunctionProto] = {}
    for function in proto.functions:
        identifier = (function.domain, function.name, function.overload)
        if identifier in bodies:
            raise InvalidModel(f"function {function.name!r} is defined twice")
        bodies[identifier] = function

    def callee(node: onnx.NodeProto) -> _FunctionId:
        return (node.domain, node.op_type, node.overload)

    calls = {
        identifier: {callee(node) for node in _all_nodes(function.node)} & bodies.keys()
        for identifier, function in bodies.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        raise InvalidModel(f"function {error.args[1][0][1]!r} calls itself") from None
    bodies_of = (proto.graph.node, *(function.node for function in proto.functions))
    written = sum(node.ByteSize() for nodes in bodies_of for node in nodes)
    most = min(MAX_NODES, max(FREE_NODES, NODES_PER_BYTE * written))
    size: dict[_FunctionId, int] = {}
    depth: dict[_FunctionId, int] = {}
    for identifier in order:
        size[identifier] = sum(1 + size.get(callee(node), 0) for node in _all_nodes(bodies[identifier].node))
        depth[identifier] = 1 + max((depth[called] for called in calls[identifier]), default=0)
        if depth[identifier] > MAX_CALL_DEPTH:
            raise InvalidModel(f"function {identifier[1]!r} nests more than {MAX_CALL_DEPTH} functions")
        if size[identifier] > most:
            raise InvalidModel(f"function {identifier[1]!r} has more than {most} nodes when inlined{_BOMB}")
    if sum(1 + size.get(callee(node), 0) for node in _all_nodes(proto.graph.node)) > most:
        raise InvalidModel(f"the graph has more than {most} nodes when its functions are inlined{_BOMB}")


_BOMB: Final = ", too many for the size of the file"


def _check_graph(graph: onnx.GraphProto, outer: list[set[str]]) -> None:
    """One graph and its subgraphs; ``outer`` are the names that the graphs around it define."""
    if graph.sparse_initializer:
        raise InvalidModel(f"graph {graph.name!r} has a sparse initializer, which is not supported")
    names = {info.name for info in graph.input}
    initializers: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name:
            raise InvalidModel(f"graph {graph.name!r} has an initializer without a name")
        if tensor.name in initializers:
            raise InvalidModel(f"initializer {tensor.name!r} is defined twice")
        initializers.add(tensor.name)
    names |= initializers
    for info in (*graph.input, *graph.output, *graph.value_info):
        _check_type(info.type, info.name)
    _check_nodes(graph.node, names, outer)
    _check_defined((info.name for info in graph.output), [names, *outer], f"graph {graph.name!r}")


def _check_nodes(nodes: Iterable[onnx.NodeProto], names: set[str], outer: list[set[str]]) -> None:
    """The names that nodes read and define; adds the latter to ``names``."""
    for node in nodes:
        for name in filter(None, node.output):
            if name in names:
                raise InvalidModel(f"{_title(node)} defines {name!r}, which is defined already")
            names.add(name)
    scopes = [names, *outer]
    for node in nodes:
        if not node.op_type:
            raise InvalidModel(f"{_title(node)} has no op_type")
        for name in filter(None, node.input):
            if not any(name in scope for scope in scopes):
                raise InvalidModel(f"{_title(node)} reads {name!r}, which nothing defines")
        _check_attributes(node.attribute, _title(node))
        for graph in _subgraphs(node):
            _check_graph(graph, scopes)


def _check_operators(
    proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], imports: Iterable[onnx.OperatorSetIdProto]
) -> None:
    """Every node that does not call a function, at any depth, against the schema of its operator."""
    functions = {(function.domain, function.name) for function in proto.functions}
    opsets = {entry.domain: entry.version for entry in imports}
    for node in _all_nodes(nodes):
        if (node.domain, node.op_type) not in functions:
            check_operator(node, opsets, _title(node))


def _check_defined(names: Iterable[str], scopes: list[set[str]], owner: str) -> None:
    for name in names:
        if not any(name in scope for scope in scopes):
            raise InvalidModel(f"{owner} has the output {name!r}, which nothing defines")


def _check_attributes(attributes: Collection[onnx.AttributeProto], owner: str) -> None:
    names = [attribute.name for attribute in attributes]
    if len(set(names)) < len(names):
        raise InvalidModel(f"{owner} has two attributes of one name")
    for attribute in attributes:
        if attribute.type == onnx.AttributeProto.UNDEFINED and not attribute.ref_attr_name:
            raise InvalidModel(f"{owner}: attribute {attribute.name!r} has no type")
        for kind, field in ((onnx.AttributeProto.TENSOR, "t"), (onnx.AttributeProto.GRAPH, "g")):
            if attribute.type == kind and not attribute.ref_attr_name and not attribute.HasField(field):
                raise InvalidModel(f"{owner}: attribute {attribute.name!r} has no value")
        if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
            raise InvalidModel(f"{owner}: attribute {attribute.name!r} is a sparse tensor: not supported")


def _check_type(proto: onnx.TypeProto, name: str) -> None:
    """The types that onnx_ir can hold; the nesting is bounded by protobuf."""
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        _data_type(getattr(proto, kind).elem_type, f"value {name!r}")
    elif kind in ("sequence_type", "optional_type"):
        _check_type(getattr(proto, kind).elem_type, name)
    elif kind is not None:
        raise InvalidModel(f"value {name!r} has a {kind}, which is not supported")


_FIELDS: Final = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}
"""Where a tensor without raw_data keeps its elements; all other types use int32_data."""


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Dims, data type and the bytes that are in the file agree."""
    name = f"tensor {tensor.name!r}"
    dtype = _data_type(tensor.data_type, name)
    if dtype is ir.DataType.UNDEFINED:
        raise InvalidModel(f"{name} has no data type")
    if len(tensor.dims) > MAX_RANK:
        raise InvalidModel(f"{name} has {len(tensor.dims)} axes; at most {MAX_RANK} are supported")
    if any(dim < 0 for dim in tensor.dims):
        raise InvalidModel(f"{name} has a negative dimension: {list(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if dtype is ir.DataType.STRING:
            raise InvalidModel(f"{name} keeps strings in external data, which ONNX does not allow")
        return
    if tensor.HasField("raw_data") and dtype is not ir.DataType.STRING:
        check_raw_size(tensor, len(tensor.raw_data))
    else:
        elements = math.prod(tensor.dims)
        if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            elements *= 2
        elif dtype is not ir.DataType.STRING and dtype.bitwidth in (2, 4):
            elements = (elements * dtype.bitwidth + 7) // 8  # packed, one byte to an int32
        found = len(getattr(tensor, _FIELDS.get(dtype, "int32_data")))
        if elements != found:
            raise InvalidModel(_sizes_differ(tensor, elements, found, "elements"))


def check_raw_size(tensor: onnx.TensorProto, nbytes: int) -> None:
    """Dims and data type agree with the bytes that are in the file.

    Raises:
        InvalidModel: They do not.
    """
    if tensor_size(tensor) != nbytes:
        raise InvalidModel(_sizes_differ(tensor, tensor_size(tensor), nbytes, "bytes"))


def _sizes_differ(tensor: onnx.TensorProto, expected: int, found: int, unit: str) -> str:
    return f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} {unit}, but the file has {found}"


def _data_type(number: int, name: str) -> ir.DataType:
    try:
        return ir.DataType(number)
    except ValueError:
        raise InvalidModel(f"{name} has the unknown data type {number}") from None


def _title(node: onnx.NodeProto) -> str:
    op_type = node.op_type if node.op_type.isidentifier() else repr(node.op_type)  # one line, whatever it holds
    return f"{op_type} node {node.name!r}"


__all__ = [
    "MAX_CALL_DEPTH",
    "MAX_NODES",
    "MAX_RANK",
    "NEWEST_OPSET",
    "OLDEST_OPSET",
    "check_model",
    "check_raw_size",
    "check_tensor",
    "graph_protos",
    "tensor_protos",
    "tensor_size",
]
