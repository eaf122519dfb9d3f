"""What to do after a study: the scheme to take, the sites or heads to leave, and the command and plan for it."""

from __future__ import annotations

import dataclasses
import glob
import math
import shlex
from typing import Final

from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import Sites
from onnx_attnq.rewriting import Plan, SitePlan
from onnx_attnq.scheme import HeadSchemes, QuantScheme, left_alone, spell_scheme
from onnx_attnq.study.conclusions import SAFE_ERROR, Finding, findings
from onnx_attnq.study.model_study import Study
from onnx_attnq.study.resistance import resistances

MADE_UP: Final = "made-up inputs"
"""What the description of data begins with where there was none."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a study advises.

    Attributes:
        finding: Of the scheme to take.
        within_limit: Whether the scheme's mean error is within the limit; if not, it is only the best that was tried.
        excluded: Ids of the sites to leave as they are: those whose heads are beyond the limit on average.
        command: What to run, with the model's file name.
    """

    finding: Finding
    within_limit: bool
    excluded: tuple[str, ...]
    command: str


def verdict(study: Study, limit: float = SAFE_ERROR) -> Verdict | None:
    """The scheme with the fewest bits whose mean context error is within a limit, or the one with the lowest error.

    Args:
        study: Any study.
        limit: The criterion for a safe head, taken for the mean of all heads.

    Returns:
        None where no scheme with bits was measured, or no context could be observed.
    """
    known = [f for f in findings(study, limit) if f.scheme.bits is not None and not math.isnan(f.context_error)]
    if not known:
        return None
    fitting = [f for f in known if f.context_error <= limit]
    if fitting:
        best = min(fitting, key=lambda f: (f.scheme.bits, f.context_error))
    else:
        best = min(known, key=lambda f: f.context_error)
    beyond = []
    for site in study.sites:
        errors = [head.error for head in best.heads if head.site == site.site and not math.isnan(head.error)]
        if errors and sum(errors) / len(errors) > limit:
            beyond.append(site.site)
    excluded = tuple(beyond) if fitting else ()
    options = "".join(f" --exclude {shlex.quote(glob.escape(site))}" for site in excluded)
    command = f"onnx-attnq {shlex.quote(study.model)} --scheme {spell_scheme(best.scheme)}{options}"
    return Verdict(best, bool(fitting), excluded, command)


def advised_plan(study: Study, sites: Sites, limit: float = SAFE_ERROR) -> Plan:
    """The plan that a study advises: the scheme of its verdict, without the heads that resist it.

    It is finer than the command of the verdict, which leaves whole sites only.

    Args:
        study: Of the model.
        sites: Of the model: each gets an entry, also where it was not analyzed.
        limit: The criterion for a safe head.

    Raises:
        NothingToRewrite: The study advises nothing: no scheme with bits was measured, or no context was observed.
    """
    advice = verdict(study, limit)
    if advice is None:
        raise NothingToRewrite("there is nothing to advise: measure a scheme with bits, on sites whose context shows")
    scheme = advice.finding.scheme
    left: dict[str, list[tuple[int, str]]] = {}
    for resisting in resistances(study, advice.finding):
        reason = f"context error {resisting.head.error:.2f} beyond {limit:g}: {resisting.why}; {resisting.remedy}"
        left.setdefault(resisting.head.site, []).append((resisting.head.head, reason))
    heads = {site.site: site.heads for site in study.sites}
    return Plan(
        sites.exposed.structure_hash,
        tuple(
            _entry(site.id, scheme, heads.get(site.id), sorted(left.get(site.id, [])), study) for site in sites.sites
        ),
    )


def _entry(site: str, scheme: QuantScheme, heads: int | None, left: list[tuple[int, str]], study: Study) -> SitePlan:
    if heads is None:
        return SitePlan(site, None, f"not observed: {study.unobserved.get(site, 'left out of the analysis')}")
    if not left:
        return SitePlan(site, scheme)
    if len(left) == heads:
        return SitePlan(site, None, f"every head resists: {left[0][1]}")
    alone = {head for head, _ in left}
    schemes = tuple(left_alone(scheme) if head in alone else scheme for head in range(heads))
    return SitePlan(site, HeadSchemes(schemes), left=tuple(left))


def is_made_up(study: Study) -> bool:
    """Whether the samples, or some of them, were made up: then the numbers say nothing about real inputs."""
    return MADE_UP in study.data


def fewer_safe_with_less_error(found: tuple[Finding, ...]) -> tuple[Finding, Finding] | None:
    """Two schemes of the same bits of which the first has the smaller mean error, and yet fewer safe heads."""
    for a in found:
        for b in found:
            same = a.scheme.bits == b.scheme.bits and a.limit == b.limit
            if same and a.context_error < b.context_error and len(a.safe) < len(b.safe):
                return a, b
    return None


__all__ = ["MADE_UP", "Verdict", "advised_plan", "fewer_safe_with_less_error", "is_made_up", "verdict"]
