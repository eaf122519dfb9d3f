"""How far one array of outputs is from another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.errors import InvalidData

FIGURES: Final = ("max_abs", "mean_abs", "relative_error", "cosine", "top1_agreement", "kl")
"""Names of the figures, as the command line and JSON have them."""

HIGHER_IS_BETTER: Final = frozenset({"cosine", "top1_agreement"})
"""The figures for which a limit is a lower bound."""

BLOCK: Final = 2**18
"""Elements that are compared at a time: their float64 copies stay in the cache, and are no second set of outputs."""


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far two outputs are apart, over all samples: sums, so that samples merge exactly.

    Attributes:
        values: Number of elements compared.
        max_abs: Largest absolute difference.
        sum_abs: Sum of absolute differences.
        sum_squares: Sum of squares of the differences.
        dot: Sum of products of the two.
        norm_a: Sum of squares of the first.
        norm_b: Sum of squares of the second.
        rows: Number of rows over the last axis, for an output that is a distribution; else 0.
        top1: Rows whose largest element is the same.
        sum_kl: Sum over the rows of KL(first || second), nats.
        new_nan: Elements that are NaN or infinite in the second only.
        one_sided: Elements that are NaN or infinite in one of them, and not the same in the other.
        not_finite: Elements that are the same NaN or infinity in both.
        wide: Elements of rows (over the last axis) that have more than one.
        positive: Elements of the first above zero.
        negative: Elements of the first below zero.
    """

    values: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    sum_squares: float = 0.0
    dot: float = 0.0
    norm_a: float = 0.0
    norm_b: float = 0.0
    rows: int = 0
    top1: int = 0
    sum_kl: float = 0.0
    new_nan: int = 0
    one_sided: int = 0
    not_finite: int = 0
    wide: int = 0
    positive: int = 0
    negative: int = 0

    def merge(self, other: Deviation) -> Deviation:
        """Both together.

        >>> a = deviation_of(np.zeros(2), np.array([0.0, 0.5]))
        >>> a.merge(a).values, a.merge(a).max_abs
        (4, 0.5)
        """
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        total = Deviation(*(a + b for a, b in pairs))
        return dataclasses.replace(total, max_abs=max(self.max_abs, other.max_abs))

    @property
    def mean_abs(self) -> float:
        """Mean absolute difference."""
        return self.sum_abs / self.values if self.values else 0.0

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two, taken as vectors; 1 when both are zero."""
        norm = math.sqrt(self.norm_a) * math.sqrt(self.norm_b)
        return self.dot / norm if norm else float(self.norm_a == self.norm_b)

    @property
    def cosine_tells(self) -> bool:
        """Whether the cosine says anything; it does not for rows of one element, nor where all have one sign."""
        return self.wide > 0 and self.positive > 0 and self.negative > 0

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of the first.

        >>> deviation_of([3.0, 4.0], [3.0, 4.5]).relative_error
        0.1
        """
        if not self.norm_a:
            return math.inf if self.sum_squares else 0.0
        return math.sqrt(self.sum_squares / self.norm_a)

    @property
    def not_finite_share(self) -> float:
        """Share of the elements that are the same NaN or infinity in both."""
        total = self.values + self.one_sided + self.not_finite
        return self.not_finite / total if total else 0.0

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows whose largest element is the same; None for an output that is no distribution."""
        return self.top1 / self.rows if self.rows else None

    @property
    def kl(self) -> float | None:
        """Mean over the rows of KL(first || second), nats; None for an output that is no distribution."""
        return self.sum_kl / self.rows if self.rows else None

    def to_json(self) -> dict[str, Any]:
        """The figures of `FIGURES`, null for a cosine without meaning, and the numbers of NaN and infinities."""
        figures = {name: getattr(self, name) for name in FIGURES}
        if not self.cosine_tells:
            figures["cosine"] = None
        return {**figures, "new_nan": self.new_nan, "not_finite_share": self.not_finite_share}


def deviation_of(a: npt.ArrayLike, b: npt.ArrayLike, *, distribution: bool = False) -> Deviation:
    """The deviation of ``b`` from ``a``, arrays of one shape.

    Elements that are not finite in one of them are left out of the figures; they are counted.

    Args:
        a: What should be.
        b: What is.
        distribution: The last axis holds logits, so that top-1 agreement and KL make sense.

    Raises:
        InvalidData: The shapes differ.

    >>> d = deviation_of([[2.0, 0.0]], [[2.0, 0.1]], distribution=True)
    >>> round(d.max_abs, 3), d.top1_agreement, round(d.kl, 5)
    (0.1, 1.0, 0.00054)
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise InvalidData(f"arrays of the shapes {list(a.shape)} and {list(b.shape)} cannot be compared")
    if a.ndim == 0 or a.size == 0:
        return _of_rows(a.reshape(-1, 1), b.reshape(-1, 1), distribution)
    rows_a, rows_b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    step = max(1, BLOCK // a.shape[-1])
    total = Deviation()
    for start in range(0, len(rows_a), step):
        block = slice(start, start + step)
        total = total.merge(_of_rows(rows_a[block], rows_b[block], distribution))
    return total


def _of_rows(a: npt.NDArray[Any], b: npt.NDArray[Any], distribution: bool) -> Deviation:
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite_x, finite_y = np.isfinite(x), np.isfinite(y)
    finite = finite_x & finite_y
    same = ~finite & ((x == y) | (np.isnan(x) & np.isnan(y)))
    rows = top1 = 0
    kl = 0.0
    if distribution and x.shape[-1] > 1:
        whole = finite.all(axis=-1)
        rows, p, q = int(whole.sum()), x[whole], y[whole]
        top1 = int((p.argmax(-1) == q.argmax(-1)).sum())
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        kl = float((np.exp(log_p) * (log_p - log_q)).sum())
    wide = x.size if x.shape[-1] > 1 else 0
    if not finite.all():
        x, y = x[finite], y[finite]
    x, y = x.ravel(), y.ravel()
    difference = np.abs(x - y)
    return Deviation(
        values=x.size,
        max_abs=float(difference.max(initial=0.0)),
        sum_abs=float(difference.sum()),
        sum_squares=float(difference @ difference),
        dot=float(x @ y),
        norm_a=float(x @ x),
        norm_b=float(y @ y),
        rows=rows,
        top1=top1,
        sum_kl=kl,
        new_nan=int((finite_x & ~finite_y).sum()),
        one_sided=int((~finite & ~same).sum()),
        not_finite=int(same.sum()),
        wide=wide,
        positive=int((x > 0.0).sum()),
        negative=int((x < 0.0).sum()),
    )


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
