"""Finds where two graphs differ: walks both from their outputs at once, and only into what differs.

1. Values with the same expression hash are the same; the walk stops there.
2. Nodes that carry the same weight, in the same way, are pairs from the start.
3. A pair of nodes whose hashes differ is compared: attributes, operands one by one.
4. An operand pair that differs is followed to its producers when neither producer exists unchanged in
   the other model. When both do, the node at hand reads something else: its wiring changed.
5. When one side reads what the other reads through nodes that only it has, these were added or removed.
6. When the operators differ, the one replaces the other, with all that has no partner around them.
7. Readers of pairs are paired, when they are the same and there is no choice; so nodes behind what was replaced are.
8. Nodes that no output depends on are paired by likeness, and compared in the same way.
9. Nodes left without a partner were added, removed or replaced; those that are connected are one difference.

So one change gives one difference, at the node that was changed, and none at the nodes that depend on it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Final

import onnx_ir as ir

from onnx_attnq.diff.anchors import anchors, paired_readers
from onnx_attnq.diff.expression_hashes import Expressions
from onnx_attnq.diff.node_order import unused_constants
from onnx_attnq.diff.node_places import Places
from onnx_attnq.diff.onnx_text import (
    attributes_text,
    inputs_of,
    op_text,
    ordered_subgraphs,
    results,
    type_text,
)
from onnx_attnq.diff.regions import regions
from onnx_attnq.diff.result import Difference, Kind
from onnx_attnq.diff.tensor_content import ValueDifference, value_difference
from onnx_attnq.graph import constant

_INSERTED_AT_MOST: Final = 32
"""How many new nodes in a row are looked through for what the other model reads directly."""
_LAST: Final = 1 << 62
"""The depth of what is at no node."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A difference, and how far along the data flow it is."""

    depth: int
    difference: Difference


class Matching:
    """The comparison of a pair of graphs, or functions."""

    def __init__(self, a: Places, b: Places) -> None:
        self.a = a.expressions
        self.b = b.expressions
        self.places_a = a
        self.places_b = b
        self.found: list[Found] = []
        self.pair_a: dict[ir.Node, ir.Node] = {}
        self.pair_b: dict[ir.Node, ir.Node] = {}
        self._between: set[ir.Node] = set()
        self._pending: list[tuple[ir.Node, ir.Node]] = []
        self._replaced: list[tuple[ir.Node, ir.Node]] = []

    def run(self, outputs: list[tuple[str, ir.Value, ir.Value]]) -> list[Difference]:
        """All differences between the two graphs, along the data flow.

        Args:
            outputs: The outputs to start from: a name for messages, the value in A, the value in B.
        """
        for pair in anchors((self.a, self._all_fresh(self.a)), (self.b, self._all_fresh(self.b))):
            self._pair(*pair)
        self._follow()
        for name, value_a, value_b in outputs:
            self._operand(None, f"output {name}", value_a, value_b)
            self._follow()
        self._readers()
        self._unread()
        self._leftovers()
        self._unused(self.a.graph, self.b.graph, "")
        return [found.difference for found in sorted(self.found, key=lambda found: found.depth)]

    def _follow(self) -> None:
        while self._pending:
            self._compare(*self._pending.pop())

    def _pair(self, a: ir.Node, b: ir.Node) -> None:
        self.pair_a[a] = b
        self.pair_b[b] = a
        self._pending.append((a, b))

    def _compare(self, a: ir.Node, b: ir.Node) -> None:
        self._attributes(a, b)
        if [value is None for value in results(a)] != [value is None for value in results(b)]:
            self._report(Kind.WIRING, f"{len(results(a))} results became {len(results(b))}", a, b)
        for i, (value_a, value_b) in enumerate(zip_longest(inputs_of(a), inputs_of(b))):
            self._operand((a, b), f"operand {i}", value_a, value_b)

    def _attributes(self, a: ir.Node, b: ir.Node) -> None:
        texts_a, texts_b = attributes_text(a, self.a.graph_hash), attributes_text(b, self.b.graph_hash)
        graphs_a, graphs_b = dict(ordered_subgraphs(a)), dict(ordered_subgraphs(b))
        for name in sorted(graphs_a.keys() & graphs_b.keys()):
            self._subgraph(a, b, name, graphs_a[name], graphs_b[name])
        for name in sorted(texts_a.keys() | texts_b.keys()):
            has, other = texts_a.get(name, "nothing"), texts_b.get(name, "nothing")
            if has == other or (_is_graphs(a, name) and _is_graphs(b, name)):
                continue
            self._report(Kind.ATTRIBUTE, f"attribute {name} = {has} became {other}", a, b)

    def _subgraph(self, a: ir.Node, b: ir.Node, name: str, graph_a: ir.Graph, graph_b: ir.Graph) -> None:
        if self.a.graph_hash(graph_a) == self.b.graph_hash(graph_b):
            return
        for what, values_a, values_b in (
            ("input", graph_a.inputs, graph_b.inputs),
            ("output", graph_a.outputs, graph_b.outputs),
        ):
            types_a, types_b = ([type_text(value.type, value.shape) for value in side] for side in (values_a, values_b))
            for i, (type_a, type_b) in enumerate(zip_longest(types_a, types_b, fillvalue="nothing")):
                if type_a != type_b:
                    self._report(Kind.ATTRIBUTE, f"{what} {i} of {name}: {type_a} became {type_b}", a, b)
        for i, (value_a, value_b) in enumerate(zip(graph_a.outputs, graph_b.outputs, strict=False)):
            self._operand((a, b), f"output {i} of {name}", value_a, value_b)
        self._unused(graph_a, graph_b, f"{name} of ", a, b)

    def _operand(
        self, readers: tuple[ir.Node, ir.Node] | None, slot: str, a: ir.Value | None, b: ir.Value | None
    ) -> None:
        if self._same(a, b):
            return
        text_a = None if a is None else self.a.constants(a)
        text_b = None if b is None else self.b.constants(b)
        if a is not None and b is not None and text_a is not None and text_b is not None:
            self._constant(readers, slot, (a, text_a), (b, text_b))
            return
        fresh_a, fresh_b = self._fresh_producer(self.a, a), self._fresh_producer(self.b, b)
        if fresh_a is not None and fresh_b is not None:
            if a is not None and b is not None and a.index() != b.index() and op_text(fresh_a) == op_text(fresh_b):
                self._rewired(readers, slot, a, b)
            self._meet(*self._look_through(fresh_a, fresh_b))
        elif (
            fresh_b is not None and a is not None and self._reaches(self.b, fresh_b, lambda value: self._same(a, value))
        ):
            return  # B has nodes in between, which the leftovers report
        elif (
            fresh_a is not None and b is not None and self._reaches(self.a, fresh_a, lambda value: self._same(value, b))
        ):
            return
        else:
            self._rewired(readers, slot, a, b)

    def _same(self, a: ir.Value | None, b: ir.Value | None) -> bool:
        if a is None or b is None:
            return a is b
        if self.a.value_hash(a) == self.b.value_hash(b):
            return True
        producer_a, producer_b = self.a.producer(a), self.b.producer(b)
        if producer_a is None or producer_b is None:
            return False
        return self.pair_a.get(producer_a) is producer_b and a.index() == b.index()

    def _fresh_producer(self, side: Expressions, value: ir.Value | None) -> ir.Node | None:
        """The producer of a value, if it has no partner and no unpaired node of the other model computes the same."""
        node = side.producer(value)
        return node if node is not None and self._fresh(side, node) else None

    def _fresh(self, side: Expressions, node: ir.Node) -> bool:
        other, paired = (self.b, self.pair_a) if side is self.a else (self.a, self.pair_b)
        computed = side.node_hash[node]
        return node not in paired and side.count[computed] > other.count[computed]

    def _meet(self, a: ir.Node, b: ir.Node) -> None:
        """Two nodes in the same place: a pair when they are the same, else the one replaces the other."""
        if op_text(a) == op_text(b):
            self._pair(a, b)
        elif (a, b) not in self._replaced:
            self._replaced.append((a, b))
            self._between.update((a, b))
            for value_a, value_b in zip(inputs_of(a), inputs_of(b), strict=False):
                node_a, node_b = self._fresh_producer(self.a, value_a), self._fresh_producer(self.b, value_b)
                if node_a is not None and node_b is not None and self._alike(node_a, node_b):
                    self._pair(node_a, node_b)

    def _alike(self, a: ir.Node, b: ir.Node) -> bool:
        """Whether two nodes are the same operator on what is the same, or computed by the same operator."""
        pairs = list(zip(inputs_of(a), inputs_of(b), strict=False))
        producers = ((self.a.producer(x), self.b.producer(y)) for x, y in pairs)
        return op_text(a) == op_text(b) and (
            any(self._same(x, y) for x, y in pairs)
            or any(x is not None and y is not None and op_text(x) == op_text(y) for x, y in producers)
        )

    def _look_through(self, a: ir.Node, b: ir.Node) -> tuple[ir.Node, ir.Node]:
        """The pair to go on with when the operators differ, perhaps because one side has a node in between."""
        if op_text(a) == op_text(b):
            return a, b
        for node in self._fresh_cone(self.b, b):
            if self._alike(a, node):
                return a, node
        for node in self._fresh_cone(self.a, a):
            if self._alike(node, b):
                return node, b
        return a, b

    def _fresh_cone(self, side: Expressions, root: ir.Node) -> Iterator[ir.Node]:
        """The new nodes that a new node is computed from, nearest first."""
        seen = {root}
        queue = [root]
        while queue and len(seen) <= _INSERTED_AT_MOST:
            for value in inputs_of(queue.pop(0)):
                node = self._fresh_producer(side, value)
                if node is not None and node not in seen:
                    seen.add(node)
                    queue.append(node)
                    yield node

    def _reaches(self, side: Expressions, root: ir.Node, wanted: Callable[[ir.Value], bool]) -> bool:
        """Whether a new node, or a new one that it is computed from, reads what is wanted."""
        cone = [root, *self._fresh_cone(side, root)]
        if not any(value is not None and wanted(value) for node in cone for value in inputs_of(node)):
            return False
        self._between.update(cone)
        return True

    def _all_fresh(self, side: Expressions) -> list[ir.Node]:
        return [node for node in side.order.nodes if self._fresh(side, node)]

    def _readers(self) -> None:
        """Pair the readers of pairs, and compare them."""
        queue = list(self.pair_a)
        while queue:
            a = queue.pop()
            b = self.pair_a[a]
            before = len(self.pair_a)
            for pair in paired_readers(
                (self.a, a, lambda node: self._fresh(self.a, node)), (self.b, b, lambda node: self._fresh(self.b, node))
            ):
                if pair[0] not in self.pair_a and pair[1] not in self.pair_b:
                    self._pair(*pair)
                    self._follow()
            queue.extend(list(self.pair_a)[before:])

    def _unread(self) -> None:
        """Pair the nodes that no output depends on by likeness: operator first, then what they have in common."""
        spare = [node for node in self.b.order.unread if self._fresh(self.b, node)]
        for a in self.a.order.unread:
            alike = [b for b in spare if op_text(b) == op_text(a)] if self._fresh(self.a, a) else []
            if alike:
                b = max(alike, key=lambda b: self._likeness(a, b))
                spare.remove(b)
                self._pair(a, b)
                self._follow()

    def _likeness(self, a: ir.Node, b: ir.Node) -> tuple[int, int, int]:
        attributes_a, attributes_b = attributes_text(a, self.a.graph_hash), attributes_text(b, self.b.graph_hash)
        return (
            sum(self._same(x, y) for x, y in zip(inputs_of(a), inputs_of(b), strict=False)),
            len(attributes_a.items() & attributes_b.items()),
            [name for _, name in self.a.holders(a)] == [name for _, name in self.b.holders(b)],
        )

    def _leftovers(self) -> None:
        left_a = self._without_partner(self.a, self.b, self.pair_a)
        left_b = self._without_partner(self.b, self.a, self.pair_b)
        for region in regions((self.a, left_a), (self.b, left_b), self._replaced):
            depths = [side.depth[node] for side, nodes in ((self.a, region.a), (self.b, region.b)) for node in nodes]
            of_a, of_b = tuple(map(self.places_a.of, region.a)), tuple(map(self.places_b.of, region.b))
            first_a, first_b = next(iter(of_a), None), next(iter(of_b), None)
            found = Difference(region.kind, region.message, first_a, first_b, None, of_a[1:], of_b[1:])
            self.found.append(Found(min(depths), found))

    def _without_partner(
        self, side: Expressions, other: Expressions, paired: Mapping[ir.Node, ir.Node]
    ) -> list[ir.Node]:
        """The nodes that one model has and the other has not, along the data flow."""
        surplus = side.count - other.count
        surplus.subtract(side.node_hash[node] for node in paired)
        found = set()
        # Of several nodes that compute the same, those that were met are meant.
        for node in sorted(side.order.nodes, key=lambda node: node not in self._between):
            computed = side.node_hash[node]
            if surplus[computed] > 0 and node not in paired:
                surplus[computed] -= 1
                found.add(node)
        return [node for node in side.order.nodes if node in found]

    def _constant(
        self,
        readers: tuple[ir.Node, ir.Node] | None,
        slot: str,
        a: tuple[ir.Value, str],
        b: tuple[ir.Value, str],
    ) -> None:
        tensor_a, tensor_b = constant(a[0]), constant(b[0])
        values = None if tensor_a is None or tensor_b is None else value_difference(tensor_a, tensor_b)
        detail = "" if values is None else f": {values}"
        message = f"{slot}: constant {a[0].name!r} = {a[1]} became {b[1]}{detail}"
        self._report(Kind.CONSTANT, message, *(readers or (None, None)), values=values)

    def _rewired(
        self, readers: tuple[ir.Node, ir.Node] | None, slot: str, a: ir.Value | None, b: ir.Value | None
    ) -> None:
        names = (
            "nothing" if value is None else side.constants(value) or repr(value.name)
            for side, value in ((self.a, a), (self.b, b))
        )
        if readers is not None:
            self._report(Kind.WIRING, f"{slot}: {' became '.join(names)}", *readers)
        else:
            self._report(Kind.WIRING, f"{slot}: {' became '.join(names)}", self.a.producer(a), self.b.producer(b))

    def _unused(
        self,
        graph_a: ir.Graph | ir.Function,
        graph_b: ir.Graph | ir.Function,
        where: str,
        a: ir.Node | None = None,
        b: ir.Node | None = None,
    ) -> None:
        unused_a = Counter(unused_constants(graph_a, self.a.constants))
        unused_b = Counter(unused_constants(graph_b, self.b.constants))
        for text in sorted((unused_a - unused_b).elements()):
            self._report(Kind.CONSTANT, f"unused constant {text} of {where}the graph removed", a, b)
        for text in sorted((unused_b - unused_a).elements()):
            self._report(Kind.CONSTANT, f"unused constant {text} of {where}the graph added", a, b)

    def _report(
        self, kind: Kind, message: str, a: ir.Node | None, b: ir.Node | None, *, values: ValueDifference | None = None
    ) -> None:
        depths = [side.depth[node] for side, node in ((self.a, a), (self.b, b)) if node is not None]
        place_a = None if a is None else self.places_a.of(a)
        place_b = None if b is None else self.places_b.of(b)
        self.found.append(Found(min(depths, default=_LAST), Difference(kind, message, place_a, place_b, values)))


def _is_graphs(node: ir.Node, name: str) -> bool:
    attr = node.attributes.get(name)
    return attr is not None and attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attr.is_ref()


__all__ = ["Matching"]
