"""What a study says in a few lines: what each scheme costs, which heads resist it, which are safe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from onnx_attnq.counted import counted
from onnx_attnq.one_line import one_line
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.study.html_table import html_table
from onnx_attnq.study.mergeable_arrays import FloatArray, ratio
from onnx_attnq.study.model_study import Study

SAFE_ERROR: Final = 0.25
"""The criterion for a safe head: its mean relative error of the context, |QV - PV| / |PV|, is at most this.

A convention that tells heads apart, not a promise about a task: on the models in docs/analyze.md, schemes whose
mean error over all heads is about this cost the task little, and those with twice as much cost it visibly.
"""

_MOST_NAMED: Final = 5
"""Resisting heads that the summary names."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One head and its error under a scheme.

    Attributes:
        layer: Number of the site in the order of the graph, from 0.
        head: Number of the head, from 0.
        site: Id of the site.
        error: Mean relative error of the context; NaN where no context could be observed.
    """

    layer: int
    head: int
    site: str
    error: float

    def __str__(self) -> str:
        """As in "layer.3/Softmax head 7 (0.41)": the id that plans, --include and --exclude take."""
        return f"{self.site} head {self.head} ({self.error:.2f})"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one scheme does to a model.

    Attributes:
        scheme: The scheme.
        pruned: Share of all attention values that become 0.
        divergence: Jensen-Shannon divergence of a row, bits, mean over the heads.
        context_error: Mean relative error of the context, mean over the heads that have one.
        heads: Every head, the largest error first; those without an error last.
        limit: The error up to which a head counts as safe.
    """

    scheme: QuantScheme
    pruned: float
    divergence: float
    context_error: float
    heads: tuple[Head, ...]
    limit: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the heads' errors."""
        return float(np.nanstd([head.error for head in self.heads]))

    @property
    def resisting(self) -> tuple[Head, ...]:
        """The heads whose error is above the limit, the worst first."""
        return tuple(head for head in self.heads if head.error > self.limit)

    @property
    def safe(self) -> tuple[Head, ...]:
        """The heads whose error is within the limit, the worst first."""
        return tuple(head for head in self.heads if head.error <= self.limit)

    def __str__(self) -> str:
        """One line: "At 3 bits (row-log, t=0.01): 64% pruned, …"."""
        bits = "Pruned only" if self.scheme.bits is None else f"At {self.scheme.bits} bit{'s'[: self.scheme.bits > 1]}"
        line = f"{bits} ({self.scheme.name}, t={self.scheme.threshold:.3g}): {self.pruned:.0%} pruned, "
        if np.isnan(self.context_error):
            return f"{line}divergence {self.divergence:.3f} bits; no context could be observed"
        error = f"context error {self.context_error:.2f}"
        return f"{line}{error}; heads that resist (> {self.limit:g}): {named(self.resisting)}"

    def _repr_html_(self) -> str:
        """A table for notebooks: a line per head, the worst first."""
        rows = [
            [str(h.layer), str(h.head), h.site, f"{h.error:.3f}", "yes" if h.error <= self.limit else "no"]
            for h in self.heads
        ]
        return html_table(str(self), ["layer", "head", "site", "context error", "safe"], rows)


def named(heads: Sequence[Head]) -> str:
    """The first few heads, and how many more there are."""
    more = len(heads) - _MOST_NAMED
    return (", ".join(map(str, heads[:_MOST_NAMED])) or "none") + (f" and {more} more" if more > 0 else "")


def findings(study: Study, limit: float = SAFE_ERROR) -> tuple[Finding, ...]:
    """What each scheme of a study does, in the study's order.

    Args:
        study: Any study.
        limit: The criterion for a safe head.
    """
    return tuple(_finding(study, scheme, limit) for scheme in study.schemes)


def _finding(study: Study, scheme: QuantScheme, limit: float) -> Finding:
    stats = [(site.site, site.of(scheme)) for site in study.sites]
    heads = [
        Head(layer, head, site, float(error))
        for layer, (site, part) in enumerate(stats)
        for head, error in enumerate(part.mean_context_error)
    ]
    pruned = sum(int(part.pruned.sum()) for _, part in stats)
    values = sum(int(part.values.sum()) for _, part in stats)
    return Finding(
        scheme=scheme,
        pruned=float(ratio(pruned, values)),
        divergence=_mean([part.mean_divergence for _, part in stats]),
        context_error=_mean([part.mean_context_error for _, part in stats]),
        heads=tuple(sorted(heads, key=lambda head: (np.isnan(head.error), -head.error))),
        limit=limit,
    )


def summary(study: Study, limit: float = SAFE_ERROR) -> str:
    """The study in a line for the data and a line for each scheme, as the terminal shows it."""
    heads = sum(site.heads for site in study.sites)
    what = f"{counted(len(study.sites), 'layer')}, {counted(heads, 'head')}"
    data = f"{counted(study.samples, 'sample')}, {counted(study.tokens, 'token')} of {study.data}"
    lines = [f"{study.model}: {what}; {data}"]
    lines += map(str, findings(study, limit))
    lines += [f"not observed: {site}: {reason}" for site, reason in study.unobserved.items()]
    return "\n".join(map(one_line, lines))


def _mean(parts: list[FloatArray]) -> float:
    flat = np.concatenate(parts) if parts else np.zeros(0)
    known = flat[~np.isnan(flat)]
    return float(known.mean()) if known.size else float("nan")


__all__ = ["SAFE_ERROR", "Finding", "Head", "findings", "named", "summary"]
