"""Is a rewritten model what the rewrite makes of the original, node for node, and nothing else?

What a model says of itself is not to be believed, nor what it has beside its sites: so the original is rewritten once
more, as the record says, and the two are compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import onnx_ir as ir

from onnx_attnq.diff import Kind, diff_models
from onnx_attnq.errors import AttnqError, InvalidModel
from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.model import structure_hash
from onnx_attnq.rewriting import DOMAIN, Plan, Record, RewriteSettings, RewrittenSite, rewrite
from onnx_attnq.verification.same_weights import other_weights
from onnx_attnq.version import __version__


def other_than_rewritten(original: ir.Model, rewritten: ir.Model, record: Record) -> tuple[str, tuple[str, ...]]:
    """What a rewritten model has otherwise than the rewrite of the original.

    Args:
        original: The model before; not changed.
        rewritten: The model that is said to have come of it; not changed.
        record: What it says.

    Returns:
        The first difference of the graphs, a sentence that is empty where there is none; names of values and the order
        of nodes are no matter where graphs compute the same. And the names of weights that differ.

    Raises:
        InvalidModel: A file with weights is not what it was when the models were loaded.
    """
    wanted = structure_hash(rewritten)
    nearest = original
    try:
        for again, sites in _candidates(original, rewritten, record):
            if structure_hash(again) == wanted:
                moved = min((mine.id for mine in record.sites if mine not in sites), default=None)
                told = (
                    "" if moved is None else f"B says of its site {moved!r} what the rewrite of A does not make of it"
                )
                return told, other_weights(again, rewritten)
            nearest = again if nearest is original else nearest
        differences = diff_models(nearest, rewritten).differences
    except AttnqError as error:
        return f"B is not what the rewrite makes of A: {error}", other_weights(original, rewritten)
    weights = other_weights(nearest, rewritten)
    # A weight that is small enough is part of the graph, too.
    first = next((d for d in differences if not weights or d.kind is not Kind.CONSTANT), None)
    if first is None:
        return "", weights
    by = "" if record.version == __version__ else f" (version {record.version!r} wrote it, this is {__version__!r})"
    place = first.b or first.a
    at = f", at {place}" if place else ""
    return f"B is not what the rewrite makes of A{by}; rewrite A again: {first.message}{at}", weights


def _candidates(
    original: ir.Model, rewritten: ir.Model, record: Record
) -> Iterator[tuple[ir.Model, tuple[RewrittenSite, ...]]]:
    """The original, rewritten in each way that the record leaves open, the most likely one first; and its sites."""
    ids = {site.id for site in record.sites}
    int16 = any(node.domain == DOMAIN and node.attributes.get_int("qk", 0) for node in rewritten.graph.all_nodes())

    @functools.cache
    def left() -> frozenset[str]:
        return frozenset(site.id for site in find_sites(expose(original.clone())).sites) - ids

    for quantize_outputs in (False, True):
        settings = RewriteSettings(inline=record.inlined, quantize_outputs=quantize_outputs, int16_products=int16)
        # A fused op that is not rewritten stays as it is; or only where it could have been rewritten.
        for keep in (lambda site: site not in ids, lambda site: site in left()):
            model = original.clone()
            sites = find_sites(expose(model, keep))
            yield model, rewrite(model, sites, _plan(sites, record), settings).sites


def _plan(sites: Sites, record: Record) -> Plan:
    schemes = {site.id: site.scheme for site in record.sites}
    if missing := schemes.keys() - {site.id for site in sites.sites}:
        raise InvalidModel(f"A has no attention {min(missing)!r}")
    return Plan.giving(sites, schemes, "not in the record")


__all__ = ["other_than_rewritten"]
