"""Original and compressed model on the same examples: paired bootstrap intervals of a metric and of its loss."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate.records import FloatArray, Metric
from onnx_attnq.extras import require

RESAMPLES: Final = 1000
CONFIDENCE: Final = 0.95
SEED: Final = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Bootstrap:
    """How examples are resampled.

    Attributes:
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling; the same seed draws the same examples for every figure.
    """

    resamples: int = RESAMPLES
    seed: int = SEED


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its 95 % percentile bootstrap interval; NaN where it is undefined."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """The three numbers; NaN, which JSON does not have, becomes null."""
        return {key: None if math.isnan(value) else value for key, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One metric on both models.

    Attributes:
        metric: Its name.
        original: The metric of the original model.
        compressed: The metric of the compressed model.
        relative_loss: How much worse the compressed model is, as a share of the original's metric; negative when it
            is better. Its interval comes from resampling the examples together, so what makes an example hard for both
            models cancels.
    """

    metric: str
    original: Interval
    compressed: Interval
    relative_loss: Interval

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "metric": self.metric,
            "original": self.original.to_json(),
            "compressed": self.compressed.to_json(),
            "relative_loss": self.relative_loss.to_json(),
        }


def compare(
    original: FloatArray, compressed: FloatArray, metric: Metric, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Comparison:
    """Compare two models by the records of the same examples.

    Args:
        original: Records of the original model, (n, k).
        compressed: Records of the compressed model, (n, k), of the same examples in the same order.
        metric: Which metric.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Raises:
        InvalidData: Fewer than two examples, or the records are not of the same examples.

    >>> from onnx_attnq.evaluate.records import mean_of
    >>> right = np.array([[1.0], [1.0], [0.0], [1.0]] * 5)
    >>> result = compare(right, right, Metric("accuracy", mean_of(0)))
    >>> result.original.estimate, result.relative_loss
    (0.75, Interval(estimate=0.0, low=0.0, high=0.0))
    """
    if original.shape != compressed.shape:
        raise InvalidData(f"records of different examples: {original.shape} and {compressed.shape}")

    def loss(rows: FloatArray) -> float:
        return relative_loss(metric.compute(original[rows]), metric.compute(compressed[rows]), metric.higher_is_better)

    count = len(original)
    return Comparison(
        metric.name,
        interval(lambda rows: metric.compute(original[rows]), count, resamples=resamples, seed=seed),
        interval(lambda rows: metric.compute(compressed[rows]), count, resamples=resamples, seed=seed),
        interval(loss, count, resamples=resamples, seed=seed),
    )


def relative_loss(original: float, compressed: float, higher_is_better: bool) -> float:
    """How much worse, as a share of the original; NaN when the original is zero.

    >>> relative_loss(0.8, 0.6, True), relative_loss(10.0, 11.0, False)
    (0.25, 0.1)
    """
    if original == 0.0:
        return math.nan
    change = (compressed - original) / original
    return round(-change if higher_is_better else change, 12) + 0.0  # no float64 noise and no -0.0 in reports


def interval(
    statistic: Callable[[Any], float], count: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """The statistic of ``count`` examples, and its bootstrap interval by scipy.

    ``statistic`` takes the indices of the examples. The same seed draws the same examples for every statistic.
    """
    require("evaluate")
    from scipy import stats

    if count < 2:
        raise InvalidData(f"{count} example(s): an interval needs two or more")
    rows = np.arange(count)
    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):  # NaN says it already
        result = stats.bootstrap(
            (rows,),
            statistic,
            vectorized=False,
            n_resamples=resamples,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
    return Interval(statistic(rows), float(low), float(high))


__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "SEED",
    "Bootstrap",
    "Comparison",
    "Interval",
    "compare",
    "interval",
    "relative_loss",
]
