"""The nodes of a graph in an order that depends on what is computed only, not on names or on the file.

Inputs of nodes and outputs of graphs are ordered, so a depth-first walk from the outputs visits the nodes
in one possible order. A node's subgraphs are walked as further operands of it: their nodes are part of
the same walk, and what they capture from outer graphs needs no special case. Only nodes that no output
depends on need more: they are ordered by what they compute and by who reads them.

Constants (initializers and Constant nodes) are contents, not nodes: see `content.constant`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir as ir

from onnx_attnq.diff.onnx_text import ConstantTexts, call_text, inputs_of, ordered_subgraphs, results
from onnx_attnq.errors import InvalidModel
from onnx_attnq.graph import constant


@dataclasses.dataclass(frozen=True, slots=True)
class NodeOrder:
    """The nodes of a graph and of all graphs inside it.

    Attributes:
        nodes: Producers first, in canonical order; without Constant nodes.
        owner: For each node of a subgraph the node that holds the subgraph, and the attribute.
        unread: Nodes whose results are neither read nor an output, in the order of `nodes`.
    """

    nodes: tuple[ir.Node, ...]
    owner: Mapping[ir.Node, tuple[ir.Node, str]]
    unread: tuple[ir.Node, ...]


def node_order(graph: ir.Graph | ir.Function, constants: ConstantTexts) -> NodeOrder:
    """Order the nodes of a graph or function. Time and memory grow with the number of nodes and operands.

    Raises:
        InvalidModel: The nodes form a cycle.
    """
    members, owner = _members(graph)
    order = _Walk()
    order.visit(graph.outputs)
    dead = [node for node in members if node not in order.seen]
    unread: list[ir.Node] = []
    if dead:
        start = len(order.nodes)
        _Dead(order, constants, owner, dead, _arguments(graph, members)).order_all()
        read = {value for node in members for value in dependencies(node)}
        unread = [node for node in order.nodes[start:] if not any(value in read for value in node.outputs)]
    return NodeOrder(tuple(order.nodes), owner, tuple(unread))


def dependencies(node: ir.Node) -> list[ir.Value]:
    """What must be there before a node can run: its operands, then the outputs of its subgraphs."""
    needed = [value for value in inputs_of(node) if value is not None]
    for _, graph in ordered_subgraphs(node):
        needed.extend(graph.outputs)
    return needed


def unused_constants(graph: ir.Graph | ir.Function, constants: ConstantTexts) -> list[str]:
    """The texts, sorted, of constants of this graph (not of its subgraphs) that nothing reads."""
    values = [] if isinstance(graph, ir.Function) else list(graph.initializers.values())
    values += [node.outputs[0] for node in graph if node.op_type == "Constant"]
    outputs = set(graph.outputs)
    unused = [value for value in values if value not in outputs and not value.uses()]
    return sorted(text for value in unused if (text := constants(value)) is not None)


def _members(graph: ir.Graph | ir.Function) -> tuple[list[ir.Node], dict[ir.Node, tuple[ir.Node, str]]]:
    """Every node at every depth, without constants, and which node's attribute holds it."""
    members: list[ir.Node] = []
    owner: dict[ir.Node, tuple[ir.Node, str]] = {}
    pending: list[tuple[Iterable[ir.Node], tuple[ir.Node, str] | None]] = [(graph, None)]
    while pending:
        nodes, holder = pending.pop()
        for node in nodes:
            if node.op_type == "Constant" and node.outputs and constant(node.outputs[0]) is not None:
                continue
            members.append(node)
            if holder is not None:
                owner[node] = holder
            pending.extend((inner, (node, name)) for name, inner in ordered_subgraphs(node))
    return members, owner


def _arguments(graph: ir.Graph | ir.Function, members: Iterable[ir.Node]) -> dict[ir.Value, str]:
    """What the inputs of functions and subgraphs are called: their position, since their names do not matter."""
    arguments: dict[ir.Value, str] = {}
    if isinstance(graph, ir.Function):
        arguments.update((value, f"input {i}") for i, value in enumerate(graph.inputs))
    for node in members:
        for name, inner in ordered_subgraphs(node):
            arguments.update((value, f"{name} {i}") for i, value in enumerate(inner.inputs))
    return arguments


class _Walk:
    """A depth-first walk against the data flow, with its own stack: graphs are deeper than Python's."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.seen: dict[ir.Node, bool] = {}  # False while a node's operands are being visited

    def visit(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            if constant(value) is None and (node := value.producer()) is not None:
                self.visit_node(node)

    def visit_node(self, root: ir.Node) -> None:
        if root in self.seen:
            return
        self.seen[root] = False
        stack: list[tuple[ir.Node, Iterator[ir.Value]]] = [(root, iter(dependencies(root)))]
        while stack:
            node, pending = stack[-1]
            for value in pending:
                producer = value.producer()
                if producer is None or self.seen.get(producer) or constant(value) is not None:
                    continue
                if producer in self.seen:
                    raise InvalidModel(f"node {producer.name!r} ({producer.op_type}) reads its own result")
                self.seen[producer] = False
                stack.append((producer, iter(dependencies(producer))))
                break
            else:
                stack.pop()
                self.seen[node] = True
                self.nodes.append(node)


class _Dead:
    """The order of nodes that no output depends on.

    Each gets a colour: a hash of what it computes, refined by the colours of those that read it, until
    no colour splits further (Weisfeiler-Leman refinement). Nodes that are not read are walked in the
    order of their colours; where two have the same, one is walked and the rest coloured again, so that
    nodes that share an operand with it are told from those that do not.
    """

    def __init__(
        self,
        order: _Walk,
        constants: ConstantTexts,
        owner: Mapping[ir.Node, tuple[ir.Node, str]],
        dead: list[ir.Node],
        arguments: Mapping[ir.Value, str],
    ) -> None:
        self.order = order
        self.constants = constants
        self.owner = owner
        self.arguments = arguments
        walk = _Walk()
        walk.seen.update(order.seen)
        for node in dead:
            walk.visit_node(node)
        self.dead = walk.nodes  # producers first
        self.readers: dict[ir.Node, list[tuple[ir.Node, int]]] = defaultdict(list)
        for node in self.dead:
            for position, value in enumerate(dependencies(node)):
                if (producer := value.producer()) is not None:
                    self.readers[producer].append((node, position))

    def order_all(self) -> None:
        roots = [node for node in self.dead if node not in self.readers]
        while roots:
            colour = self._colours()
            roots.sort(key=lambda node: colour[node])
            times = Counter(colour[node] for node in roots)
            while roots:
                root = roots.pop(0)
                self.order.visit_node(root)
                if times[colour[root]] > 1:
                    break
            roots = [node for node in roots if node not in self.order.seen]

    def _colours(self) -> dict[ir.Node, str]:
        number = {node: str(i) for i, node in enumerate(self.order.nodes)}
        colour: dict[ir.Node, str] = dict.fromkeys(self.dead, "") | number
        classes = 0
        while True:
            for node in self.dead:
                if node not in number:
                    text = call_text(node, lambda value: self._operand(value, colour), lambda g: self._body(g, colour))
                    colour[node] = _hash(text, str(len(results(node))), colour[node])
            for node in reversed(self.dead):
                if node not in number:
                    readers = sorted(f"{colour[reader]} {position}" for reader, position in self.readers[node])
                    holder, attribute = self.owner.get(node, (None, ""))
                    place = [] if holder is None else [colour.get(holder, "live"), attribute]
                    colour[node] = _hash(colour[node], *place, *readers)
            if len(set(colour.values())) == classes:
                return colour
            classes = len(set(colour.values()))

    def _operand(self, value: ir.Value, colour: Mapping[ir.Node, str]) -> str:
        if (text := self.constants(value)) is not None:
            return text
        producer = value.producer()
        if producer is not None:
            return f"{colour[producer]}.{producer.outputs.index(value)}"
        return self.arguments.get(value) or f"input {value.name}"

    def _body(self, graph: ir.Graph, colour: Mapping[ir.Node, str]) -> str:
        return " ".join(self._operand(value, colour) for value in graph.outputs)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


__all__ = ["NodeOrder", "dependencies", "node_order", "unused_constants"]
