"""Shapes of what onnxruntime's own ops give, of which onnx's inference knows nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import onnx_ir as ir

_Shapes: TypeAlias = Sequence[tuple[int | None, ...] | None]


class Mismatch(Exception):
    """Two sizes that should be equal."""

    def __init__(self, what: str, size: int, expected: int) -> None:
        super().__init__(f"{what} is {size}, not {expected}")
        self.gap = (size, expected)


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """How an op's output shapes follow from those of its inputs.

    Attributes:
        outputs: For a node and the shapes of its inputs, those of its first outputs; None where unknown.
        standard_too: Whether the op counts in the standard domain, too, as onnxruntime has some there.
    """

    outputs: Callable[[ir.Node, _Shapes], _Shapes]
    standard_too: bool = False


def _same(node: ir.Node, shapes: _Shapes) -> _Shapes:
    return shapes[:1]


def _skip(node: ir.Node, shapes: _Shapes) -> _Shapes:
    return shapes[0], None, None, shapes[0]


def _product(columns: str | int) -> Callable[[ir.Node, _Shapes], _Shapes]:
    """A product with weights whose columns are an attribute, or the last axis of an input."""

    def outputs(node: ir.Node, shapes: _Shapes) -> _Shapes:
        if isinstance(columns, str):
            width: int | None = node.attributes.get_int(columns, 0) or None
        else:
            weights = shapes[columns]
            width = None if weights is None else weights[-1]
        return (None if shapes[0] is None else (*shapes[0][:-1], width),)

    return outputs


def _grouped_query(node: ir.Node, shapes: _Shapes) -> _Shapes:
    query, key, past = shapes[0], shapes[1], shapes[3] if len(shapes) > 3 else None
    heads, groups = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    width = query[2] if query is not None and len(query) == 3 else None
    if query is None or width is None or heads < 1:
        return ()
    head = width // (heads + (0 if key is not None else 2 * groups))
    _check_past(past, groups, head)
    return ((query[0], query[1], heads * head),)


def _multi_head(node: ir.Node, shapes: _Shapes) -> _Shapes:
    query, value = shapes[0], shapes[2] if len(shapes) > 2 else None
    heads = node.attributes.get_int("num_heads", 0)
    if query is None or len(query) != 3 or query[2] is None or heads < 1:
        return ()
    for index in (6, 7):
        width = (value or query)[-1] if index == 7 and value is not None and len(value) == 3 else query[2]
        past = shapes[index] if len(shapes) > index else None
        _check_past(past, heads, None if width is None else width // heads)
    return ((*query[:2], value[2] if value is not None and len(value) == 3 else query[2]),)


def _packed_attention(node: ir.Node, shapes: _Shapes) -> _Shapes:
    tokens, weights = shapes[0], shapes[1]
    if tokens is None or weights is None or len(tokens) != 3:
        return ()
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [])
    return ((*tokens[:2], sizes[2] if len(sizes) == 3 else None if weights[1] is None else weights[1] // 3),)


def _embedding(node: ir.Node, shapes: _Shapes) -> _Shapes:
    ids, table = shapes[0], shapes[2]
    return (None if ids is None or table is None else (*ids, table[-1]),)


def _check_past(past: tuple[int | None, ...] | None, heads: int, head: int | None) -> None:
    """A past is (batch, heads, length, size of a head)."""
    if past is None or len(past) != 4:
        return
    for what, size, expected in (("the past's number of heads", past[1], heads), ("a past head's size", past[3], head)):
        if size is not None and expected is not None and size != expected:
            raise Mismatch(what, size, expected)


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
        "Attention": Rule(_packed_attention),
        "MultiHeadAttention": Rule(_multi_head),
        "GroupQueryAttention": Rule(_grouped_query),
    }
)
"""By the op's name, in onnxruntime's domain."""

__all__ = ["FUSED_OUTPUTS", "Mismatch", "Rule"]
