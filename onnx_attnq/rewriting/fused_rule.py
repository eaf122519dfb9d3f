"""Which fused ops stay as they are, because what would replace them is slower.

onnxruntime's fused ops are fast: they keep no scores in memory. One op of the native library that does all that they
did is faster; a quantized softmax alone, between products that are standard ops, is slower. So a fused op is
decomposed only where one kernel replaces all of it, without other work that costs more than that gains. All this is
measured by benchmarks/fused_ops.py; docs/decoders.md has the figures.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.find import AttentionSite, Form, FusedOp, Sites
from onnx_attnq.graph import FUSED_SIGNATURES
from onnx_attnq.rewriting.group_query import VARIANTS, is_group_query, is_taken
from onnx_attnq.rewriting.record import Record
from onnx_attnq.scheme import Pruned, SiteScheme, schemes_of


def fused_op_of(sites: Sites, site: AttentionSite) -> FusedOp | None:
    """The fused op that a site comes from; None where the model has it in standard ops."""
    exposed = sites.exposed
    return next((fused for softmax, fused in exposed.fused.items() if exposed.origins[softmax].id == site.id), None)


def whole_op(sites: Sites, site: AttentionSite) -> str | None:
    """The fused op whose whole place one op of the native library takes, whatever is in it; None if there is none."""
    fused = fused_op_of(sites, site)
    return fused.op_type if fused is not None and is_taken(fused) else None


def slower_because(site: AttentionSite, fused: FusedOp, scheme: SiteScheme) -> str | None:
    """Why a fused op is faster than what would replace it, with the native library; None where it is not."""
    if is_taken(fused):
        return None
    if site.form is not Form.ATTENTION:
        return f"the native library has no kernel for all that this {fused.op_type} does"
    cache = _cache(fused)
    if cache is not None and cache.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return f"the native library's kernel needs the cache of this {fused.op_type} in float32 at every step"
    if cache is not None and any(one.pruned is Pruned.MEAN for one in schemes_of(scheme)):
        return f"at every step the shares of pruned values cost more than this {fused.op_type} takes"
    return None


def left_fused(sites: Sites, scheme: SiteScheme) -> dict[str, str]:
    """For the id of each site of a fused op that is faster as it is, the reason to leave it."""
    found = {}
    for site in sites.sites:
        fused = fused_op_of(sites, site)
        if fused is not None and (reason := slower_because(site, fused, scheme)) is not None:
            found[site.id] = f"it would become slower: {reason}; --rewrite-fused rewrites it all the same"
    return found


def left_for_want_of_names(model: ir.Model, sites: Sites, record: Record) -> dict[str, str]:
    """For the id of each site that became standard ops although a kernel does all of it, why: the model has more kinds
    of such ops than there are names for one op.
    """
    folded = {node.outputs[0].name for node in model.graph.all_nodes() if is_group_query(node)}
    apart = {entry.id for entry in record.sites if entry.output not in folded}
    found = {}
    for site in sites.sites:
        fused = fused_op_of(sites, site)
        if site.id in apart and fused is not None and is_taken(fused):
            found[site.id] = (
                f"it would become slower: the native library has names for {len(VARIANTS)} kinds of {fused.op_type} in "
                f"one model, and this is another; --rewrite-fused rewrites it all the same"
            )
    return found


def _cache(fused: FusedOp) -> ir.Value | None:
    """The past keys of an Attention, or all of the standard op's keys where their number differs from row to row."""
    if fused.op_type != "Attention":
        return None
    inputs = dict(zip((one.name for one in FUSED_SIGNATURES[fused.op].inputs), fused.inputs, strict=False))
    keys = inputs.get("K") if inputs.get("nonpad_kv_seqlen") is not None else None
    return inputs.get("past_key") or inputs.get("past") or keys


__all__ = ["fused_op_of", "left_for_want_of_names", "left_fused", "slower_because", "whole_op"]
