"""How far outputs are from the original's: one number for each of the many changes that are tried on one sample.

Of all that `verification` compares, only what single heads are ordered by: the KL of logits, or the squared error. What
depends on the original alone is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.inputs import Sample
from onnx_attnq.verification import FloatOutputs

BROKEN: Final = 1e6
"""The divergence of outputs that are not finite any more."""

BLOCK: Final = 2**18
"""Logits that are compared at a time: their float64 copies stay in the cache, and are no second set of outputs."""

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


class Divergence:
    """The divergence from what the original gives for a sample.

    KL in nats, mean over rows and summed over the outputs that are logits or probabilities; of a model without such,
    the squared error relative to an output's energy, summed over the outputs.

    Args:
        expected: What the original gives.
        outputs: Which outputs can be compared.
        sample: What gave the outputs; its padding does not count.

    >>> import onnx_ir as ir
    >>> logits = ir.Value(name="logits")
    >>> outputs = FloatOutputs(ir.Model(ir.Graph([], [logits], nodes=[]), ir_version=10))
    >>> found = Divergence({"logits": np.array([[2.0, 0.0]])}, outputs, {})
    >>> round(found.of({"logits": np.array([[2.0, 0.1]])}), 5)
    0.00054
    """

    def __init__(self, expected: Mapping[str, Array], outputs: FloatOutputs, sample: Sample) -> None:
        self._outputs, self._sample = outputs, sample
        self._logits = {
            name: _Logits(before)
            for name, before, _ in outputs.pairs(expected, expected, sample)
            if name in outputs.distributions and before.ndim > 1 and before.shape[-1] > 1
        }
        # Beside logits a cache or hidden states would be counted twice: what they move, moves the logits.
        self._expected = {name: expected[name] for name in self._logits} or expected

    def of(self, found: Mapping[str, Array]) -> float:
        """How far these outputs are; `BROKEN` where there is NaN or infinity that the original does not have."""
        total = 0.0
        for name, before, after in self._outputs.pairs(self._expected, found, self._sample):
            finite = np.isfinite(before)
            if not np.isfinite(after[finite]).all() or not np.array_equal(
                before[~finite], after[~finite], equal_nan=True
            ):
                return BROKEN
            if name in self._logits:
                total += self._logits[name].kl(after)
            else:
                total += _squared_error(before[finite].astype(np.float64), after[finite])
        return total


class _Logits:
    """Those of the original: its probabilities in float32, and of each row Σ p and Σ p ln p."""

    def __init__(self, logits: Array) -> None:
        rows = logits.reshape(-1, logits.shape[-1])
        self._whole = np.isfinite(rows).all(axis=-1)
        self._p = np.empty((int(self._whole.sum()), rows.shape[-1]), np.float32)
        self._sums, self._entropy = np.empty(len(self._p)), np.empty(len(self._p))
        for block, x in self._blocks(rows):
            log_p = x - _log_sum(x)[:, None]
            self._p[block] = np.exp(log_p)
            self._sums[block] = self._p[block].sum(axis=-1, dtype=np.float64)
            self._entropy[block] = np.einsum("ij,ij->i", self._p[block], log_p)

    def kl(self, logits: Array) -> float:
        """KL(original || these) in nats, mean over the rows whose logits are finite."""
        total = 0.0
        for block, x in self._blocks(logits.reshape(-1, logits.shape[-1])):
            found = self._sums[block] * _log_sum(x) - np.einsum("ij,ij->i", self._p[block], x)
            total += float((self._entropy[block] + found).sum())
        return max(total, 0.0) / max(1, len(self._p))

    def _blocks(self, rows: Array) -> Iterator[tuple[slice, FloatArray]]:
        finite = rows if self._whole.all() else rows[self._whole]
        step = max(1, BLOCK // rows.shape[-1])
        for start in range(0, len(finite), step):
            block = slice(start, start + step)
            yield block, finite[block].astype(np.float64)


def _log_sum(x: FloatArray) -> FloatArray:
    """Logarithm of the sum of exp over the last axis."""
    peak = x.max(axis=-1)
    return np.asarray(peak + np.log(np.exp(x - peak[:, None]).sum(axis=-1)))


def _squared_error(before: FloatArray, after: Array) -> float:
    """Of the difference, over that of the first."""
    difference, energy = before - after, float(np.vdot(before, before))
    squares = float(np.vdot(difference, difference))
    return squares / energy if energy else (np.inf if squares else 0.0)


__all__ = ["BROKEN", "Divergence"]
