"""What a task measures on each example, from which its metrics and their intervals follow.

The score of an example comes from the library that the field takes it from: transformers (EM and F1 of SQuAD), scipy
(log-likelihoods, rank correlation), scikit-learn (ranks). Scores stay apart by example because the bootstrap, by scipy
too, resamples examples. What is left to do here for most metrics is a mean or a ratio of sums. scikit-learn's
``accuracy_score`` gives the same number, but checks its arguments first, 0.8 ms each time; it is called 4000 times for
the intervals of one model, so it is what the tests compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from onnx_attnq.scheme import FloatArray


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """A number for a whole data set, computed from the records of its examples.

    Attributes:
        name: As the field calls it: ``F1``, ``perplexity``.
        compute: Takes records (n, k), float64, and returns the metric. Resampling the examples means resampling rows.
        higher_is_better: Decides the sign of a loss.
    """

    name: str
    compute: Callable[[FloatArray], float]
    higher_is_better: bool = True


def mean_of(column: int) -> Callable[[FloatArray], float]:
    """A metric that is the mean of one column of the records.

    >>> mean_of(1)(np.array([[0.0, 1.0], [0.0, 0.0]]))
    0.5
    """
    return lambda records: float(records[:, column].mean())


def ratio_of(numerator: int, denominator: int) -> Callable[[FloatArray], float]:
    """A metric that is the sum of one column over the sum of another: a mean over tokens, not over texts.

    >>> ratio_of(0, 1)(np.array([[1.0, 2.0], [3.0, 6.0]]))
    0.5
    """
    return lambda records: float(records[:, numerator].sum() / records[:, denominator].sum())


def exp_ratio_of(numerator: int, denominator: int) -> Callable[[FloatArray], float]:
    """A perplexity: e to the sum of one column (nats) over the sum of another (tokens).

    >>> exp_ratio_of(0, 1)(np.array([[np.log(2.0), 1.0], [np.log(8.0), 1.0]]))
    4.0
    """
    return lambda records: float(np.exp(records[:, numerator].sum() / records[:, denominator].sum()))


__all__ = ["FloatArray", "Metric", "exp_ratio_of", "mean_of", "ratio_of"]
