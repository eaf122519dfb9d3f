"""What an op is: its name counts only in the domains whose ops this package knows."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")


def known_op(node: ir.Node | None) -> str:
    """The op type of a node of ai.onnx or com.microsoft; "" of other domains, whose Mul may be anything, and for None.

    >>> known_op(ir.node("Mul", [ir.val("a"), ir.val("b")])), known_op(ir.node("Mul", [ir.val("a")], domain="my.ops"))
    ('Mul', '')
    """
    return node.op_type if node is not None and node.domain in KNOWN_DOMAINS else ""


def standard_opset(imports: Mapping[str, int]) -> int | None:
    """The version of the standard ops among the opsets that a model or a function imports.

    >>> standard_opset({"ai.onnx": 17}), standard_opset({"my.ops": 1})
    (17, None)
    """
    return imports.get("", imports.get("ai.onnx"))


__all__ = ["KNOWN_DOMAINS", "known_op", "standard_opset"]
