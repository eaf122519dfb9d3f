"""Which fused ops stay as they are, because what would stand in their place is slower.

onnxruntime's fused ops are good: they keep no scores in memory. One op of the native library that does all that they
did is faster; a quantized softmax alone, between products that are standard ops, is slower (benchmarks/fused_ops.py
measures each of them). So a fused op is taken apart only where one kernel takes its whole place.
"""

from __future__ import annotations

from onnx_attnq.find import AttentionSite, Form, FusedOp, Sites
from onnx_attnq.rewriting.group_query import is_taken


def fused_op_of(sites: Sites, site: AttentionSite) -> FusedOp | None:
    """The fused op that a site comes from; None where the model has it in standard ops."""
    exposed = sites.exposed
    return next((fused for softmax, fused in exposed.fused.items() if exposed.origins[softmax].id == site.id), None)


def has_kernel(site: AttentionSite, fused: FusedOp) -> bool:
    """Whether one kernel of the native library does all that a fused op did."""
    return site.form is Form.ATTENTION or is_taken(fused)


def left_fused(sites: Sites) -> dict[str, str]:
    """For the id of each site of a fused op that no kernel replaces, the reason to leave it."""
    return {
        site.id: f"no kernel of the native library does all that this {fused.op_type} does, and standard ops would be "
        "slower; --rewrite-fused rewrites it all the same"
        for site in sites.sites
        if (fused := fused_op_of(sites, site)) is not None and not has_kernel(site, fused)
    }


__all__ = ["fused_op_of", "has_kernel", "left_fused"]
