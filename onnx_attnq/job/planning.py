"""What each attention of a model gets, which fused ops stay, and what becomes slower."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import onnx_ir as ir

from onnx_attnq.errors import AttnqError, NothingToRewrite
from onnx_attnq.find import LEFT_FUSED, Sites, expose, find_sites
from onnx_attnq.model import load
from onnx_attnq.rewriting import (
    Plan,
    RewriteSettings,
    fused_op_of,
    left_fused,
    refuse_rewritten,
    slower_because,
    uniform_plan,
)
from onnx_attnq.scheme import preset

SLOWER: Final = "1.2 to 5 times the time of most such ops"
"""Standard bodies of fused ops against these ops, as `python benchmarks/fused_ops.py` measures it."""


def planned(source: Path, rewriting: RewriteSettings, named: Path) -> tuple[ir.Model, ir.Model, Sites, Plan]:
    """The original; a copy in which attention that was hidden in functions and fused ops is exposed; its sites."""
    original = load(source)
    try:
        refuse_rewritten(original)
    except AttnqError as error:
        raise type(error)(f"{named}: {error}") from None
    work = original.clone()
    sites = find_sites(expose(work, keep=lambda site: bool(rewriting.keep_fused)))
    ids = [site.id for site in sites.sites]
    plan = rewriting.plan
    if plan is None:
        scheme = rewriting.scheme or preset()
        plan = uniform_plan(sites.exposed.structure_hash, ids, scheme, rewriting.include, rewriting.exclude)
        if chooses_fused(rewriting):
            stay = left_fused(sites, scheme)
            plan = plan.leaving({e.site: stay[e.site] for e in plan.sites if e.scheme and e.site in stay})
    else:
        plan.check(sites.exposed.structure_hash, ids)
    if not any(entry.scheme for entry in plan.sites) and not stays_fused(sites, plan):
        raise NothingToRewrite(f"{named}: {_why_nothing(sites)}")
    return original, work, sites, plan


def chooses_fused(rewriting: RewriteSettings) -> bool:
    """Whether it is left to us which fused ops stay: those that are faster as they are."""
    return rewriting.plan is None and rewriting.keep_fused is None and not rewriting.inline


def stays_fused(sites: Sites, plan: Plan) -> int:
    """How many attentions stay fused ops, because that was asked for or nothing faster is there."""
    asked = sum(rejection.reason == LEFT_FUSED for rejection in sites.rejections)
    left = {entry.site for entry in plan.sites if entry.scheme is None}
    return asked + sum(site.id in left and fused_op_of(sites, site) is not None for site in sites.sites)


def slower(sites: Sites, plan: Plan, rewriting: RewriteSettings, apart: Collection[str] = ()) -> tuple[str, ...]:
    """Where fused ops are rewritten into what is slower, a sentence each; ``apart`` are sites that no kernel took."""
    if rewriting.inline:
        return ()
    replaced = [
        slower_because(site, fused, scheme) is None and site.id not in apart
        for site in sites.sites
        if (scheme := plan.scheme_of(site.id)) is not None and (fused := fused_op_of(sites, site)) is not None
    ]
    found = []
    if not all(replaced):
        found.append(
            f"{replaced.count(False)} fused ops were taken apart that are faster as they were, also with the native "
            f"library; --keep-fused leaves them"
        )
    if any(replaced):
        found.append(
            f"where the native library is not registered, the standard bodies of {replaced.count(True)} fused ops run, "
            f"which is slower ({SLOWER}); --keep-fused leaves them"
        )
    return tuple(found)


def count_nodes(model: ir.Model) -> int:
    """Number of nodes that run, those of subgraphs too; a call of a function counts as the nodes of its body."""
    counted: dict[ir.OperatorIdentifier, int] = {}

    def count(nodes: Iterable[ir.Node]) -> int:
        return sum(body(node.op_identifier()) for node in nodes)

    def body(name: ir.OperatorIdentifier) -> int:
        if name not in model.functions:
            return 1
        if name not in counted:
            counted[name] = count(model.functions[name].all_nodes())
        return counted[name]

    return count(model.graph.all_nodes())


def _why_nothing(sites: Sites) -> str:
    if sites.sites:
        return "the plan leaves every site as it is"
    if sites.rejections:
        first = sites.rejections[0]
        return f"no attention found; {first.op_type} {first.node!r}: {first.reason}"
    return "no attention found: the model has no softmax"


__all__ = ["chooses_fused", "count_nodes", "planned", "slower"]
