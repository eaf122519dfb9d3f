"""Which values of a graph depend on run-time data, and how subgraphs are nested."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_attnq.graph.ops import standard_opset

# Their output says how large the data is, not what it is.
_SHAPE_ONLY = frozenset({"Shape", "Size"})


class Dataflow:
    """Answers questions about a model's values; valid until the model is changed.

    Subgraphs of If, Loop and Scan are followed: their inputs count as run-time data, and values of
    the graphs around them are what they are there.
    """

    def __init__(self, model: ir.Model) -> None:
        self._on_data: dict[ir.Value, bool] = {}
        self._owner: dict[ir.Graph, ir.Node] = {}
        self._scope: dict[ir.Graph, str] = {}
        self._by_scope: dict[str, ir.Graph] = {}
        self._graphs: list[ir.Graph] = []
        self.opset = standard_opset(model.graph.opset_imports)
        pending: list[tuple[ir.Graph, str]] = [(model.graph, "main")]
        while pending:
            graph, scope = pending.pop()
            path, number = scope, 1
            while scope in self._by_scope:  # two nodes may have one name
                number += 1
                scope = f"{path}#{number}"
            self._graphs.append(graph)
            self._scope[graph] = scope
            self._by_scope[scope] = graph
            inner: list[tuple[ir.Graph, str]] = []
            for node in graph:
                for name, subgraph in subgraphs(node):
                    self._owner[subgraph] = node
                    inner.append((subgraph, f"{scope}/{node.name or node.outputs[0].name or node.op_type}.{name}"))
            pending.extend(reversed(inner))

    @property
    def graphs(self) -> tuple[ir.Graph, ...]:
        """The main graph and every subgraph, outer before inner, in the order of their nodes."""
        return tuple(self._graphs)

    def owner(self, graph: ir.Graph) -> ir.Node | None:
        """The If, Loop or Scan node that a subgraph belongs to; None for the main graph."""
        return self._owner.get(graph)

    def scope(self, graph: ir.Graph) -> str:
        """``main``, or ``main/NODE.then_branch`` and so on for a subgraph; no two subgraphs have the same."""
        return self._scope[graph]

    def values_in(self, scope: str) -> dict[str, ir.Value]:
        """The values that a node in ``scope`` can use, by name; sibling subgraphs may use the same names."""
        graph = self._by_scope.get(scope)
        values: dict[str, ir.Value] = {}
        while graph is not None:
            local = [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]
            values = {value.name: value for value in local if value.name} | values
            owner = self.owner(graph)
            outer = None if owner is None else owner.graph
            graph = outer if isinstance(outer, ir.Graph) else None
        return values

    def loops_around(self, value: ir.Value) -> int:
        """How many Loop and Scan nodes a value is inside of."""
        count, graph = 0, value.graph
        while isinstance(graph, ir.Graph) and (owner := self.owner(graph)) is not None:
            count += owner.op_type != "If"
            graph = owner.graph
        return count

    def depends_on_data(self, value: ir.Value | None) -> bool:
        """False for initializers, constants, shapes, and whatever is computed from these alone."""
        if value is None:
            return False
        stack = [value]
        while stack:  # not recursive: graphs are deeper than Python's stack
            top = stack[-1]
            if top in self._on_data:
                stack.pop()
                continue
            node = top.producer()
            if node is None:
                self._on_data[top] = top.const_value is None and not top.is_initializer()
            elif node.op_type in _SHAPE_ONLY and node.domain == "":
                self._on_data[top] = False
            elif any(True for _ in subgraphs(node)):
                self._on_data[top] = True
            else:
                inputs = [i for i in node.inputs if i is not None]
                if unknown := [i for i in inputs if i not in self._on_data]:
                    stack.extend(unknown)
                    continue
                self._on_data[top] = any(self._on_data[i] for i in inputs)
            stack.pop()
        return self._on_data[value]


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The subgraphs of a control-flow node, with the names of their attributes."""
    for attribute in node.attributes.values():
        if attribute.is_ref():  # in a function: given by its call
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{attribute.name}[{index}]", graph
