"""A choice of schemes as a plan, and as a rewritten model whose loss can be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import Plan, SitePlan, rewrite
from onnx_attnq.scheme import HeadSchemes
from onnx_attnq.tune.choice import Choice

NOT_TUNED = "not tuned: it is not in the main graph"


def plan_of(sites: Sites, choice: Choice) -> Plan:
    """The plan of a choice, with every site of the model: those that were not measured are left as they are."""
    entries = []
    for site in sites.sites:
        schemes, left = choice.schemes.get(site.id), choice.left.get(site.id, ())
        if schemes is None:
            entries.append(SitePlan(site.id, None, NOT_TUNED))
        elif len(left) == len(schemes):
            entries.append(SitePlan(site.id, None, "; ".join(f"head {head}: {reason}" for head, reason in left)))
        else:
            same = len(set(schemes)) == 1
            entries.append(SitePlan(site.id, schemes[0] if same else HeadSchemes(schemes), left=left))
    return Plan(sites.exposed.structure_hash, tuple(entries))


def untouched(sites: Sites, reason: str) -> Plan:
    """The plan that leaves every site as it is."""
    return Plan(sites.exposed.structure_hash, tuple(SitePlan(site.id, None, reason) for site in sites.sites))


def write_model(source: Path, output: Path, make: Callable[[Sites], Plan]) -> None:
    """Rewrite a model with a plan of its sites; what is not verified here is verified when the plan is applied."""
    model = load(source)
    sites = find_sites(expose(model))
    plan = make(sites)
    if any(entry.scheme is not None for entry in plan.sites):
        rewrite(model, sites, plan)
    save(model, output)


__all__ = ["plan_of", "untouched", "write_model"]
