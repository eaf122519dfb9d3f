"""Inputs and outputs of the fused attention ops: one row for each op, used wherever such a node is read.

Names and places of inputs, attributes and ranks are those of the operators' texts (the ONNX standard; onnxruntime,
docs/ContribOperators.md). How an op is decomposed is a module in `find.fused`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import onnx_ir as ir

from onnx_attnq.graph.ops import domain_and_op

Shapes: TypeAlias = Sequence[tuple[int | None, ...] | None]
"""Shapes of a node's inputs or first outputs; None where unknown."""


class Holds(enum.Enum):
    """What an input other than query, key and value means."""

    VISIBLE = enum.auto()
    """1 for a key that may be attended to; with one axis, how many keys may be."""
    ADDED = enum.auto()
    """What is added to the scores."""
    MASK = enum.auto()
    """`VISIBLE` where it is boolean, else `ADDED`."""
    PAST = enum.auto()
    """Keys or values of earlier tokens."""
    PAST_LENGTH = enum.auto()
    """The number of earlier tokens."""
    LAST_KEY = enum.auto()
    """The index of the last key, for each batch entry."""
    TOTAL_LENGTH = enum.auto()
    """The greatest number of keys."""
    LENGTHS = enum.auto()
    """The number of valid rows, for each batch entry."""
    POSITIONS = enum.auto()
    """The positions of the tokens."""


class Mismatch(Exception):
    """Two sizes that should be equal."""

    def __init__(self, what: str, size: int, expected: int) -> None:
        super().__init__(f"{what} is {size}, not {expected}")
        self.gap = (size, expected)


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An input of a fused op.

    Attributes:
        name: Its name in the operator's text.
        ranks: The ranks that the op defines for it; empty where nothing depends on them.
        holds: What it tells the attention; None for query, key, value and what they are made of.
    """

    name: str
    ranks: tuple[int, ...] = ()
    holds: Holds | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FusedSignature:
    """A fused attention op.

    Attributes:
        inputs: In order.
        attributes: The names of those that are understood.
        output_ranks: Of the outputs, in order; None for the rank of the first input.
        shapes: For a node and the shapes of its inputs, those of its first outputs; None where onnx infers them. Raises
            `Mismatch`.
        buffers: Places of a past among the inputs and of its present among the outputs, where keys are written into
            the past, at the place that `Holds.LAST_KEY` tells, so that both may be the same memory. onnxruntime then
            takes several rows of several tokens only without a past.
    """

    inputs: tuple[Input, ...]
    attributes: frozenset[str] = frozenset()
    output_ranks: tuple[int | None, ...] = ()
    shapes: Callable[[ir.Node, Shapes], Shapes] | None = None
    buffers: tuple[tuple[int, int], ...] = ()


def signature_of(node: ir.Node) -> FusedSignature | None:
    """What is known about a node's op; None if it is no fused attention that is described.

    >>> signature_of(ir.node("Attention", [ir.val(name) for name in "qkv"])).inputs[3].name
    'attn_mask'
    >>> signature_of(ir.node("Attention", [ir.val("x")], domain="com.microsoft")).inputs[3].name
    'mask_index'
    """
    return FUSED_SIGNATURES.get(domain_and_op(node))


def input_holds(node: ir.Node, index: int) -> Holds | None:
    """What an input of a fused node tells the attention; None of other nodes and inputs."""
    signature = signature_of(node)
    return signature.inputs[index].holds if signature is not None and index < len(signature.inputs) else None


def _packed_attention(node: ir.Node, shapes: Shapes) -> Shapes:
    tokens, weights = shapes[0], shapes[1]
    if tokens is None or weights is None or len(tokens) != 3:
        return ()
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [])
    return ((*tokens[:2], sizes[2] if len(sizes) == 3 else None if weights[1] is None else weights[1] // 3),)


def _multi_head(node: ir.Node, shapes: Shapes) -> Shapes:
    query, value = shapes[0], shapes[2] if len(shapes) > 2 else None
    heads = node.attributes.get_int("num_heads", 0)
    if query is None or len(query) != 3 or query[2] is None or heads < 1:
        return ()
    for index in (6, 7):
        width = (value or query)[-1] if index == 7 and value is not None and len(value) == 3 else query[2]
        past = shapes[index] if len(shapes) > index else None
        _check_past(past, heads, None if width is None else width // heads)
    return ((*query[:2], value[2] if value is not None and len(value) == 3 else query[2]),)


def _grouped_query(node: ir.Node, shapes: Shapes) -> Shapes:
    query, key, past = shapes[0], shapes[1], shapes[3] if len(shapes) > 3 else None
    heads, groups = node.attributes.get_int("num_heads", 0), node.attributes.get_int("kv_num_heads", 0)
    width = query[2] if query is not None and len(query) == 3 else None
    if query is None or width is None or heads < 1:
        return ()
    head = width // (heads + (0 if key is not None else 2 * groups))
    _check_past(past, groups, head)
    return ((query[0], query[1], heads * head),)


def _check_past(past: tuple[int | None, ...] | None, heads: int, head: int | None) -> None:
    """A past is (batch, heads, length, size of a head)."""
    if past is None or len(past) != 4:
        return
    for what, size, expected in (("the past's number of heads", past[1], heads), ("a past head's size", past[3], head)):
        if size is not None and expected is not None and size != expected:
            raise Mismatch(what, size, expected)


_STANDARD: Final = FusedSignature(
    inputs=(
        Input("Q", (3, 4)),
        Input("K"),
        Input("V"),
        Input("attn_mask", (1, 2, 3, 4), Holds.MASK),
        Input("past_key", (4,), Holds.PAST),
        Input("past_value", (4,), Holds.PAST),
        Input("nonpad_kv_seqlen", (1,), Holds.LENGTHS),
    ),
    attributes=frozenset(
        {
            *("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"),
            *("softmax_precision", "left_window_size", "right_window_size"),
        }
    ),
    output_ranks=(None, 4, 4, 4),
)

_MICROSOFT: Final = FusedSignature(
    inputs=(
        Input("input", (3,)),
        Input("weights", (2,)),
        Input("bias", (1,)),
        Input("mask_index", (1, 2, 3, 4), Holds.VISIBLE),
        Input("past", (5,), Holds.PAST),
        Input("attention_bias", (4,), Holds.ADDED),
        Input("past_sequence_length", holds=Holds.PAST_LENGTH),
    ),
    attributes=frozenset(
        {
            *("num_heads", "unidirectional", "mask_filter_value", "scale", "qkv_hidden_sizes"),
            *("past_present_share_buffer", "do_rotary", "rotary_embedding_dim"),
        }
    ),
    output_ranks=(3, 5),
    shapes=_packed_attention,
)

_MULTI_HEAD: Final = FusedSignature(
    inputs=(
        Input("query", (3, 5)),
        Input("key", (3, 4, 5)),
        Input("value", (3, 4)),
        Input("bias", (1,)),
        Input("key_padding_mask", (1, 2, 3), Holds.VISIBLE),
        Input("attention_bias", (4,), Holds.ADDED),
        Input("past_key", (4,), Holds.PAST),
        Input("past_value", (4,), Holds.PAST),
        Input("past_sequence_length", holds=Holds.PAST_LENGTH),
        Input("cache_indirection", (3,)),
    ),
    attributes=frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale"}),
    output_ranks=(3, 4, 4, 4),
    shapes=_multi_head,
)

_GROUPED_QUERY: Final = FusedSignature(
    inputs=(
        *(Input("query", (3,)), Input("key", (3,)), Input("value", (3,))),
        Input("past_key", (4,), Holds.PAST),
        Input("past_value", (4,), Holds.PAST),
        Input("seqlens_k", holds=Holds.LAST_KEY),
        Input("total_sequence_length", holds=Holds.TOTAL_LENGTH),
        *(Input("cos_cache", (2,)), Input("sin_cache", (2,))),
        Input("position_ids", (2,), Holds.POSITIONS),
        Input("attention_bias", (4,), Holds.ADDED),
        *(Input("head_sink", (1,)), Input("k_scale"), Input("v_scale"), Input("q_norm_weight"), Input("k_norm_weight")),
        Input("query_seqlens", (1,), Holds.LENGTHS),
    ),
    attributes=frozenset(
        {
            *("num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved"),
            *("local_window_size", "smooth_softmax", "qk_output", "causal", "sliding_window_cache"),
            *("k_quant_type", "v_quant_type", "kv_cache_bit_width"),
            *("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon"),
        }
    ),
    output_ranks=(3, 4, 4, 4),
    shapes=_grouped_query,
    buffers=((3, 1), (4, 2)),
)

# Not decomposed, but models that hold it are run as they are.
_DECODER_MASKED: Final = FusedSignature(
    inputs=(
        *(Input("query", (3,)), Input("key"), Input("value")),
        Input("mask_index", (2,), Holds.VISIBLE),
        Input("attention_bias", (4,), Holds.ADDED),
        Input("past_key", (4,), Holds.PAST),
        Input("past_value", (4,), Holds.PAST),
        Input("past_sequence_length", holds=Holds.PAST_LENGTH),
        *(Input("beam_width"), Input("cache_indirection"), Input("bias")),
    ),
    output_ranks=(3, 4, 4, 4),
)

FUSED_SIGNATURES: Final[Mapping[tuple[str, str], FusedSignature]] = MappingProxyType(
    {
        ("", "Attention"): _STANDARD,
        ("com.microsoft", "Attention"): _MICROSOFT,
        ("com.microsoft", "MultiHeadAttention"): _MULTI_HEAD,
        ("com.microsoft", "GroupQueryAttention"): _GROUPED_QUERY,
        ("com.microsoft", "DecoderMaskedMultiHeadAttention"): _DECODER_MASKED,
    }
)
"""By domain and op type."""

__all__ = ["FUSED_SIGNATURES", "FusedSignature", "Holds", "Input", "Mismatch", "Shapes", "input_holds", "signature_of"]
