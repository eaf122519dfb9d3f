"""Which values of a transformer are known to hold as many tokens, along axis 1 of (batch, tokens, width)."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from onnx_attnq.graph.constants import constant
from onnx_attnq.graph.ops import known_op
from onnx_attnq.graph.types import same_size

_BY_TOKEN: Final = frozenset(
    {
        *("Cast", "Identity", "Sigmoid", "Tanh", "Relu", "Gelu", "FastGelu", "QuickGelu", "MatMulNBits"),
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    }
)
"""Ops between the attentions of a decoder that give as many tokens as their first input has."""

_BROADCASTING: Final = frozenset({"Add", "Sub", "Mul", "Div"})


def token_operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """The inputs of a node that decide how many tokens it gives: as many as they have, if all have as many.

    Empty for ops of which that is not known.

    >>> x, bias = ir.val("x", ir.DataType.FLOAT, (1, 5, 8)), ir.val("b", const_value=ir.tensor([1.0, 2.0]))
    >>> [value.name for value in token_operands(ir.node("Add", [x, bias]))]
    ['x']
    >>> token_operands(ir.node("Transpose", [x]))
    ()
    """
    op_type = known_op(node)
    operands = tuple(value for value in node.inputs if value is not None)
    if op_type in _BROADCASTING:
        return tuple(value for value in operands if not _has_axes(value, 0, 1))
    if op_type in _BY_TOKEN or (op_type == "MatMul" and _has_axes(operands[1], 2)):
        return operands[:1]
    return ()


def same_tokens(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are known to hold as many: by their shapes, or as both are computed from the tokens of one."""
    return same_size(a, 1, b, 1) or _origin(a) is _origin(b)


def _origin(value: ir.Value) -> ir.Value:
    """The first value that the tokens of a value come from one by one."""
    while (node := value.producer()) is not None and len(operands := set(token_operands(node))) == 1:
        (value,) = operands
    return value


def _has_axes(value: ir.Value, *counts: int) -> bool:
    """Whether a value is a constant of so many axes."""
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) in counts


__all__ = ["same_tokens", "token_operands"]
