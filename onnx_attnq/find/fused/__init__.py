"""Turns fused attention ops into standard ops, so that their softmax can be seen and rewritten.

One module per op; what they share is in `core` (the attention itself), `rotary`, `ms_mask`, `quantized_cache`,
`builder` (nodes for every opset from 11 on) and `node` (reading the fused node).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import onnx_ir as ir

from onnx_attnq.find.fused import attention, group_query_attention, ms_attention, multi_head_attention
from onnx_attnq.find.fused.builder import LOWEST_OPSET, FusedBuilder
from onnx_attnq.find.fused.outcome import Decline, Declined, Decomposed, FusedOp
from onnx_attnq.find.fused.refused import REFUSED_OPS, UNKNOWN
from onnx_attnq.graph import domain_and_op, standard_opset

_Build: TypeAlias = Callable[[FusedBuilder, ir.Node], tuple[ir.Node, Sequence[ir.Value | None]]]

_BUILDS: Final[Mapping[tuple[str, str], _Build]] = MappingProxyType(
    {
        ("", "Attention"): attention.build,
        ("com.microsoft", "Attention"): ms_attention.build,
        ("com.microsoft", "MultiHeadAttention"): multi_head_attention.build,
        ("com.microsoft", "GroupQueryAttention"): group_query_attention.build,
    }
)

FUSED_OPS: Final = frozenset(_BUILDS)
"""(domain, op type) of the ops that `decompose` understands."""


def is_fused_attention(node: ir.Node) -> bool:
    """True for every fused attention op: of `FUSED_OPS`, of `REFUSED_OPS`, or one that only its name gives away.

    >>> is_fused_attention(ir.node("Attention", [ir.val(name) for name in "qkv"]))
    True
    >>> is_fused_attention(ir.node("Softmax", [ir.val("scores")]))
    False
    """
    return domain_and_op(node) in FUSED_OPS or _refusal(node) is not None


def decompose(model: ir.Model, node: ir.Node) -> Decomposed | Declined:
    """Replaces a fused attention node, in its own graph, by standard ops of the model's opset.

    The outputs keep their names. What the node computes stays the same up to rounding: whatever is not
    known to is declined.

    Args:
        model: The model; its opset imports stay as they are.
        node: A node of its graph, of a subgraph, or of a function, for which `is_fused_attention`.

    Returns:
        `Decomposed`, or `Declined` with the graph untouched.

    >>> q, k, v = (ir.val(name, ir.DataType.FLOAT, (1, 2, 5, 8)) for name in "qkv")
    >>> node = ir.node("Attention", [q, k, v])
    >>> y = node.outputs[0]
    >>> y.name = "y"
    >>> graph = ir.Graph([q, k, v], [y], nodes=[node], opset_imports={"": 23}, name="g")
    >>> decompose(ir.Model(graph, ir_version=10), node).softmax.op_type
    'Softmax'
    >>> [n.op_type for n in graph if n.op_type != "Constant"]
    ['Transpose', 'MatMul', 'Mul', 'Softmax', 'MatMul']
    """
    build = _BUILDS.get(domain_and_op(node))
    if build is None:
        return Declined(f"{node.op_type} is not decomposed: {_refusal(node) or 'it is no fused attention'}")
    graph = node.graph
    opset = _opset(model, node)
    if graph is None or opset is None:
        return Declined(f"{node.op_type} is in no graph of the model, or the model imports no standard ops")
    if opset < LOWEST_OPSET:
        return Declined(f"{node.op_type} needs opset {LOWEST_OPSET} or higher, not {opset}; convert the model first")
    b = FusedBuilder(opset, node.outputs[0].name or node.op_type)
    try:
        softmax, computed = build(b, node)
        old, new = _outputs(b, node, computed)
    except Decline as declined:
        b.discard()
        return Declined(str(declined))
    b.drop_unused(new)
    results = tuple(new[old.index(output)] if output in old else None for output in node.outputs)
    fused = FusedOp(domain_and_op(node), tuple(node.inputs), results, dict(node.attributes))
    ir.convenience.replace_nodes_and_values(graph, node, [node], b.nodes, old, new)
    return Decomposed(softmax, fused)


def _refusal(node: ir.Node) -> str | None:
    if (reason := REFUSED_OPS.get(domain_and_op(node))) is not None:
        return reason
    domain, op_type = domain_and_op(node)
    new = domain in ("", "com.microsoft") and op_type.endswith("Attention") and (domain, op_type) not in FUSED_OPS
    return UNKNOWN if new else None


def _opset(model: ir.Model, node: ir.Node) -> int | None:
    """The version of the standard ops that counts where the node is."""
    if node.graph is not model.graph:
        for function in model.functions.values():
            if any(other is node for other in function.all_nodes()):
                return standard_opset(function.opset_imports)
    return standard_opset(model.opset_imports)


def _outputs(
    b: FusedBuilder, node: ir.Node, computed: Sequence[ir.Value | None]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """The node's outputs that have a name, and for each a value that nothing else is named by."""
    old, new = [], []
    for i, output in enumerate(node.outputs):
        if not output.name:
            continue
        value = computed[i] if i < len(computed) else None
        if value is None:
            raise Decline(f"{node.op_type} does not define the output {output.name!r} for these inputs")
        own = value.producer() is not None and value.producer() in b.nodes and value not in new
        old.append(output)
        new.append(value if own else b.Identity(value))
    return old, new


__all__ = ["FUSED_OPS", "REFUSED_OPS", "Declined", "Decomposed", "FusedOp", "decompose", "is_fused_attention"]
