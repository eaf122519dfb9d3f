"""What an op is: its name counts only in the domains whose ops this package knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx
import onnx_ir as ir

KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")

OWN_DOMAIN = "onnx_attnq"
"""The domain of the ops that rewriting puts in."""

_IN_BOTH = frozenset({"Attention", "DequantizeLinear", "Gelu", "GridSample", "Pad", "QuantizeLinear", "Range"}) | {
    *("RotaryEmbedding", "Trilu", "Unique"),
}
"""Standard names that onnxruntime has in com.microsoft, too; it has no Mul or MatMul there."""


def known_op(node: ir.Node | None) -> str:
    """The op type of a node of ai.onnx or com.microsoft; "" of other domains, whose Mul may be anything, and for None.

    Nor is there a Mul in com.microsoft.

    >>> known_op(ir.node("Mul", [ir.val("a"), ir.val("b")])), known_op(ir.node("Mul", [ir.val("a")], domain="my.ops"))
    ('Mul', '')
    """
    if node is None or node.domain not in KNOWN_DOMAINS:
        return ""
    return "" if node.domain == "com.microsoft" and node.op_type in _standard_only() else node.op_type


def domain_and_op(node: ir.Node) -> tuple[str, str]:
    """What a node is, whatever its domain; the standard one is "" also where the model calls it ai.onnx.

    >>> domain_and_op(ir.node("Mul", [ir.val("a")], domain="ai.onnx"))
    ('', 'Mul')
    """
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


@functools.cache
def _standard_only() -> frozenset[str]:
    schemas = onnx.defs.get_all_schemas()
    return frozenset(schema.name for schema in schemas if not schema.domain) - _IN_BOTH


def standard_opset(imports: Mapping[str, int]) -> int | None:
    """The version of the standard ops among the opsets that a model or a function imports.

    >>> standard_opset({"ai.onnx": 17}), standard_opset({"my.ops": 1})
    (17, None)
    """
    return imports.get("", imports.get("ai.onnx"))


__all__ = ["KNOWN_DOMAINS", "OWN_DOMAIN", "known_op", "standard_opset"]
