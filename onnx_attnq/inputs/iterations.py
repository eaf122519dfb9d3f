"""How often the body of a Loop or a Scan runs, and on what, as far as that can be told before anything runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnx_attnq.graph import constant, known_op
from onnx_attnq.inputs.known_values import UNKNOWN, Known, of_array


@dataclasses.dataclass(frozen=True, slots=True)
class Iterations:
    """The iterations of a Loop or a Scan.

    Attributes:
        body: What runs in each.
        count: The most that there are.
        all_run: Whether nothing in the body ends them earlier.
        carried: What the first gets of values that each passes on to the next.
        slices: What each gets of the inputs of a Scan.
        leading: How many inputs and outputs of the body come before these: a Loop's number and condition.
    """

    body: ir.Graph
    count: int
    all_run: bool
    carried: tuple[Known, ...]
    slices: tuple[Known, ...] = ()
    leading: tuple[int, int] = (0, 0)

    def entering(self, step: int, carried: Sequence[Known]) -> dict[ir.Value, Known]:
        """The inputs of the body."""
        first = (of_array(np.asarray(step)), of_array(np.asarray(True)))[: self.leading[0]]
        return dict(zip(self.body.inputs, (*first, *carried, *self.slices), strict=False))


def iterations(node: ir.Node, inputs: Sequence[Known]) -> Iterations | None:
    """Those of a Loop or a Scan of which at least one surely runs; None for another node, and where that is unknown."""
    body = node.attributes["body"].as_graph() if known_op(node) in ("Loop", "Scan") else None
    if body is None:
        return None
    if known_op(node) == "Loop":
        given = [*node.inputs, None, None]
        count = sys.maxsize if given[0] is None else _number(inputs[0])
        begins = given[1] is None or _number(inputs[1]) > 0
        all_run = given[0] is not None and _stays_true(body)
        return Iterations(body, count, all_run, tuple(inputs[2:]), leading=(2, 1)) if count > 0 and begins else None
    states = len(inputs) - node.attributes.get_int("num_scan_inputs", 0)
    scanned = inputs[states:]
    axes = node.attributes.get_ints("scan_input_axes", [0] * len(scanned))
    shapes = [item.shape for item in scanned]
    if not shapes or shapes[0] is None or not shapes[0][axes[0]]:
        return None
    slices = tuple(_slice(item, axis) for item, axis in zip(scanned, axes, strict=True))
    return Iterations(body, shapes[0][axes[0]] or 0, True, tuple(inputs[:states]), slices)


def _number(item: Known) -> int:
    """What a value of one element holds, 0 where that is unknown."""
    return 0 if item.value is None or item.value.size != 1 else int(item.value.reshape(()))


def _stays_true(body: ir.Graph) -> bool:
    """Whether the condition that the body of a Loop gives is the one that it gets, or a constant."""
    value: ir.Value | None = body.outputs[0]
    while value is not None and (producer := value.producer()) is not None and known_op(producer) == "Identity":
        value = producer.inputs[0]
    if value is None or value is body.inputs[1]:
        return value is not None
    tensor = constant(value)
    return tensor is not None and bool(tensor.numpy().all())


def _slice(item: Known, axis: int) -> Known:
    shape = item.shape
    if shape is None or item.type is None:
        return UNKNOWN
    kept = [size for place, size in enumerate(shape) if place != axis % len(shape)]
    return Known(onnx.helper.make_tensor_type_proto(item.type.tensor_type.elem_type, kept))


__all__ = ["Iterations", "iterations"]
