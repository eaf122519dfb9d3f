"""Of samples that are batches as many rows as it takes to measure heads, which is done hundreds of times for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from onnx_attnq.inputs import Sample

ENOUGH: Final = 256
"""Values of an input, the tokens of a text, after which no more rows of a batch are taken; one row is always taken."""


def first_rows(model: ir.Model, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with their first rows only, where all inputs of the model name their first axis alike: the batch.

    >>> def value(name):
    ...     return ir.Value(name=name, shape=ir.Shape(["batch", "tokens"]), type=ir.TensorType(ir.DataType.INT64))
    >>> ids, mask = value("input_ids"), value("attention_mask")
    >>> import numpy as np
    >>> batch = {"input_ids": np.zeros((8, 111), np.int64), "attention_mask": np.ones((8, 111), np.int64)}
    >>> (cut,) = first_rows(ir.Model(ir.Graph([ids, mask], [ids], nodes=[]), ir_version=10), [batch])
    >>> cut["input_ids"].shape, cut["attention_mask"].shape
    ((2, 111), (2, 111))
    """
    shapes = [value.shape for value in model.graph.inputs if value.const_value is None]
    axes = [shape[0] if shape is not None and len(shape) else None for shape in shapes]
    names = {axis.value if isinstance(axis, ir.SymbolicDim) else None for axis in axes}
    return tuple(samples) if len(names) != 1 or None in names else tuple(map(_first_rows, samples))


def _first_rows(sample: Sample) -> Sample:
    largest = max(array.size // max(1, len(array)) for array in sample.values())
    rows = max(1, ENOUGH // max(1, largest))
    return {name: array[:rows] for name, array in sample.items()}


__all__ = ["ENOUGH", "first_rows"]
