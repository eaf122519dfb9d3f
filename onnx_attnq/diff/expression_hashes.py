"""For every value of a graph a hash of the expression that computes it, from the inputs on.

Two values, in one model or in two, have the same hash exactly when the same operators with the same
attributes and constants compute them from the same inputs, whatever their names are.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping

import onnx_ir as ir

from onnx_attnq.diff.node_order import NodeOrder, dependencies, node_order, unused_constants
from onnx_attnq.diff.onnx_text import ConstantTexts, call_text, ordered_subgraphs, results, type_text
from onnx_attnq.errors import InvalidModel


class Expressions:
    """The hashes of one graph or function with its subgraphs.

    Attributes:
        graph: The graph or function.
        order: Its nodes.
        constants: The texts of its constants.
        node_hash: For each node the hash of what it computes.
        count: How many nodes have a hash.
        depth: For each node the length of the longest path from an input or constant to it, from 1.
        readers: For each node those that read it.
    """

    def __init__(self, graph: ir.Graph | ir.Function, constants: ConstantTexts, inputs: Mapping[ir.Value, str]) -> None:
        """Hash a graph whose inputs have the given identities."""
        self.graph = graph
        self.constants = constants
        self.order: NodeOrder = node_order(graph, constants)
        self.node_hash: dict[ir.Node, str] = {}
        self.depth: dict[ir.Node, int] = {}
        self.readers: dict[ir.Node, list[ir.Node]] = defaultdict(list)
        self._values: dict[ir.Value, str] = {value: f"input {identity}" for value, identity in inputs.items()}
        self._graphs: dict[ir.Graph, str] = {}
        for node in self.order.nodes:
            nesting = len(self.holders(node))
            for _, inner in ordered_subgraphs(node):
                self._values.update((value, f"argument {nesting} {i}") for i, value in enumerate(inner.inputs))
        for node in self.order.nodes:
            self._add(node)
        self.count = Counter(self.node_hash.values())

    def value_hash(self, value: ir.Value) -> str:
        """The hash of a value; for a constant its text.

        Raises:
            InvalidModel: Nothing produces the value.
        """
        text = self.constants(value) or self._values.get(value)
        if text is None:
            raise InvalidModel(f"value {value.name!r} is read, but nothing produces it")
        return text

    def graph_hash(self, graph: ir.Graph) -> str:
        """The hash of a subgraph of one of the nodes."""
        return self._graphs[graph]

    def holders(self, node: ir.Node) -> list[tuple[ir.Node, str]]:
        """The nodes and attributes that a node is nested in, innermost first."""
        found: list[tuple[ir.Node, str]] = []
        while (holder := self.order.owner.get(node)) is not None:
            found.append(holder)
            node = holder[0]
        return found

    def _add(self, node: ir.Node) -> None:
        for _, inner in ordered_subgraphs(node):
            self._graphs[inner] = self._hash_graph(inner)
        wanted = " ".join("-" if value is None else "+" for value in results(node))
        self.node_hash[node] = _hash(call_text(node, self.value_hash, self.graph_hash), wanted)
        for i, value in enumerate(node.outputs):
            self._values[value] = f"{self.node_hash[node]}.{i}"
        producers = {producer for value in dependencies(node) if (producer := self.producer(value)) is not None}
        self.depth[node] = 1 + max((self.depth[producer] for producer in producers), default=0)
        for producer in producers:
            self.readers[producer].append(node)

    def producer(self, value: ir.Value | None) -> ir.Node | None:
        """The node that computes a value; None for inputs, constants and missing operands."""
        return None if value is None or self.constants(value) is not None else value.producer()

    def _hash_graph(self, graph: ir.Graph) -> str:
        """Of what a subgraph hands to its node. Nodes in it that nothing depends on are not part of that."""
        inputs = [type_text(value.type, value.shape) for value in graph.inputs]
        outputs = [f"{type_text(value.type, value.shape)} {self.value_hash(value)}" for value in graph.outputs]
        return _hash(*inputs, "=>", *outputs, "unused", *unused_constants(graph, self.constants))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


__all__ = ["Expressions"]
