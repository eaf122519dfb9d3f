"""Nodes without a partner, in regions: connected nodes were changed at once, and are one difference.

A node of A and a node of B are connected when the one was found in the place of the other; two nodes of a model when
one reads the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

import onnx_ir as ir

from onnx_attnq.diff.expression_hashes import Expressions
from onnx_attnq.diff.onnx_text import op_text, results
from onnx_attnq.diff.result import Kind

NAMED_AT_MOST: Final = 4
"""Operators that a message names on each side."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """Nodes that were removed from A, and those that B has in their place; both along the data flow.

    Attributes:
        a: Nodes of A.
        b: Nodes of B.
    """

    a: tuple[ir.Node, ...]
    b: tuple[ir.Node, ...]

    @property
    def kind(self) -> Kind:
        """What happened to it."""
        if not self.a:
            return Kind.ADDED
        if not self.b:
            return Kind.REMOVED
        return Kind.OPERATOR if len(self.a) == len(self.b) == 1 else Kind.REPLACED

    @property
    def message(self) -> str:
        """One line."""
        if not self.a or not self.b:
            return f"{_names(self.a or self.b)} {self.kind}"
        if self.kind is Kind.OPERATOR and op_text(self.a[0]) == op_text(self.b[0]):
            return f"{len(results(self.a[0]))} results became {len(results(self.b[0]))}"
        return f"{_names(self.a)} became {_names(self.b)}"


def regions(
    a: tuple[Expressions, Sequence[ir.Node]],
    b: tuple[Expressions, Sequence[ir.Node]],
    replaced: Iterable[tuple[ir.Node, ir.Node]],
) -> list[Region]:
    """The nodes without a partner, grouped by what is connected.

    Args:
        a: Model A, and its nodes without a partner, along the data flow.
        b: The same of B.
        replaced: Nodes of A and B that were found in the same place.
    """
    numbers: dict[ir.Node, int] = {}
    for _, nodes in (a, b):
        for node in nodes:
            numbers[node] = len(numbers)
    leader = list(range(len(numbers)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    def join(x: ir.Node, y: ir.Node) -> None:
        if x in numbers and y in numbers:
            leader[find(numbers[x])] = find(numbers[y])

    for side, nodes in (a, b):
        for node in nodes:
            for reader in side.readers[node]:
                join(node, reader)
    for pair in replaced:
        join(*pair)
    groups: dict[int, tuple[list[ir.Node], list[ir.Node]]] = {}
    for i, (_, nodes) in enumerate((a, b)):
        for node in nodes:
            groups.setdefault(find(numbers[node]), ([], []))[i].append(node)
    return [Region(tuple(of_a), tuple(of_b)) for of_a, of_b in groups.values()]


def _names(nodes: Sequence[ir.Node]) -> str:
    names = [op_text(node) for node in nodes]
    if len(names) > NAMED_AT_MOST:
        return f"{', '.join(names[: NAMED_AT_MOST - 1])}, … {names[-1]} ({len(names)} nodes)"
    return ", ".join(names)


__all__ = ["Region", "regions"]
