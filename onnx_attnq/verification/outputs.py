"""How far an output of two models is apart, over all samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.inputs import MASK_NAMES, Sample, attention_mask_of
from onnx_attnq.verification.deviation import Deviation, deviation_of

QUANTILES: Final = {"median_abs": 0.5, "p90_abs": 0.9, "p99_abs": 0.99, "p999_abs": 0.999}
"""Quantiles of the absolute differences that are reported, by name."""

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class OutputDeviation:
    """How far one output of two models is apart, over all samples.

    Attributes:
        deviation: Figures of the elements that are finite in both.
        quantiles: Of their absolute differences, by the names of `QUANTILES`.
        far: Number of elements for which not ``abs(b − a)`` <= atol + rtol · ``abs(a)``; 0 without such a bound.
        shapes: For each sample in which the shapes differ, a sentence with both; its values are not compared.
    """

    deviation: Deviation
    quantiles: dict[str, float]
    far: int = 0
    shapes: tuple[str, ...] = ()

    def figure(self, name: str) -> float | None:
        """A figure by its name; None for one that the output does not have."""
        if name in self.quantiles:
            return self.quantiles[name]
        value: float | None = getattr(self.deviation, name)
        return value

    def to_json(self) -> dict[str, Any]:
        """All figures by name."""
        return {
            **self.deviation.to_json(),
            **self.quantiles,
            "far": self.far,
            "nan_or_infinite_differ": self.deviation.one_sided,
            "shapes_differ": list(self.shapes),
        }


class OutputComparison:
    """One output of two models, compared sample by sample.

    Args:
        distribution: The last axis holds logits or probabilities.
        rtol: Relative tolerance of each element, or None.
        atol: Absolute tolerance of each element, or None.
        masks: Inputs that say which rows of the output are padding, as `token_masks` gives them.

    >>> output = OutputComparison(rtol=0.1)
    >>> output.add(np.array([1.0, np.nan, 3.0]), np.array([1.5, np.nan, np.inf]))
    >>> found = output.result()
    >>> found.far, found.deviation.one_sided, found.quantiles["median_abs"]
    (1, 1, 0.5)
    """

    def __init__(
        self,
        distribution: bool = False,
        rtol: float | None = None,
        atol: float | None = None,
        masks: Sequence[str] = (),
    ) -> None:
        self._distribution = distribution
        self._masks = masks
        self._rtol, self._atol = rtol, atol
        self._total = Deviation()
        self._far = 0
        self._shapes: list[str] = []
        self._differences: list[npt.NDArray[np.float32]] = []

    def add(self, a: Array, b: Array, sample: Sample | None = None) -> None:
        """Compare another sample; the figures leave out what the sample's mask calls padding."""
        if (shape_a := _shape(a)) != (shape_b := _shape(b)):
            self._shapes.append(f"the shape is {shape_a} in A and {shape_b} in B")
            return
        a, b = _numbers(a), _numbers(b)
        if a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":
            # Strings and what else is no number: 1 where equal, so that the relative error is of those that differ.
            a, b = np.ones(a.shape), (a == b).astype(np.float64)
        tokens = None if sample is None else real_tokens(a.shape, sample, self._masks)
        if tokens is not None:
            padding = deviation_of(a[~tokens], b[~tokens])
            a, b = a[tokens], b[tokens]
            self._total = self._total.merge(Deviation(one_sided=padding.one_sided, new_nan=padding.new_nan))
        self._total = self._total.merge(deviation_of(a, b, distribution=self._distribution))
        finite = np.isfinite(a) & np.isfinite(b)
        x = a[finite].astype(np.float64)
        difference = np.abs(x - b[finite])
        if self._rtol is not None or self._atol is not None:
            self._far += int((difference > (self._atol or 0.0) + (self._rtol or 0.0) * np.abs(x)).sum())
        self._differences.append(difference.astype(np.float32))

    def result(self) -> OutputDeviation:
        """All samples together."""
        every = np.concatenate(self._differences) if self._differences else np.zeros(0, np.float32)
        values = np.quantile(every, list(QUANTILES.values())) if every.size else np.zeros(len(QUANTILES))
        quantiles = dict(zip(QUANTILES, map(float, values), strict=True))
        return OutputDeviation(self._total, quantiles, self._far, tuple(self._shapes))


def _shape(array: Array) -> list[Any]:
    """The shape; of a sequence, those of its tensors."""
    return [list(item.shape) for item in array] if _is_sequence(array) else list(array.shape)


def _numbers(array: Array) -> Array:
    """As a type that numpy computes with: bfloat16 and 8-bit floats as float32, a sequence as one row."""
    if _is_sequence(array):
        return np.concatenate([_numbers(item).ravel() for item in array]) if array.size else np.zeros(0, np.float32)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _is_sequence(array: Array) -> bool:
    return array.dtype.kind == "O" and all(isinstance(item, np.ndarray) for item in array.flat)


def is_distribution(value: ir.Value) -> bool:
    """Whether an output's last axis holds logits or probabilities, by its name or the op that computes it."""
    node = value.producer()
    name = (value.name or "").lower()
    return "logit" in name or "prob" in name or (node is not None and node.op_type in ("Softmax", "LogSoftmax"))


def token_masks(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """For each output, the masks of padding that are about its second axis: the model gives both lengths one name.

    Where a length is a number, or has no name or another one, no mask is: an output that only happens to have the
    mask's shape, a cache of as many heads as there are tokens, would be left out of the comparison. Figures that
    include padding hide nothing.
    """
    masks = {str(v.name): v.shape for v in model.graph.inputs if v.name in MASK_NAMES}
    return {
        str(value.name): tuple(
            name
            for name, shape in masks.items()
            if _length(shape) is not None and _length(shape) == _length(value.shape)
        )
        for value in model.graph.outputs
    }


class FloatOutputs:
    """Which outputs of a model can be compared as numbers, one sample at a time.

    Args:
        model: The original.
    """

    def __init__(self, model: ir.Model) -> None:
        self.distributions = frozenset(str(value.name) for value in model.graph.outputs if is_distribution(value))
        self._masks = token_masks(model)

    def pairs(
        self, expected: Mapping[str, Array], found: Mapping[str, Array], sample: Sample
    ) -> Iterator[tuple[str, Array, Array]]:
        """The name of each output that is float and has one shape in both, and both without padding."""
        for name, before in expected.items():
            if before.dtype.kind != "f" or before.shape != found[name].shape:
                continue
            after, tokens = found[name], real_tokens(before.shape, sample, self._masks[name])
            yield (name, before, after) if tokens is None else (name, before[tokens], after[tokens])

    def deviations(
        self, expected: Mapping[str, Array], found: Mapping[str, Array], sample: Sample
    ) -> Iterator[Deviation]:
        """How far each of the `pairs` is apart."""
        for name, before, after in self.pairs(expected, found, sample):
            yield deviation_of(before, after, distribution=name in self.distributions)


def _length(shape: ir.Shape | None) -> str | None:
    """The name of the second axis; None where it has none."""
    axis = shape[1] if shape is not None and len(shape) > 1 else None
    return axis.value if isinstance(axis, ir.SymbolicDim) else None


def real_tokens(shape: tuple[int, ...], sample: Sample, masks: Sequence[str]) -> npt.NDArray[np.bool_] | None:
    """The mask of real tokens for an output of this shape and these `token_masks`; None where all of it counts.

    A text that is all padding is compared as a whole: masking it would leave nothing.
    """
    mask = attention_mask_of({name: sample[name] for name in masks if name in sample})
    if mask is None or mask.ndim != 2 or shape[:2] != mask.shape:
        return None
    return np.asarray(mask | ~mask.any(axis=1, keepdims=True))


__all__ = [
    "QUANTILES",
    "FloatOutputs",
    "OutputComparison",
    "OutputDeviation",
    "is_distribution",
    "real_tokens",
    "token_masks",
]
