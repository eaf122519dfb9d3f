"""How to restore a graph after a change.

A `Snapshot` is taken before the change, and compared with the model after it. It does not depend on the purpose of
the change: it compares which nodes were removed, inserted and rewired. Removed nodes are kept whole; they are a few per
attention, without weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from onnx_attnq.graph.dataflow import Dataflow, subgraphs
from onnx_attnq.graph.undo_record import GraphUndo, Undo

LIMIT: Final = 2**20
"""Bytes of removed nodes and functions that are kept; beyond it, weights are among them."""

ORPHAN_LIMIT: Final = 2**12
"""Bytes of an initializer that goes with the nodes that used it: the undo keeps it, and repeats no weights."""


@dataclasses.dataclass(frozen=True)
class _GraphBefore:
    """The wiring of a graph, by names."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[tuple[str, ...], ...]
    results: tuple[tuple[str, ...], ...]
    typed: frozenset[ir.Value]
    outputs: tuple[str, ...]
    initializers: dict[str, ir.Value]
    used: frozenset[str]

    @classmethod
    def of(cls, graph: ir.Graph) -> _GraphBefore:
        nodes = tuple(graph)
        return cls(
            nodes,
            tuple(_names(node.inputs) for node in nodes),
            tuple(_names(node.outputs) for node in nodes),
            frozenset(value for node in nodes for value in node.outputs if value.type is not None),
            _names(graph.outputs),
            dict(graph.initializers),
            frozenset(name for name, value in graph.initializers.items() if value.uses()),
        )


class Snapshot:
    """The wiring of a model before it is changed."""

    def __init__(self, model: ir.Model) -> None:
        self._graphs = {graph: _GraphBefore.of(graph) for graph in Dataflow(model).graphs}
        self._functions = {name: _serialize(ir.to_proto(function)) for name, function in model.functions.items()}
        self._opsets = dict(model.graph.opset_imports)
        self._ir_version = model.ir_version

    def remove_orphans(self, model: ir.Model) -> None:
        """Remove the initializers that nothing uses since the change, except large ones.

        One that nothing used before stays, as does one that is an input or an output of its graph.
        """
        for graph in Dataflow(model).graphs:
            before = self._graphs.get(graph)
            for name, value in () if before is None else list(graph.initializers.items()):
                assert before is not None
                kept = value.uses() or value.is_graph_input() or value.is_graph_output()
                if name in before.used and not kept and _is_small(value.const_value):
                    del graph.initializers[name]

    def undo(self, model: ir.Model) -> Undo | str:
        """How to restore the original model; or a sentence that says why that is not possible."""
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
    """Restore a model to what it was before the change, in place.

    The undo may come from an untrusted file: check the model afterwards.

    Raises:
        ValueError, LookupError: The model is not the one that the undo was made for, or no `Snapshot` made the undo.
    """
    flow = Dataflow(model)
    _check(undo, flow)
    changes = {change.graph: change for change in undo.graphs}
    values: dict[ir.Graph, dict[str, ir.Value]] = {}
    initializers: dict[ir.Graph, list[ir.Value]] = {}
    orders: list[tuple[ir.Graph, list[ir.Node]]] = []
    inserted: list[ir.Node] = []
    taken: set[ir.Node | None] = set()
    for index, graph in enumerate(flow.graphs):  # outer before inner, which uses the values of the outer
        change = changes.get(index) or GraphUndo(index, (), (), b"", (), _names(graph.outputs), ())
        nodes, owner = list(graph), flow.owner(graph)
        if owner in taken:  # subgraphs of a removed node are removed with it
            inserted += nodes
            taken.update(nodes)
            continue
        inserted += [nodes[i] for i in change.inserted]
        taken.update(inserted)
        taken_out = set(change.inserted)
        nodes = _merge([n for i, n in enumerate(nodes) if i not in taken_out], change)
        outer = values[owner.graph] if owner is not None and isinstance(owner.graph, ir.Graph) else {}
        initializers[graph] = _initializers(graph, change)
        local = (*graph.inputs, *initializers[graph], *(output for node in nodes for output in node.outputs))
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
        if change.initializers or change.orphans:
            graph = flow.graphs[change.graph]
            graph.initializers.clear()
            for value in initializers.get(graph, ()):  # none where the graph is part of a removed node
                graph.register_initializer(value)
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
    graphs = [change.graph for change in undo.graphs]
    if len(set(graphs)) < len(graphs) or not all(0 <= graph < len(flow.graphs) for graph in graphs):
        raise ValueError("the undo names a graph that is not there, or one twice")
    for change in undo.graphs:
        now = len(list(flow.graphs[change.graph]))
        then = now - len(change.inserted) + len(change.removed)
        for indices, count in ((change.inserted, now), (change.removed, then)):
            if len(set(indices)) < len(indices) or not all(0 <= index < count for index in indices):
                raise ValueError("the undo names a node that is not there, or one twice")
        proto = onnx.GraphProto.FromString(change.nodes)
        if _has_external_data(proto):
            raise ValueError("the undo has external data")
        names = {tensor.name for tensor in proto.initializer}
        there = set(flow.graphs[change.graph].initializers)
        if len(set(change.initializers)) < len(change.initializers) or not there.issuperset(change.initializers):
            raise ValueError("the undo names an initializer that is not there, or one twice")
        there.difference_update(change.initializers)
        if len(names) < len(proto.initializer) or names & there:
            raise ValueError("the undo puts back an initializer that is there, or one twice")
        places = range(len(there) + len(names))
        if len(change.orphans) != len(names) or sorted({*change.orphans} & {*places}) != list(change.orphans):
            raise ValueError("the undo has no place for an initializer")
    if any(_has_external_data(onnx.FunctionProto.FromString(proto)) for proto in undo.functions):
        raise ValueError("the undo has external data")


def _has_external_data(message: Message) -> bool:
    """Whether a tensor anywhere in the message lies in another file: an undo keeps everything in itself."""
    if isinstance(message, onnx.TensorProto):
        return message.data_location == onnx.TensorProto.EXTERNAL or bool(message.external_data)
    fields = (content for field, content in message.ListFields() if field.type == FieldDescriptor.TYPE_MESSAGE)
    items = (item for content in fields for item in ((content,) if isinstance(content, Message) else content))
    return any(map(_has_external_data, items))


def _is_small(tensor: ir.TensorProtocol | None) -> bool:
    """Whether the undo can keep a tensor."""
    return tensor is not None and not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= ORPHAN_LIMIT


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
    orphans = [i for i, name in enumerate(before.initializers) if name not in graph.initializers]
    for i in orphans:
        name = list(before.initializers)[i]
        tensor = before.initializers[name].const_value
        if tensor is None or not _is_small(tensor):
            return f"initializer {name!r}, which was removed, is too large to be kept"
        container.initializer.append(ir.serde.serialize_tensor(tensor))
        container.initializer[-1].name = name
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
        orphans=tuple(orphans),
    )
    changed = undo.inserted or undo.removed or undo.inputs or undo.initializers or undo.orphans
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
    del proto.initializer[:]
    made = {name for node in proto.node for name in node.output}
    used = dict.fromkeys(name for node in proto.node for name in node.input if name and name not in made)
    proto.input.extend(onnx.ValueInfoProto(name=name) for name in used)
    removed = ir.from_proto(proto)
    restored = list(removed)
    removed.remove(restored)
    at = dict(zip(change.removed, restored, strict=True))
    rest = iter(kept)
    return [at[i] if i in at else next(rest) for i in range(len(kept) + len(at))]


def _initializers(graph: ir.Graph, change: GraphUndo) -> list[ir.Value]:
    """The initializers of the original graph in their order."""
    kept = [value for name, value in graph.initializers.items() if name not in change.initializers]
    for place, proto in zip(change.orphans, onnx.GraphProto.FromString(change.nodes).initializer, strict=True):
        tensor = ir.serde.deserialize_tensor(proto)
        value = ir.Value(
            name=proto.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
        )
        kept.insert(place, value)
    return kept


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


def _serialize(proto: onnx.GraphProto | onnx.FunctionProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


__all__ = ["Snapshot", "apply"]
