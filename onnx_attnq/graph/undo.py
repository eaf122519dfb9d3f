"""What it takes to make a changed graph what it was before.

A `Snapshot` is taken before the change, and compared with the model after it. It knows nothing of what the change was
about: nodes are removed, inserted and rewired, whatever did it. Removed nodes are kept whole; they are a few per
attention, without weights.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from onnx_attnq.graph.dataflow import Dataflow, subgraphs
from onnx_attnq.reading import check_fields

LIMIT: Final = 2**20
"""Bytes of removed nodes and functions that are kept; beyond it, weights are among them."""


@dataclasses.dataclass(frozen=True)
class GraphUndo:
    """What changed in one graph.

    Attributes:
        graph: Place of the graph in `Dataflow.graphs` of the changed model.
        inserted: Places of the nodes to take out, in the changed graph.
        removed: Places of the nodes to put back, in the original graph.
        nodes: These nodes and the types of their outputs, a serialized GraphProto.
        inputs: Node's place in the original graph, place of the input, and name of the value that belongs there.
        outputs: Names of the graph's outputs.
        initializers: Names of initializers to take out.
    """

    graph: int
    inserted: tuple[int, ...]
    removed: tuple[int, ...]
    nodes: bytes
    inputs: tuple[tuple[int, int, str], ...]
    outputs: tuple[str, ...]
    initializers: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, bytes in base64."""
        return {**dataclasses.asdict(self), "nodes": base64.b64encode(self.nodes).decode()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphUndo:
        """The inverse of `to_json`.

        Raises:
            ValueError: Something is missing, unknown or of the wrong type.
        """
        kinds = {"graph": int, "nodes": str}
        lists = dict.fromkeys(("inserted", "removed", "inputs", "outputs", "initializers"), list)
        check_fields(data, "a graph of the undo", kinds | lists)
        return cls(
            graph=data["graph"],
            inserted=_tuple(data["inserted"], int),
            removed=_tuple(data["removed"], int),
            nodes=base64.b64decode(data["nodes"], validate=True),
            inputs=tuple(_row(row, int, int, str) for row in data["inputs"]),
            outputs=_tuple(data["outputs"], str),
            initializers=_tuple(data["initializers"], str),
        )


@dataclasses.dataclass(frozen=True)
class Undo:
    """What changed in a model.

    Attributes:
        ir_version: The original's.
        opsets: The original's, version by domain.
        graphs: The graphs that changed.
        added_functions: Domain, name and overload of functions to take out.
        functions: Functions to put back, serialized FunctionProtos.
    """

    ir_version: int
    opsets: Mapping[str, int]
    graphs: tuple[GraphUndo, ...]
    added_functions: tuple[tuple[str, str, str], ...]
    functions: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, bytes in base64."""
        return {
            "ir_version": self.ir_version,
            "opsets": dict(self.opsets),
            "graphs": [graph.to_json() for graph in self.graphs],
            "added_functions": self.added_functions,
            "functions": [base64.b64encode(function).decode() for function in self.functions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Undo:
        """The inverse of `to_json`.

        Raises:
            ValueError: Something is missing, unknown or of the wrong type.
        """
        lists = dict.fromkeys(("graphs", "added_functions", "functions"), list)
        check_fields(data, "the undo", {"ir_version": int, "opsets": dict} | lists)
        return cls(
            ir_version=data["ir_version"],
            opsets=dict(zip(data["opsets"], _tuple(data["opsets"].values(), int), strict=True)),
            graphs=tuple(map(GraphUndo.from_json, data["graphs"])),
            added_functions=tuple(_row(row, str, str, str) for row in data["added_functions"]),
            functions=tuple(base64.b64decode(text, validate=True) for text in _tuple(data["functions"], str)),
        )


@dataclasses.dataclass(frozen=True)
class _GraphBefore:
    """The wiring of a graph, by names."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    typed: frozenset[ir.Value]
    outputs: tuple[str, ...]
    initializers: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Graph) -> _GraphBefore:
        nodes = tuple(graph)
        return cls(
            nodes,
            tuple(_names(node.inputs) for node in nodes),
            tuple(_names(node.outputs) for node in nodes),
            frozenset(value for node in nodes for value in node.outputs if value.type is not None),
            _names(graph.outputs),
            frozenset(graph.initializers),
        )


class Snapshot:
    """The wiring of a model before it is changed."""

    def __init__(self, model: ir.Model) -> None:
        self._graphs = {graph: _GraphBefore.of(graph) for graph in Dataflow(model).graphs}
        self._functions = {name: _serialize(ir.to_proto(function)) for name, function in model.functions.items()}
        self._opsets = dict(model.graph.opset_imports)
        self._ir_version = model.ir_version

    def undo(self, model: ir.Model) -> Undo | str:
        """How to make the changed model what it was; or, in words, what stands against it."""
        graphs: list[GraphUndo] = []
        for index, graph in enumerate(Dataflow(model).graphs):
            before = self._graphs.get(graph)
            if before is None:
                continue
            undo = _graph_undo(index, graph, before)
            if isinstance(undo, str):
                return undo
            if undo is not None:
                graphs.append(undo)
        now = {name: _serialize(ir.to_proto(function)) for name, function in model.functions.items()}
        functions = tuple(proto for name, proto in self._functions.items() if now.get(name) != proto)
        if any(_has_external_data(proto) for proto in map(onnx.FunctionProto.FromString, functions)):
            return "a function, which was removed, has external data"
        if sum(map(len, functions)) + sum(len(graph.nodes) for graph in graphs) > LIMIT:
            return "what was removed is too large to be kept"
        added = tuple(name for name in now if name not in self._functions)
        return Undo(self._ir_version, self._opsets, tuple(graphs), added, functions)


def apply(undo: Undo, model: ir.Model) -> None:
    """Make a model what it was before the change, in place.

    The undo may come from anywhere, and the model is as good as it is: check it afterwards.

    Raises:
        ValueError, LookupError: The model is not the one that the undo was made for, or no `Snapshot` made the undo.
    """
    flow = Dataflow(model)
    _check(undo, flow)
    changes = {change.graph: change for change in undo.graphs}
    values: dict[ir.Graph, dict[str, ir.Value]] = {}
    orders: list[tuple[ir.Graph, list[ir.Node]]] = []
    inserted: list[ir.Node] = []
    taken: set[ir.Node | None] = set()
    for index, graph in enumerate(flow.graphs):  # outer before inner, which uses the values of the outer
        change = changes.get(index) or GraphUndo(index, (), (), b"", (), _names(graph.outputs), ())
        nodes, owner = list(graph), flow.owner(graph)
        if owner in taken:  # a branch of what is taken out goes with it
            inserted += nodes
            taken.update(nodes)
            continue
        inserted += [nodes[i] for i in change.inserted]
        taken.update(inserted)
        taken_out = set(change.inserted)
        nodes = _merge([n for i, n in enumerate(nodes) if i not in taken_out], change)
        outer = values[owner.graph] if owner is not None and isinstance(owner.graph, ir.Graph) else {}
        kept = (value for name, value in graph.initializers.items() if name not in change.initializers)
        local = (*graph.inputs, *kept, *(output for node in nodes for output in node.outputs))
        values[graph] = outer | {value.name: value for value in local if value.name}
        _rewire(nodes, change, values[graph])
        graph.outputs[:] = [values[graph][name] for name in change.outputs]
        orders.append((graph, nodes))
    for node in inserted:
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
    for graph, nodes in orders:
        graph.remove(list(graph))
        graph.extend(nodes)
    for change in undo.graphs:
        for name in change.initializers:
            del flow.graphs[change.graph].initializers[name]
    for added in undo.added_functions:
        del model.functions[added]
    for proto in undo.functions:
        function = ir.from_proto(onnx.FunctionProto.FromString(proto))
        model.functions[function.identifier()] = function
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update(undo.opsets)
    model.ir_version = undo.ir_version


def _check(undo: Undo, flow: Dataflow) -> None:
    """What holds for every undo that a `Snapshot` makes."""
    places = [change.graph for change in undo.graphs]
    if len(set(places)) < len(places) or not all(0 <= place < len(flow.graphs) for place in places):
        raise ValueError("the undo names a graph that is not there, or one twice")
    for change in undo.graphs:
        now = len(list(flow.graphs[change.graph]))
        then = now - len(change.inserted) + len(change.removed)
        for indices, count in ((change.inserted, now), (change.removed, then)):
            if len(set(indices)) < len(indices) or not all(0 <= index < count for index in indices):
                raise ValueError("the undo names a node that is not there, or one twice")
        if _has_external_data(onnx.GraphProto.FromString(change.nodes)):
            raise ValueError("the undo has external data")
    if any(_has_external_data(onnx.FunctionProto.FromString(proto)) for proto in undo.functions):
        raise ValueError("the undo has external data")


def _has_external_data(message: Message) -> bool:
    """Whether a tensor anywhere in the message lies in another file: an undo keeps everything in itself."""
    if isinstance(message, onnx.TensorProto):
        return message.data_location == onnx.TensorProto.EXTERNAL or bool(message.external_data)
    fields = (content for field, content in message.ListFields() if field.type == FieldDescriptor.TYPE_MESSAGE)
    items = (item for content in fields for item in ((content,) if isinstance(content, Message) else content))
    return any(map(_has_external_data, items))


def _graph_undo(index: int, graph: ir.Graph, before: _GraphBefore) -> GraphUndo | str | None:
    now = list(graph)
    kept, known = set(now), set(before.nodes)
    removed = [i for i, node in enumerate(before.nodes) if node not in kept]
    container = onnx.GraphProto(name="removed")
    for i in removed:
        node = before.nodes[i]
        if reason := _too_much(node):
            return reason
        proto = ir.serde.serialize_node(node)  # to_proto tries every protocol first, which takes longer than the rest
        proto.input[:], proto.output[:] = before.inputs[i], before.results[i]
        container.node.append(proto)
        typed = (value for value in node.outputs if value.name and value in before.typed)
        container.value_info.extend(map(ir.serde.serialize_value, typed))
    undo = GraphUndo(
        graph=index,
        inserted=tuple(i for i, node in enumerate(now) if node not in known),
        removed=tuple(removed),
        nodes=_serialize(container),
        inputs=tuple(
            (i, place, name)
            for i, (node, names) in enumerate(zip(before.nodes, before.inputs, strict=True))
            if node in kept
            for place, (name, value) in enumerate(zip(names, _names(node.inputs), strict=True))
            if name != value
        ),
        outputs=before.outputs,
        initializers=tuple(name for name in graph.initializers if name not in before.initializers),
    )
    changed = undo.inserted or undo.removed or undo.inputs or undo.initializers
    return undo if changed or _names(graph.outputs) != before.outputs else None


def _too_much(node: ir.Node) -> str | None:
    if any(True for _ in subgraphs(node)):
        return f"{node.op_type} {node.name!r}, which was removed, has subgraphs"
    if any(isinstance(attribute.value, ir.ExternalTensor) for attribute in node.attributes.values()):
        return f"{node.op_type} {node.name!r}, which was removed, has external data"
    return None


def _merge(kept: Sequence[ir.Node], change: GraphUndo) -> list[ir.Node]:
    """The nodes of the original graph in their order."""
    proto = onnx.GraphProto.FromString(change.nodes)
    made = {name for node in proto.node for name in node.output}
    used = dict.fromkeys(name for node in proto.node for name in node.input if name and name not in made)
    proto.input.extend(onnx.ValueInfoProto(name=name) for name in used)
    removed = ir.from_proto(proto)
    restored = list(removed)
    removed.remove(restored)
    at = dict(zip(change.removed, restored, strict=True))
    rest = iter(kept)
    return [at[i] if i in at else next(rest) for i in range(len(kept) + len(at))]


def _rewire(nodes: Sequence[ir.Node], change: GraphUndo, values: Mapping[str, ir.Value]) -> None:
    """Connect the inputs of nodes with the values that have the name."""
    wanted = {(node, place): name for node, place, name in change.inputs}
    for index, node in enumerate(nodes):
        for place, value in enumerate(node.inputs):
            name = wanted.get((index, place), value.name if value is not None else None)
            if name:
                node.replace_input_with(place, values[name])
            elif value is not None:
                node.replace_input_with(place, None)


def _names(values: Sequence[ir.Value | None]) -> tuple[str, ...]:
    return tuple("" if value is None else value.name or "" for value in values)


def _tuple(values: Iterable[Any], kind: type[_T]) -> tuple[_T, ...]:
    result = tuple(values)
    if not all(type(value) is kind for value in result):
        raise ValueError(f"the undo has something else where {kind.__name__} belongs")
    return result


def _row(values: Any, *kinds: type) -> Any:
    """A row of a table, in JSON a list; one value of each kind."""
    if not isinstance(values, list) or [type(value) for value in values] != list(kinds):
        raise ValueError("the undo has a row that is none")
    return tuple(values)


_T = TypeVar("_T")


def _serialize(proto: onnx.GraphProto | onnx.FunctionProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


__all__ = ["GraphUndo", "Snapshot", "Undo", "apply"]
