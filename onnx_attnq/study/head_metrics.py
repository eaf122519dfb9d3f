"""The numbers that are reported of a head, each defined once: tables, JSON, heat maps and docs all read this list."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from onnx_attnq.study.mergeable_arrays import FloatArray
from onnx_attnq.study.scheme_statistics import SchemeStats
from onnx_attnq.study.site_statistics import EDGES, MAJORITIES, SiteStats


@dataclasses.dataclass(frozen=True)
class HeadMetric:
    """A number per head of a site.

    Attributes:
        key: Its name in JSON and CSV.
        title: What it is, for people.
        unit: Its unit; "" for a plain count or share.
        of: Computes it, (H,), from the statistics of a site.
    """

    key: str
    title: str
    unit: str
    of: Callable[[SiteStats], FloatArray]


@dataclasses.dataclass(frozen=True)
class SchemeMetric:
    """A number per head of a site that a scheme has; fields as of `HeadMetric`."""

    key: str
    title: str
    unit: str
    of: Callable[[SchemeStats], FloatArray]


ENTROPY: Final = HeadMetric("entropy", "mean entropy of a row", "bits", lambda s: s.mean_entropy)
SPREAD: Final = HeadMetric("spread", "spread of the rows' median value", "decades", lambda s: s.spread)
TO_FIRST: Final = HeadMetric("to_first", "attention to the first token", "share", lambda s: s.attention_to_first)
TO_SELF: Final = HeadMetric("to_self", "attention to the token itself", "share", lambda s: s.attention_to_self)
TO_SEPARATOR: Final = HeadMetric(
    "to_separator", "attention to separator tokens", "share", lambda s: s.attention_to_separator
)
BELOW_UNIFORM: Final = HeadMetric("below_uniform", "values below 1/L", "share", lambda s: s.share_below_uniform)


def _decade(exponent: int) -> int:
    """The index in `EDGES` of 10 to the power of ``exponent``."""
    return EDGES.size - 1 + 10 * exponent


def share_below(exponent: int, *, relative: bool = False) -> HeadMetric:
    """The share of the values below 10**exponent, with ``relative`` of p / row maximum; exponent -10 to 0."""
    index, what, mark = _decade(exponent), *(("p / row maximum", "relative_") if relative else ("p", ""))
    return HeadMetric(
        f"{mark}below_1e{exponent}",
        f"values with {what} < 1e{exponent}",
        "share",
        lambda s: s.share_below(relative=relative)[:, index],
    )


def mass_lost(exponent: int, *, relative: bool = False) -> HeadMetric:
    """The share of the mass in values below 10**exponent, with ``relative`` of p / row maximum."""
    index, what, mark = _decade(exponent), *(("p / row maximum", "relative_") if relative else ("p", ""))
    return HeadMetric(
        f"{mark}mass_below_1e{exponent}",
        f"mass in values with {what} < 1e{exponent}",
        "share",
        lambda s: s.mass_lost(relative=relative)[:, index],
    )


def tokens_to_majority(index: int) -> HeadMetric:
    """The mean number of tokens that hold a majority of a row's mass, by its index in `MAJORITIES`."""
    percent = round(100 * MAJORITIES[index])
    return HeadMetric(
        f"tokens_to_{percent}",
        f"tokens that hold {percent} % of a row's mass",
        "tokens",
        lambda s: s.tokens_to_majority[:, index],
    )


def share_to_majority(index: int) -> HeadMetric:
    """The mean share of the valid tokens that hold a majority of a row's mass, by its index in `MAJORITIES`."""
    percent = round(100 * MAJORITIES[index])
    return HeadMetric(
        f"share_to_{percent}",
        f"share of the tokens that hold {percent} % of a row's mass",
        "share",
        lambda s: s.share_to_majority[:, index],
    )


METRICS: Final[tuple[HeadMetric, ...]] = (
    HeadMetric("values", "valid attention values", "", lambda s: s.values.astype(float)),
    HeadMetric("rows", "rows (query tokens)", "", lambda s: s.rows.astype(float)),
    HeadMetric("nan_rows", "rows with NaN, left out", "", lambda s: s.nan_rows.astype(float)),
    HeadMetric("keys", "mean number of valid keys of a row", "tokens", lambda s: s.mean_keys),
    HeadMetric("min", "smallest value", "", lambda s: s.minimum),
    HeadMetric("max", "largest value", "", lambda s: s.maximum),
    HeadMetric("mean", "mean value", "", lambda s: s.mean),
    HeadMetric("std", "standard deviation of the values", "", lambda s: s.std),
    ENTROPY,
    SPREAD,
    BELOW_UNIFORM,
    TO_FIRST,
    TO_SELF,
    TO_SEPARATOR,
    *(tokens_to_majority(i) for i in range(len(MAJORITIES))),
    *(share_to_majority(i) for i in range(len(MAJORITIES))),
    *(share_below(e) for e in range(-6, 1)),
    *(share_below(e, relative=True) for e in range(-6, 1)),
    *(mass_lost(e) for e in range(-6, 1)),
    *(mass_lost(e, relative=True) for e in range(-6, 1)),
)
"""Every number of a head that needs no scheme, in the order of the tables."""

PRUNED: Final = SchemeMetric("pruned", "values pruned", "share", lambda s: s.pruned_share)
DIVERGENCE: Final = SchemeMetric(
    "divergence", "Jensen-Shannon divergence of a row", "bits", lambda s: s.mean_divergence
)
CONTEXT_ERROR: Final = SchemeMetric(
    "context_error", "mean relative error of the context", "|QV - PV| / |PV|", lambda s: s.mean_context_error
)

SCHEME_METRICS: Final[tuple[SchemeMetric, ...]] = (
    PRUNED,
    SchemeMetric("emptied_rows", "rows of which nothing is left", "", lambda s: s.emptied.astype(float)),
    DIVERGENCE,
    CONTEXT_ERROR,
    SchemeMetric(
        "total_context_error",
        "relative error of the context over all rows together",
        "|QV - PV| / |PV|",
        lambda s: s.total_context_error,
    ),
)
"""Every number of a head that a scheme has, in the order of the tables."""

__all__ = [
    "BELOW_UNIFORM",
    "CONTEXT_ERROR",
    "DIVERGENCE",
    "ENTROPY",
    "METRICS",
    "PRUNED",
    "SCHEME_METRICS",
    "SPREAD",
    "TO_FIRST",
    "TO_SELF",
    "TO_SEPARATOR",
    "HeadMetric",
    "SchemeMetric",
    "mass_lost",
    "share_below",
    "share_to_majority",
    "tokens_to_majority",
]
