"""What a plan does to each head: that of its own scheme, of the statistics that a study has of every scheme."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from onnx_attnq.errors import InvalidPlan
from onnx_attnq.rewriting import Plan, SitePlan
from onnx_attnq.scheme import HeadSchemes, QuantScheme, schemes_of
from onnx_attnq.study.conclusions import SAFE_ERROR, Head, named
from onnx_attnq.study.model_study import Study
from onnx_attnq.study.site_statistics import SiteStats


@dataclasses.dataclass(frozen=True)
class PlannedHead:
    """One head with what a plan gives it.

    Attributes:
        head: Which, with its error; 0 where it is left alone.
        scheme: Its own; None where it is left alone.
        pruned: How many of its values become 0.
        values: How many there are.
    """

    head: Head
    scheme: QuantScheme | None
    pruned: int
    values: int


@dataclasses.dataclass(frozen=True)
class PlanFinding:
    """What a plan does to a model.

    Attributes:
        heads: Every head that was observed, in the order of the graph.
        limit: The error up to which a head counts as safe.
    """

    heads: tuple[PlannedHead, ...]
    limit: float

    @property
    def pruned(self) -> float:
        """Share of all attention values that become 0."""
        return sum(own.pruned for own in self.heads) / max(1, sum(own.values for own in self.heads))

    @property
    def context_error(self) -> float:
        """Mean relative error of the context, mean over the heads that have one; NaN if none has."""
        known = [own.head.error for own in self.heads if not math.isnan(own.head.error)]
        return float(np.mean(known)) if known else math.nan

    @property
    def resisting(self) -> tuple[Head, ...]:
        """The heads whose error is above the limit, the worst first."""
        found = (own.head for own in self.heads if own.head.error > self.limit)
        return tuple(sorted(found, key=lambda head: -head.error))

    def __str__(self) -> str:
        """One line: "With the plan: 91% pruned, …"."""
        line = f"With the plan: {self.pruned:.0%} pruned, "
        if math.isnan(self.context_error):
            return f"{line}no context could be observed"
        error = f"context error {self.context_error:.2f}"
        return f"{line}{error}; heads that resist (> {self.limit:g}): {named(self.resisting)}"


def planned_schemes(plan: Plan) -> tuple[QuantScheme, ...]:
    """Every scheme that a plan gives to a head, once; a study that measures these can tell what the plan does."""
    given = (s for entry in plan.sites for head in range(_count(entry)) if (s := _scheme(entry, head)) is not None)
    return tuple(dict.fromkeys(given))


def plan_finding(study: Study, plan: Plan, limit: float = SAFE_ERROR) -> PlanFinding:
    """What a plan does, head by head.

    Args:
        study: Of the plan's model, with the `planned_schemes` among its own.
        plan: Has an entry for each site of the study.
        limit: The criterion for a safe head.

    Raises:
        InvalidPlan: A site has another number of heads.
    """
    entries = {entry.site: entry for entry in plan.sites}
    found = []
    for layer, site in enumerate(study.sites):
        entry = entries[site.site]
        if isinstance(entry.scheme, HeadSchemes) and _count(entry) != site.heads:
            raise InvalidPlan(
                f"site {site.site!r}: there are schemes for {_count(entry)} heads, and the site has {site.heads}"
            )
        found += [_head(layer, site, head, _scheme(entry, head)) for head in range(site.heads)]
    return PlanFinding(tuple(found), limit)


def _head(layer: int, site: SiteStats, head: int, scheme: QuantScheme | None) -> PlannedHead:
    values = int(site.values[head])
    if scheme is None:
        return PlannedHead(Head(layer, head, site.site, 0.0), None, 0, values)
    stats = site.of(scheme)
    error = float(stats.mean_context_error[head])
    return PlannedHead(Head(layer, head, site.site, error), scheme, int(stats.pruned[head]), values)


def _count(entry: SitePlan) -> int:
    return 0 if entry.scheme is None else len(schemes_of(entry.scheme))


def _scheme(entry: SitePlan, head: int) -> QuantScheme | None:
    """That of a head; None where it, or its whole site, is left alone."""
    if entry.scheme is None or head in dict(entry.left):
        return None
    return entry.scheme.heads[head] if isinstance(entry.scheme, HeadSchemes) else entry.scheme


__all__ = ["PlanFinding", "PlannedHead", "plan_finding", "planned_schemes"]
