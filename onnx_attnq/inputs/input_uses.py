"""Who uses an input: the operators that it reaches unchanged but for its type and layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

import onnx_ir as ir

LAYOUT_OPS: Final = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity"})
"""Operators whose output has the elements of their first input."""


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """A node that reads a value.

    Attributes:
        node: The node.
        index: Which input of the node the value is.
        constants: Initializers that a function body, in which the node stands, has as parameters.
    """

    node: ir.Node
    index: int
    constants: Mapping[ir.Value, ir.TensorProtocol]

    def tensor(self, index: int) -> ir.TensorProtocol | None:
        """The weights that the node reads as input ``index``, through a Cast or DequantizeLinear; or None."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        while value is not None:
            if value in self.constants:
                return self.constants[value]
            if value.const_value is not None:
                return value.const_value
            producer = value.producer()
            if producer is None or producer.op_type not in ("Cast", "DequantizeLinear", "Identity", "Constant"):
                return None
            if producer.op_type == "Constant":
                return ir.convenience.get_const_tensor(value)
            value = producer.inputs[0]
        return None


def uses(model: ir.Model, value: ir.Value) -> Iterator[Use]:
    """Every use of a value, and of what layout operators and model-local functions make of it."""
    pending: list[tuple[ir.Value, Mapping[ir.Value, ir.TensorProtocol]]] = [(value, {})]
    seen = {value}
    while pending:
        current, constants = pending.pop()
        for node, index in current.uses():
            use = Use(node, index, constants)
            function = model.functions.get(node.op_identifier())
            if function is not None:
                inner = {
                    parameter: tensor
                    for position, parameter in enumerate(function.inputs)
                    if (tensor := use.tensor(position)) is not None
                }
                scope: Mapping[ir.Value, ir.TensorProtocol] = {**constants, **inner}
                follow = list(function.inputs[index : index + 1])
            else:
                yield use
                layout = node.domain == "" and node.op_type in LAYOUT_OPS and index == 0
                scope = constants
                follow = list(node.outputs) if layout else []
            for following in follow:
                if following not in seen:
                    seen.add(following)
                    pending.append((following, scope))


__all__ = ["LAYOUT_OPS", "Use", "uses"]
