"""Which fused ops stay as they are, because what would stand in their place is slower.

onnxruntime's fused ops are good: they keep no scores in memory. One op of the native library that does all that they
did is faster; a quantized softmax alone, between products that are standard ops, is slower. So a fused op is taken
apart only where one kernel takes its whole place, and that without what costs more than the kernel gains. All this is
measured by benchmarks/fused_ops.py; docs/decoders.md has the figures.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.find import AttentionSite, Form, FusedOp, Sites
from onnx_attnq.rewriting.group_query import is_taken


def fused_op_of(sites: Sites, site: AttentionSite) -> FusedOp | None:
    """The fused op that a site comes from; None where the model has it in standard ops."""
    exposed = sites.exposed
    return next((fused for softmax, fused in exposed.fused.items() if exposed.origins[softmax].id == site.id), None)


def slower_because(site: AttentionSite, fused: FusedOp) -> str | None:
    """Why a fused op is faster than what would stand in its place, with the native library; None where it is not."""
    if is_taken(fused):
        return None
    if site.form is not Form.ATTENTION:
        return f"the native library has no kernel for all that this {fused.op_type} does"
    if _has_half_cache(fused):
        return f"the native library's kernel needs the cache of this {fused.op_type} in float32 at every step"
    return None


def left_fused(sites: Sites) -> dict[str, str]:
    """For the id of each site of a fused op that is faster as it is, the reason to leave it."""
    return {
        site.id: f"{reason}, which would be slower; --rewrite-fused rewrites it all the same"
        for site in sites.sites
        if (fused := fused_op_of(sites, site)) is not None and (reason := slower_because(site, fused)) is not None
    }


def _has_half_cache(fused: FusedOp) -> bool:
    """Whether ai.onnx's Attention, the only one that onnxruntime runs in float16 on CPUs, has a past in float16."""
    past = fused.inputs[4] if fused.op_type == "Attention" and len(fused.inputs) > 4 else None
    return past is not None and past.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


__all__ = ["fused_op_of", "left_fused", "slower_because"]
