"""Who uses a value: the nodes that it reaches, through layout operators, or as far as the caller wants to follow."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import onnx_ir as ir

from onnx_attnq.graph import constant

LAYOUT_OPS: Final = frozenset(
    {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Expand", "Tile", "Slice"}
)
"""Operators whose output has the elements of their first input."""

_State = TypeVar("_State")


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """A node that reads a value.

    Attributes:
        node: The node.
        index: Which input of the node the value is.
        constants: Initializers that the function body around the node has as parameters.
    """

    node: ir.Node
    index: int
    constants: Mapping[ir.Value, ir.TensorProtocol]

    def tensor(self, index: int) -> ir.TensorProtocol | None:
        """The weights that the node reads as input ``index``, through a Cast or DequantizeLinear; or None."""
        value = self.input(index)
        while value is not None:
            if value in self.constants:
                return self.constants[value]
            if (tensor := constant(value)) is not None:
                return tensor
            producer = value.producer()
            if producer is None or producer.op_type not in ("Cast", "DequantizeLinear", "Identity"):
                return None
            value = producer.inputs[0]
        return None

    def input(self, index: int) -> ir.Value | None:
        """The node's input ``index``; None where it has none."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    @property
    def is_layout(self) -> bool:
        """Whether the output has the elements of the value."""
        return self.node.domain == "" and self.node.op_type in LAYOUT_OPS and self.index == 0


def uses(model: ir.Model, value: ir.Value) -> Iterator[Use]:
    """Every use of a value, and of what layout operators and model-local functions make of it."""
    for use, _ in walk(model, value, True, lambda use, _: True if use.is_layout else None):
        yield use


def walk(
    model: ir.Model, value: ir.Value, state: _State, step: Callable[[Use, _State], _State | None]
) -> Iterator[tuple[Use, _State]]:
    """Every use of a value and of what follows from it, the nearest first, each value once.

    Model-local functions are entered, and left again.

    Args:
        model: The model, which has the functions.
        value: Where to begin.
        state: What is known about the value.
        step: What is known about the outputs of a use, from what is known about the value; None not to follow them.
    """
    none: Mapping[ir.Value, ir.TensorProtocol] = {}
    pending = collections.deque([(value, none, state)])
    calls: dict[ir.Value, tuple[ir.Value, Mapping[ir.Value, ir.TensorProtocol]]] = {}
    seen = {value}
    while pending:
        current, constants, known = pending.popleft()
        follow: list[tuple[ir.Value, Mapping[ir.Value, ir.TensorProtocol], _State]] = []
        if current in calls:
            follow.append((*calls[current], known))
        for node, index in current.uses():
            use = Use(node, index, constants)
            function = model.functions.get(node.op_identifier())
            if function is None:
                yield use, known
                if (after := step(use, known)) is not None:
                    follow += [(output, constants, after) for output in node.outputs]
                continue
            inner = {
                parameter: tensor
                for position, parameter in enumerate(function.inputs)
                if (tensor := use.tensor(position)) is not None
            }
            for made, output in zip(function.outputs, node.outputs, strict=False):
                calls.setdefault(made, (output, constants))
            follow += [(parameter, {**constants, **inner}, known) for parameter in function.inputs[index : index + 1]]
        for item in follow:
            if item[0] not in seen:
                seen.add(item[0])
                pending.append(item)


__all__ = ["LAYOUT_OPS", "Use", "uses", "walk"]
