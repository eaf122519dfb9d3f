"""How far one array of outputs is from another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

METRICS: Final = ("max_abs", "mean_abs", "cosine", "top1_agreement", "kl")
"""Names of the figures, as the command line and JSON have them."""

HIGHER_IS_BETTER: Final = frozenset({"cosine", "top1_agreement"})
"""The figures for which a limit is a lower bound."""


@dataclasses.dataclass(frozen=True)
class Deviation:
    """What separates two outputs, over all samples; sums, so that samples merge exactly.

    Attributes:
        values: Number of elements compared.
        max_abs: Largest absolute difference.
        sum_abs: Sum of absolute differences.
        dot: Sum of products of the two.
        norm_a: Sum of squares of the first.
        norm_b: Sum of squares of the second.
        rows: Number of rows over the last axis, for an output that is a distribution; else 0.
        top1: Rows whose largest element is the same.
        sum_kl: Sum over the rows of KL(first || second), nats.
        new_nan: Elements that are NaN or infinite in the second only.
    """

    values: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    dot: float = 0.0
    norm_a: float = 0.0
    norm_b: float = 0.0
    rows: int = 0
    top1: int = 0
    sum_kl: float = 0.0
    new_nan: int = 0

    def merge(self, other: Deviation) -> Deviation:
        """Both together.

        >>> a = compare(np.zeros(2), np.array([0.0, 0.5]))
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
    def relative_error(self) -> float:
        """Norm of the difference over the norm of the first.

        >>> compare([3.0, 4.0], [3.0, 4.5]).relative_error
        0.1
        """
        squared = max(self.norm_a + self.norm_b - 2.0 * self.dot, 0.0)
        return math.sqrt(squared / self.norm_a) if self.norm_a else (math.inf if self.norm_b else 0.0)

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows whose largest element is the same; None for an output that is no distribution."""
        return self.top1 / self.rows if self.rows else None

    @property
    def kl(self) -> float | None:
        """Mean over the rows of KL(first || second), nats; None for an output that is no distribution."""
        return self.sum_kl / self.rows if self.rows else None

    def to_json(self) -> dict[str, Any]:
        """The figures of `METRICS`, and the number of new NaN or infinite elements."""
        return {**{name: getattr(self, name) for name in METRICS}, "new_nan": self.new_nan}


def compare(a: npt.ArrayLike, b: npt.ArrayLike, *, distribution: bool = False) -> Deviation:
    """The deviation of ``b`` from ``a``, arrays of one shape.

    Elements that are not finite in one of them take no part, but those that are finite in ``a`` only are counted.

    Args:
        a: What should be.
        b: What is.
        distribution: The last axis holds logits, so that top-1 agreement and KL make sense.

    >>> d = compare([[2.0, 0.0]], [[2.0, 0.1]], distribution=True)
    >>> round(d.max_abs, 3), d.top1_agreement, round(d.kl, 5)
    (0.1, 1.0, 0.00054)
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape} differ")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    new_nan = int((np.isfinite(x) & ~np.isfinite(y)).sum())
    rows = top1 = 0
    kl = 0.0
    if distribution and x.ndim and x.shape[-1] > 1:
        whole = finite.all(axis=-1)
        rows, p, q = int(whole.sum()), x[whole], y[whole]
        top1 = int((p.argmax(-1) == q.argmax(-1)).sum())
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        kl = float((np.exp(log_p) * (log_p - log_q)).sum())
    x, y = x[finite], y[finite]
    difference = np.abs(x - y)
    return Deviation(
        values=x.size,
        max_abs=float(difference.max(initial=0.0)),
        sum_abs=float(difference.sum()),
        dot=float(x @ y),
        norm_a=float(x @ x),
        norm_b=float(y @ y),
        rows=rows,
        top1=top1,
        sum_kl=kl,
        new_nan=new_nan,
    )


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
