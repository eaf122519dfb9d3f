"""Pairs of nodes that are the same by what they are, wherever they are: found by their weights, and then by place.

The walk from the outputs ends at a region that was replaced, since the two sides read different things there. Behind
it, every node computes something else than in the other model; what still tells nodes apart are their weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from onnx_attnq.diff.expression_hashes import Expressions
from onnx_attnq.diff.onnx_text import call_text, inputs_of

Signature = tuple[str, ...]
"""Operator, attributes and constants of a node, and the attributes of other nodes that it is nested in."""


def signature(side: Expressions, node: ir.Node) -> Signature:
    """What a node is, whatever it reads."""
    own = call_text(node, lambda value: side.constants(value) or "?", lambda _: "{...}")
    return (own, *(name for _, name in side.holders(node)))


def anchors(
    a: tuple[Expressions, Iterable[ir.Node]], b: tuple[Expressions, Iterable[ir.Node]]
) -> list[tuple[ir.Node, ir.Node]]:
    """Nodes with a weight that no other node of their model has in the same way.

    Args:
        a: Model A, and its nodes that B does not have as they are.
        b: The same of B.
    """
    ours, theirs = (
        _unique((signature(side, node), node) for node in nodes if _has_weight(side, node)) for side, nodes in (a, b)
    )
    return [(node, theirs[key]) for key, node in ours.items() if key in theirs]


def paired_readers(
    a: tuple[Expressions, ir.Node, Callable[[ir.Node], bool]], b: tuple[Expressions, ir.Node, Callable[[ir.Node], bool]]
) -> list[tuple[ir.Node, ir.Node]]:
    """Of two nodes that are a pair the readers that are the same, and read them in the same way.

    Args:
        a: Model A, the node, and which readers have no partner yet.
        b: The same of B.
    """
    ours, theirs = (
        _unique(
            ((*signature(side, reader), *_slots(node, reader)), reader) for reader in side.readers[node] if free(reader)
        )
        for side, node, free in (a, b)
    )
    return [(reader, theirs[key]) for key, reader in ours.items() if key in theirs]


def _unique(found: Iterable[tuple[Signature, ir.Node]]) -> dict[Signature, ir.Node]:
    nodes: defaultdict[Signature, list[ir.Node]] = defaultdict(list)
    for key, node in found:
        nodes[key].append(node)
    return {key: same[0] for key, same in nodes.items() if len(same) == 1}


def _has_weight(side: Expressions, node: ir.Node) -> bool:
    texts = (side.constants(value) for value in inputs_of(node) if value is not None)
    return any(text is not None and " sha256:" in text for text in texts)


def _slots(node: ir.Node, reader: ir.Node) -> Iterator[str]:
    """Which results of a node are read, as which operands."""
    for i, value in enumerate(inputs_of(reader)):
        if value is not None and value.producer() is node:
            yield f"{value.index()} as {i}"


__all__ = ["anchors", "paired_readers", "signature"]
