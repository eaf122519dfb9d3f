"""The fused attention ops that are left alone, and why."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_QUANTIZED: Final = "its scores are in integers; quantize the model after its attentions are rewritten"
_SPARSE: Final = "it attends to blocks of keys that standard ops cannot select; use the model's dense attention"
_PACKED: Final = "its tokens of all batch entries lie in one row; use a model without packed or paged inputs"
_SEARCH: Final = "it holds whole decoders as attributes; rewrite the decoder before a search is built around it"
_LINEAR: Final = "it has no softmax over scores, so there is nothing to quantize"
_DECODER: Final = "it changes its cache in place; use the model as it was before that optimization"
_PLUGIN: Final = "it is a TensorRT plugin without a definition in ONNX; export the model without it"

UNKNOWN: Final = "it is newer than this version of onnx-attnq; export the model with a plain attention"
"""The reason for an op of a domain we know whose name ends in Attention."""

_MICROSOFT: Final[Mapping[str, tuple[str, ...]]] = {
    _DECODER: ("DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "DecoderAttention"),
    _QUANTIZED: ("QAttention", "QOrderedAttention", "QOrderedLongformerAttention"),
    _SPARSE: ("SparseAttention", "DynamicSparseAttention", "SparsePagedAttention", "LongformerAttention"),
    _PACKED: ("PackedAttention", "PackedMultiHeadAttention", "PagedAttention"),
    _SEARCH: ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"),
    _LINEAR: ("LinearAttention",),
}

REFUSED_OPS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("", "LinearAttention"): _LINEAR,
        ("", "DisentangledAttention_TRT"): _PLUGIN,
        **{("com.microsoft", op_type): reason for reason, op_types in _MICROSOFT.items() for op_type in op_types},
    }
)
"""Why, by (domain, op type); what can be done instead is part of the reason."""

__all__ = ["REFUSED_OPS", "UNKNOWN"]
