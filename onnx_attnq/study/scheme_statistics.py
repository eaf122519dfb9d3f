"""Statistics of the effect of one scheme on the attention values of one site: counts and sums per head, which merge."""

from __future__ import annotations

import dataclasses

import numpy as np

from onnx_attnq.scheme import QuantScheme
from onnx_attnq.study.mergeable_arrays import FloatArray, IntArray, added, ratio


@dataclasses.dataclass(frozen=True, eq=False)
class SchemeStats:
    """What one scheme does to the probabilities of one site. Every array is (H,), one entry per head.

    Attributes:
        scheme: The scheme.
        values: Number of valid probabilities, int64.
        pruned: How many of them are pruned, int64.
        rows: Number of rows, int64.
        emptied: Rows of which nothing is left, int64.
        divergence: Sum over rows of the Jensen-Shannon divergence between the row before and after, both
            normalized to 1, in bits (0 to 1). An emptied row counts 1.
        context_rows: Rows whose context (probabilities times V) was observed and is not 0, int64.
        context_error: Sum over those of the relative error of the context, |QV - PV| / |PV|, Euclidean norms.
        error_energy: Sum over rows of |QV - PV| squared.
        context_energy: Sum over rows of |PV| squared.
    """

    scheme: QuantScheme
    values: IntArray
    pruned: IntArray
    rows: IntArray
    emptied: IntArray
    divergence: FloatArray
    context_rows: IntArray
    context_error: FloatArray
    error_energy: FloatArray
    context_energy: FloatArray

    @property
    def pruned_share(self) -> FloatArray:
        """Share of the valid values that become 0, (H,), 0 to 1."""
        return ratio(self.pruned, self.values)

    @property
    def mean_divergence(self) -> FloatArray:
        """Mean Jensen-Shannon divergence of a row, (H,), bits, 0 to 1."""
        return ratio(self.divergence, self.rows)

    @property
    def mean_context_error(self) -> FloatArray:
        """Mean over rows of |QV - PV| / |PV|, (H,); NaN where no context was observed."""
        return ratio(self.context_error, self.context_rows)

    @property
    def total_context_error(self) -> FloatArray:
        """|QV - PV| / |PV| over all rows together (Frobenius norms), (H,); rows with a long context weigh more."""
        return np.sqrt(ratio(self.error_energy, self.context_energy))

    def merge(self, other: SchemeStats) -> SchemeStats:
        """The statistics of both sets of rows.

        Raises:
            ValueError: Another scheme, or another number of heads.
        """
        if self.scheme != other.scheme:
            raise ValueError(f"scheme {self.scheme} is not {other.scheme}")
        return SchemeStats(self.scheme, **added(self, other))

    @classmethod
    def empty(cls, scheme: QuantScheme, heads: int) -> SchemeStats:
        """The statistics of no row at all, which merge into any other without effect."""
        count, total = np.zeros(heads, np.int64), np.zeros(heads)
        return cls(scheme, count, count, count, count, total, count, total, total, total)


__all__ = ["SchemeStats"]
