"""Shows a node as its model has it: own names, the nodes it reads and those that read it."""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.diff.expression_hashes import Expressions
from onnx_attnq.diff.onnx_text import inputs_of, node_text, op_text, quote
from onnx_attnq.diff.result import Place


class Places:
    """The places of one graph or function."""

    def __init__(self, expressions: Expressions, context: int, function: str | None = None) -> None:
        """Show up to ``context`` lines before and after a node; ``function`` is the name of the function it is in."""
        self.expressions = expressions
        self._context = context
        self._function = function

    def of(self, node: ir.Node) -> Place:
        """The place of a node."""
        inside = tuple(f"{name} of node {node_name(holder)!r}" for holder, name in self.expressions.holders(node))
        if self._function is not None:
            inside = (*inside, f"function {self._function}")
        before: dict[ir.Node, None] = {}
        for value in inputs_of(node):
            producer = self.expressions.producer(value)
            if producer is not None:
                before[producer] = None
        after = self.expressions.readers[node]
        return Place(
            node_name(node),
            op_text(node),
            inside,
            self._line(node),
            tuple(self._line(other) for other in list(before)[: self._context]),
            tuple(self._line(other) for other in after[: self._context]),
        )

    def _line(self, node: ir.Node) -> str:
        return node_text(node, self._name, lambda _: "{...}")

    def _name(self, value: ir.Value) -> str:
        text = self.expressions.constants(value)
        if text is None or (" sha256:" in text and value.name):
            kind = "" if text is None else f"{text.partition(' ')[0]} "
            return f"{kind}{quote(value.name or '')}"
        return text


def node_name(node: ir.Node) -> str:
    """A node's name, or that of its first output where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else None) or f"({node.op_type})"


__all__ = ["Places", "node_name"]
