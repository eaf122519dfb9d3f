"""Shapes of what onnxruntime's own ops give, which onnx's inference does not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import onnx_ir as ir

from onnx_attnq.graph import FUSED_SIGNATURES, Shapes


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """How an op's output shapes follow from those of its inputs.

    Attributes:
        outputs: For a node and the shapes of its inputs, those of its first outputs; None where unknown.
        standard_too: Whether the op counts in the standard domain, too, as onnxruntime has some there.
    """

    outputs: Callable[[ir.Node, Shapes], Shapes]
    standard_too: bool = False


def _same(node: ir.Node, shapes: Shapes) -> Shapes:
    return shapes[:1]


def _skip(node: ir.Node, shapes: Shapes) -> Shapes:
    return shapes[0], None, None, shapes[0]


def _product(columns: str | int) -> Callable[[ir.Node, Shapes], Shapes]:
    """A product with weights whose columns are an attribute, or the last axis of an input."""

    def outputs(node: ir.Node, shapes: Shapes) -> Shapes:
        if isinstance(columns, str):
            width: int | None = node.attributes.get_int(columns, 0) or None
        else:
            weights = shapes[columns]
            width = None if weights is None else weights[-1]
        return (None if shapes[0] is None else (*shapes[0][:-1], width),)

    return outputs


def _embedding(node: ir.Node, shapes: Shapes) -> Shapes:
    ids, table = shapes[0], shapes[2]
    return (None if ids is None or table is None else (*ids, table[-1]),)


FUSED_OUTPUTS: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "RotaryEmbedding"), Rule(_same)),
        "SimplifiedLayerNormalization": Rule(_same, standard_too=True),
        "SkipLayerNormalization": Rule(_skip),
        "SkipSimplifiedLayerNormalization": Rule(_skip),
        "MatMulNBits": Rule(_product("N")),
        "DynamicQuantizeMatMul": Rule(_product(1)),
        "MatMulIntegerToFloat": Rule(_product(1)),
        "EmbedLayerNormalization": Rule(_embedding),
        **{op_type: Rule(known.shapes) for (_, op_type), known in FUSED_SIGNATURES.items() if known.shapes is not None},
    }
)
"""By the op's name, in onnxruntime's domain."""

__all__ = ["FUSED_OUTPUTS", "Rule"]
