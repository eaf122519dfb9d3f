"""The numbers of a study as JSON and CSV; every head has every number of `metrics`."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np

from onnx_attnq.scheme import spell_scheme
from onnx_attnq.study import (
    EDGES,
    MAJORITIES,
    METRICS,
    SAFE_ERROR,
    SCHEME_METRICS,
    Finding,
    PlanFinding,
    SiteStats,
    Study,
    findings,
    resistances,
    scheme_label,
)


def study_json(study: Study, limit: float = SAFE_ERROR, plan: PlanFinding | None = None) -> dict[str, Any]:
    """The study as JSON values; what does not exist, such as the error of a context that was not observed, is null.

    Histograms have a bin below the first edge and one from the last edge on; see `statistics.EDGES`.

    Args:
        study: Any study.
        limit: The criterion for a safe head.
        plan: What a plan does, if there is one.
    """
    return {
        "model": {"name": study.model, "sha256": study.sha256},
        "data": {"description": study.data, "samples": study.samples, "tokens": study.tokens},
        "edges": EDGES.tolist(),
        "majorities": list(MAJORITIES),
        "criterion": {"safe": "context_error <= limit", "limit": limit},
        "schemes": [
            {"label": scheme_label(f.scheme), **f.scheme.to_json(), **_found(study, f)} for f in findings(study, limit)
        ],
        "sites": [_site_json(layer, site) for layer, site in enumerate(study.sites)],
        "unobserved": dict(study.unobserved),
        **({} if plan is None else {"plan": _planned(plan)}),
    }


def study_csv(study: Study) -> str:
    """A line for each head; the columns of a scheme begin with its label."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    schemes = [(scheme_label(scheme), scheme) for scheme in study.schemes]
    writer.writerow(
        ["layer", "site", "head"]
        + [metric.key for metric in METRICS]
        + [f"{label} {metric.key}" for label, _ in schemes for metric in SCHEME_METRICS]
    )
    for layer, site in enumerate(study.sites):
        columns = [metric.of(site) for metric in METRICS]
        columns += [metric.of(site.of(scheme)) for _, scheme in schemes for metric in SCHEME_METRICS]
        for head in range(site.heads):
            writer.writerow([layer, _text(site.site), head, *(_cell(column[head]) for column in columns)])
    return stream.getvalue()


def _text(name: str) -> str:
    """A name as a cell that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _found(study: Study, finding: Finding) -> dict[str, Any]:
    return {
        "pruned": _number(finding.pruned),
        "divergence": _number(finding.divergence),
        "context_error": _number(finding.context_error),
        "resisting_heads": [resisting.to_json() for resisting in resistances(study, finding)],
        "safe_heads": len(finding.safe),
    }


def _planned(plan: PlanFinding) -> dict[str, Any]:
    """The scheme is null for a head that is left alone."""
    return {
        "pruned": _number(plan.pruned),
        "context_error": _number(plan.context_error),
        "heads": [
            {
                "layer": own.head.layer,
                "site": own.head.site,
                "head": own.head.head,
                "scheme": own.scheme and spell_scheme(own.scheme),
                "pruned": _number(own.pruned / max(1, own.values)),
                "context_error": _number(own.head.error),
            }
            for own in plan.heads
        ],
    }


def _site_json(layer: int, site: SiteStats) -> dict[str, Any]:
    return {
        "layer": layer,
        "id": site.site,
        "head_diversity": _number(site.head_diversity),
        "histogram_diversity": _number(site.histogram_diversity),
        "heads": [_head_json(site, head) for head in range(site.heads)],
    }


def _head_json(site: SiteStats, head: int) -> dict[str, Any]:
    return {
        **{metric.key: _number(metric.of(site)[head]) for metric in METRICS},
        "histogram": site.histogram[head].tolist(),
        "relative_histogram": site.relative_histogram[head].tolist(),
        "schemes": {
            scheme_label(stats.scheme): {metric.key: _number(metric.of(stats)[head]) for metric in SCHEME_METRICS}
            for stats in site.schemes
        },
    }


def _number(value: float | np.floating[Any]) -> int | float | None:
    """A JSON number: whole where it is whole, null for NaN and infinity."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def _cell(value: float | np.floating[Any]) -> str:
    number = _number(value)
    return "" if number is None else repr(number)


__all__ = ["study_csv", "study_json"]
