"""Statistics of the attention values of one site: counts and sums per head, which merge.

The quantities are those of Ji et al. 2021, section 3 (distribution and sparsity of attention values),
and what a scheme does to them. Everything is a count or a sum over values or rows, so the statistics
of two sets of inputs merge into those of their union. `measure` computes them.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from onnx_attnq.scheme import QuantScheme
from onnx_attnq.study.html_table import html_table
from onnx_attnq.study.mergeable_arrays import FloatArray, IntArray, added, entropy_bits, ratio
from onnx_attnq.study.scheme_statistics import SchemeStats

EDGES: Final[FloatArray] = 10.0 ** (np.arange(-100, 1) / 10.0)
"""Edges of the histogram bins: ten per decade from 1e-10, the floor of the paper, to 1.

Bin 0 is below the first edge, bin k in [EDGES[k - 1], EDGES[k]), the last bin is p = 1 and above."""

BINS: Final = EDGES.size + 1

THRESHOLD_EDGES: Final = slice(40, None, 5)
"""The part of `EDGES` that is reported as thresholds."""

THRESHOLDS: Final[FloatArray] = EDGES[THRESHOLD_EDGES]
"""Two thresholds per decade from 1e-6 to 1."""

MAJORITIES: Final = (0.50, 0.90, 0.95, 0.99)
"""The shares of a row's mass for which "tokens to majority" is counted."""


@dataclasses.dataclass(frozen=True, eq=False)
class SiteStats:
    """The attention values of one site, per head.

    A value is a probability that is neither masked nor padding; a row is a query with at least one. H is
    the number of heads, T the number of `MAJORITIES`.

    Attributes:
        site: Site id.
        values: Number of values, (H,) int64.
        rows: Number of rows, (H,) int64.
        nan_rows: Rows that hold a NaN; they are left out of everything else, (H,) int64.
        histogram: Values per bin of `EDGES`, (H, BINS) int64.
        mass: Sum of the values per bin, (H, BINS).
        relative_histogram: The same for p / row maximum, (H, BINS) int64.
        relative_mass: Sum of p per bin of p / row maximum, (H, BINS).
        minimum: Smallest value, (H,); inf without values.
        maximum: Largest value, (H,); -inf without values.
        total: Sum of the values, (H,).
        squares: Sum of their squares, (H,).
        below_uniform: Values below 1 / (number of valid keys of their row), (H,) int64.
        entropy: Sum over rows of the entropy in bits, (H,).
        row_median: Sum over rows of log10 of the row's median value, floored at 1e-10, (H,).
        row_median_squares: Sum of their squares, (H,).
        majority_tokens: Sum over rows of the least number of keys that hold each of `MAJORITIES`, (H, T) int64.
        majority_squares: Sum of their squares, (H, T) int64.
        majority_share: Sum over rows of that number as a share of the valid keys, (H, T).
        to_first: Sum over rows of the attention to the first key that is no padding, (H,).
        to_self: Sum over rows of the attention of a token to itself (square attention only), (H,).
        self_rows: Rows that have such a key, (H,) int64.
        to_separator: Sum over rows of the attention to separator tokens, (H,).
        separator_rows: Rows of inputs whose separators are known, (H,) int64.
        head_divergence: Sum over rows of the Jensen-Shannon divergence among the H rows of the heads, bits, ().
        head_rows: Rows that all heads have, () int64.
        schemes: What each scheme does.
    """

    site: str
    values: IntArray
    rows: IntArray
    nan_rows: IntArray
    histogram: IntArray
    mass: FloatArray
    relative_histogram: IntArray
    relative_mass: FloatArray
    minimum: FloatArray
    maximum: FloatArray
    total: FloatArray
    squares: FloatArray
    below_uniform: IntArray
    entropy: FloatArray
    row_median: FloatArray
    row_median_squares: FloatArray
    majority_tokens: IntArray
    majority_squares: IntArray
    majority_share: FloatArray
    to_first: FloatArray
    to_self: FloatArray
    self_rows: IntArray
    to_separator: FloatArray
    separator_rows: IntArray
    head_divergence: FloatArray
    head_rows: IntArray
    schemes: tuple[SchemeStats, ...] = ()

    @property
    def heads(self) -> int:
        """The number of heads."""
        return int(self.values.size)

    @property
    def mean(self) -> FloatArray:
        """Mean value, (H,)."""
        return ratio(self.total, self.values)

    @property
    def std(self) -> FloatArray:
        """Standard deviation of the values, (H,)."""
        return np.sqrt(np.maximum(ratio(self.squares, self.values) - self.mean**2, 0.0))

    @property
    def density(self) -> FloatArray:
        """Share of the values in each bin of `EDGES`, (H, BINS)."""
        return ratio(self.histogram, self.values[:, None])

    def share_below(self, *, relative: bool = False) -> FloatArray:
        """Share of the values below each of `EDGES`, (H, BINS - 1); with ``relative`` of p / row maximum."""
        counts = self.relative_histogram if relative else self.histogram
        return ratio(np.cumsum(counts, axis=1)[:, :-1], self.values[:, None])

    def mass_lost(self, *, relative: bool = False) -> FloatArray:
        """Share of the rows' mass in values below each of `EDGES`, (H, BINS - 1)."""
        mass = self.relative_mass if relative else self.mass
        return ratio(np.cumsum(mass, axis=1)[:, :-1], self.total[:, None])

    @property
    def share_below_uniform(self) -> FloatArray:
        """Share of the values below 1/L, L the number of valid keys of the row, (H,)."""
        return ratio(self.below_uniform, self.values)

    @property
    def mean_entropy(self) -> FloatArray:
        """Mean entropy of a row, (H,), bits."""
        return ratio(self.entropy, self.rows)

    @property
    def mean_keys(self) -> FloatArray:
        """Mean number of valid keys of a row, (H,)."""
        return ratio(self.values, self.rows)

    @property
    def spread(self) -> FloatArray:
        """How differently the rows of one head are distributed, (H,), decades.

        The standard deviation over rows of log10 of the row's median value: the distribution diversity of Ji et
        al. 2021, there computed from the median bin of each row's histogram.
        """
        mean = ratio(self.row_median, self.rows)
        return np.sqrt(np.maximum(ratio(self.row_median_squares, self.rows) - mean**2, 0.0))

    @property
    def tokens_to_majority(self) -> FloatArray:
        """Mean number of keys that hold each of `MAJORITIES` of a row's mass, (H, T)."""
        return ratio(self.majority_tokens, self.rows[:, None])

    @property
    def tokens_to_majority_std(self) -> FloatArray:
        """Standard deviation over rows of that number, (H, T)."""
        return np.sqrt(np.maximum(ratio(self.majority_squares, self.rows[:, None]) - self.tokens_to_majority**2, 0.0))

    @property
    def share_to_majority(self) -> FloatArray:
        """Mean share of the valid keys that hold each of `MAJORITIES`, (H, T)."""
        return ratio(self.majority_share, self.rows[:, None])

    @property
    def attention_to_first(self) -> FloatArray:
        """Mean attention to the first token, (H,): a sink where it is high."""
        return ratio(self.to_first, self.rows)

    @property
    def attention_to_self(self) -> FloatArray:
        """Mean attention of a token to itself, (H,); NaN for cross-attention."""
        return ratio(self.to_self, self.self_rows)

    @property
    def attention_to_separator(self) -> FloatArray:
        """Mean attention to the separator tokens of the row, (H,); NaN where they were not given."""
        return ratio(self.to_separator, self.separator_rows)

    @property
    def head_diversity(self) -> float:
        """How differently the heads attend, 0 (all alike) to 1 (no key in common).

        The mean over rows of the Jensen-Shannon divergence among the heads' rows, divided by its bound log2 H.
        """
        bound = float(np.log2(self.heads)) if self.heads > 1 else float("nan")
        return float(ratio(self.head_divergence, self.head_rows * bound))

    @property
    def histogram_diversity(self) -> float:
        """How differently the values of the heads are distributed, 0 to 1: the same for their histograms."""
        density = self.density
        bound = float(np.log2(self.heads)) if self.heads > 1 else float("nan")
        return float((entropy_bits(density.mean(axis=0)) - entropy_bits(density).mean()) / bound)

    def of(self, scheme: QuantScheme) -> SchemeStats:
        """What a scheme does here.

        Raises:
            KeyError: The scheme was not measured.
        """
        for stats in self.schemes:
            if stats.scheme == scheme:
                return stats
        raise KeyError(scheme)

    def merge(self, other: SiteStats) -> SiteStats:
        """The statistics of both sets of rows; associative, exactly for counts and to `MERGE_TOLERANCE` for sums.

        Raises:
            ValueError: Another site, number of heads or list of schemes.
        """
        if self.site != other.site:
            raise ValueError(f"site {self.site!r} is not {other.site!r}")
        if len(self.schemes) != len(other.schemes):
            raise ValueError(
                f"site {self.site!r} was measured with {len(self.schemes)} and {len(other.schemes)} schemes"
            )
        arrays = added(self, other)
        arrays["minimum"] = np.minimum(self.minimum, other.minimum)
        arrays["maximum"] = np.maximum(self.maximum, other.maximum)
        schemes = tuple(a.merge(b) for a, b in zip(self.schemes, other.schemes, strict=True))
        return SiteStats(self.site, **arrays, schemes=schemes)

    def _repr_html_(self) -> str:
        """A table for notebooks: a line per head."""
        below = self.share_below()[:, int(np.searchsorted(EDGES, 1e-3))]
        rows = [
            [
                str(head),
                f"{self.mean_entropy[head]:.2f}",
                f"{below[head]:.1%}",
                *(f"{count:.1f}" for count in self.tokens_to_majority[head, :2]),
                f"{self.attention_to_first[head]:.2f}",
            ]
            for head in range(self.heads)
        ]
        majorities = (f"tokens to {share:.0%}" for share in MAJORITIES[:2])
        header = ["head", "entropy (bits)", "p < 1e-3", *majorities, "to the first token"]
        return html_table(self.site, header, rows)

    @classmethod
    def empty(cls, site: str, heads: int, schemes: tuple[QuantScheme, ...] = ()) -> SiteStats:
        """The statistics of no value at all, which merge into any other without effect."""

        def count(*shape: int) -> IntArray:
            return np.zeros(shape, np.int64)

        h, t = heads, len(MAJORITIES)
        return cls(
            site=site,
            values=count(h),
            rows=count(h),
            nan_rows=count(h),
            histogram=count(h, BINS),
            mass=np.zeros((h, BINS)),
            relative_histogram=count(h, BINS),
            relative_mass=np.zeros((h, BINS)),
            minimum=np.full(h, np.inf),
            maximum=np.full(h, -np.inf),
            total=np.zeros(h),
            squares=np.zeros(h),
            below_uniform=count(h),
            entropy=np.zeros(h),
            row_median=np.zeros(h),
            row_median_squares=np.zeros(h),
            majority_tokens=count(h, t),
            majority_squares=count(h, t),
            majority_share=np.zeros((h, t)),
            to_first=np.zeros(h),
            to_self=np.zeros(h),
            self_rows=count(h),
            to_separator=np.zeros(h),
            separator_rows=count(h),
            head_divergence=np.zeros(()),
            head_rows=count(),
            schemes=tuple(SchemeStats.empty(scheme, heads) for scheme in schemes),
        )


__all__ = ["BINS", "EDGES", "MAJORITIES", "THRESHOLDS", "THRESHOLD_EDGES", "SiteStats"]
