"""Count the tokens of a step once for all attentions of a decoder, and not in each of them.

The standard ops of `group_query` compute positions, rows of the cache, masks and shapes from the number of tokens. If all
layers have that from one value, onnxruntime computes what follows from it once: some twenty nodes for each layer.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from onnx_attnq.graph import Dataflow, constant, dimension, known_op
from onnx_attnq.rewriting.group_query import TOKENS, is_group_query

_BY_TOKEN: Final = frozenset(
    {
        *("Cast", "Identity", "Sigmoid", "Tanh", "Relu", "Gelu", "FastGelu", "QuickGelu", "MatMulNBits"),
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)
"""Ops between the attentions of a decoder that give as many tokens as their first input has."""

_BROADCASTING: Final = frozenset({"Add", "Sub", "Mul", "Div"})


def share_tokens(model: ir.Model) -> None:
    """Give attentions that have as many tokens the same value for their number."""
    for graph in Dataflow(model).graphs:
        origins: dict[ir.Value, ir.Value] = {}
        first: dict[object, ir.Value] = {}
        for node in list(graph):
            origin = _origin(node, origins)
            if origin is not None:
                origins.update(dict.fromkeys(node.outputs, origin))
            if not is_group_query(node) or len(node.inputs) <= TOKENS:
                continue
            query, tokens = node.inputs[0], node.inputs[TOKENS]
            counter = None if tokens is None else tokens.producer()
            if query is None or tokens is None or counter is None:
                continue
            shared = first.setdefault(dimension(query, 1) or origins.get(query, query), tokens)
            if shared is not tokens:
                node.replace_input_with(TOKENS, shared)
                graph.remove(counter, safe=True)


def _origin(node: ir.Node, origins: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """The value that has as many tokens as what a node gives, and from which all such have theirs; None if unknown."""
    op_type = known_op(node)
    operands = [value for value in node.inputs if value is not None]
    if is_group_query(node) or op_type in _BY_TOKEN:
        operands = operands[:1]
    elif op_type in _BROADCASTING:
        operands = [value for value in operands if not _at_most_a_row(value)]
    elif op_type == "MatMul" and (weights := constant(operands[1])) is not None and len(weights.shape) == 2:
        operands = operands[:1]
    else:
        return None
    found = {origins.get(value, value) for value in operands}
    return found.pop() if len(found) == 1 else None


def _at_most_a_row(value: ir.Value) -> bool:
    """Whether a value is a constant that broadcasts to every token."""
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) < 2


__all__ = ["share_tokens"]
