"""Count the tokens of a step once for all attentions of a decoder, and not in each of them.

The standard ops of `group_query` compute positions, rows of the cache, masks and shapes from the number of tokens. If
all layers have that from one value, onnxruntime computes what follows from it once: some twenty nodes for each layer.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.graph import Dataflow, dimension, token_operands
from onnx_attnq.rewriting.group_query import TOKENS, is_group_query


def share_tokens(model: ir.Model) -> None:
    """Give attentions that have as many tokens the same value for their number."""
    for graph in Dataflow(model).graphs:
        origins: dict[ir.Value, ir.Value] = {}
        first: dict[object, ir.Value] = {}
        for node in list(graph):
            whole = is_group_query(node)
            operands = node.inputs[:1] if whole else token_operands(node)
            found = {origins.get(value, value) for value in operands if value is not None}
            if len(found) == 1:
                origins.update(dict.fromkeys(node.outputs[:1] if whole else node.outputs, found.pop()))
            if whole and len(node.inputs) > TOKENS:
                _share(node, origins, first)


def _share(node: ir.Node, origins: dict[ir.Value, ir.Value], first: dict[object, ir.Value]) -> None:
    """Let a node take the number that an earlier one takes, if both are known to be equal.

    Args:
        node: An attention.
        origins: For values, from which their tokens come one by one.
        first: By origin, and by the name that the model gives the axis, the number of tokens.
    """
    query, tokens = node.inputs[0], node.inputs[TOKENS]
    counter = None if tokens is None else tokens.producer()
    if query is None or tokens is None or counter is None or counter.graph is None:
        return
    keys = [key for key in (origins.get(query, query), dimension(query, 1)) if key is not None]
    shared = next((first[key] for key in keys if key in first), tokens)
    first |= dict.fromkeys(keys, shared)
    if shared is not tokens:
        node.replace_input_with(TOKENS, shared)
        counter.graph.remove(counter, safe=True)


__all__ = ["share_tokens"]
