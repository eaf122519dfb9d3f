"""Whether a model fits into memory on some inputs, as far as shape inference can tell: asked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.run import machine_memory

_SHARE: Final = 2
"""One value may take this part of the memory: most ops need two, what they read and what they write."""


def check_memory(
    check: ShapeCheck,
    inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Refuse inputs from which a graph computes a value that this machine cannot hold.

    A file of a few bytes may ask for any amount of memory; the system ends the process that takes it, without a word.

    Args:
        check: The graph.
        inputs: Type and shape by name.
        values: What some of them hold, from which sizes are computed.

    Raises:
        InvalidData: The line names the node and the shape.
    """
    found = check.largest(inputs, values)
    limit = machine_memory() // _SHARE
    if found.nbytes > limit:
        raise InvalidData(
            f"{found.node} makes a value of shape {found.shape}, {found.nbytes >> 20} MiB, which is too large to be "
            f"computed (limit {limit >> 20} MiB, half of this machine's memory); give smaller inputs"
        )


def check_samples_memory(check: ShapeCheck, samples: tuple[Mapping[str, npt.NDArray[Any]], ...]) -> None:
    """The same for the largest of some samples."""
    if samples:
        largest = max(samples, key=lambda sample: sum(math.prod(array.shape) for array in sample.values()))
        check_memory(check, {name: (array.dtype, array.shape) for name, array in largest.items()}, largest)


__all__ = ["check_memory", "check_samples_memory"]
