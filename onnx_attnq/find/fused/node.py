"""Reads the inputs, outputs and attributes of a fused node, and declines what is not understood."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.fused.outcome import Decline
from onnx_attnq.graph import certain_rank_of, dtype_of, signature_of

FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


class FusedNode:
    """A fused attention node, read with named inputs and outputs.

    Args:
        node: The node, of an op that `graph.signature_of` describes.

    Raises:
        Decline: There is an input or attribute that is not understood.
    """

    def __init__(self, node: ir.Node) -> None:
        signature = signature_of(node)
        assert signature is not None
        inputs = signature.inputs
        self._node = node
        self._inputs = {one.name: value for one, value in zip(inputs, node.inputs, strict=False)}
        self._ranks = {one.name: one.ranks for one in inputs}
        if len(node.inputs) > len(inputs) and any(value is not None for value in node.inputs[len(inputs) :]):
            raise Decline(f"{node.op_type} has more inputs than the {len(inputs)} that are understood")
        for name, attribute in node.attributes.items():
            if name not in signature.attributes:
                raise Decline(f"{node.op_type} has the attribute {name!r}, which is not understood")
            if attribute.is_ref():
                raise Decline(f"attribute {name!r} refers to an attribute of the function; inline the function first")

    def get(self, name: str) -> ir.Value | None:
        """An optional input."""
        value = self._inputs.get(name)
        return None if value is None or value.name == "" else value

    def require(self, name: str) -> ir.Value:
        """An input that must be there."""
        if (value := self.get(name)) is None:
            raise Decline(f"{self._node.op_type} has no input {name!r}")
        return value

    def refuse(self, name: str, why: str) -> None:
        """Declines if an input is there."""
        if self.get(name) is not None:
            raise Decline(f"{self._node.op_type} has the input {name!r}: {why}")

    def wants(self, output: int) -> bool:
        """True when the output of this number has a name."""
        return output < len(self._node.outputs) and bool(self._node.outputs[output].name)

    def integer(self, name: str, default: int = 0) -> int:
        """An int attribute."""
        attribute = self._node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        attribute = self._node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def number(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        attribute = self._node.attributes.get(name)
        return default if attribute is None else attribute.as_float()

    def positive(self, name: str) -> int:
        """An int attribute that must be there and above 0: a number of heads."""
        if (found := self.integer(name)) <= 0:
            raise Decline(f"{self._node.op_type} needs a positive {name!r}, not {found}")
        return found

    def integers(self, name: str) -> tuple[int, ...]:
        """An ints attribute; empty if it is absent."""
        attribute = self._node.attributes.get(name)
        return () if attribute is None else tuple(attribute.as_ints())

    def rank(self, name: str, allowed: Collection[int] = ()) -> int:
        """The rank of an input that is there, which must be known and one of those allowed, or of the op's."""
        allowed = allowed or self._ranks[name]
        found = certain_rank_of(self.require(name))
        if found is None and len(allowed) == 1:
            (found,) = allowed  # the operator defines no other
        if found is None:
            raise Decline(f"the rank of input {name!r} is unknown; run shape inference on the model first")
        if found not in allowed:
            raise Decline(f"input {name!r} has rank {found}, which {self._node.op_type} does not define")
        return found

    def element_type(self, *names: str) -> ir.DataType:
        """The floating-point type that the inputs of these names share."""
        values = [self.get(name) for name in names]
        types = (dtype_of(value) for value in (*values, self._node.outputs[0]))
        dtype = next((found for found in types if found is not None), None)
        if dtype is None:
            raise Decline(f"the element type of input {names[0]!r} is unknown; run shape inference on the model first")
        if dtype not in FLOATS:
            raise Decline(f"{self._node.op_type} on {dtype.name} is not understood")
        if any(value is not None and value.dtype not in (None, dtype) for value in values):
            raise Decline(f"the inputs {', '.join(names)} differ in element type")
        return dtype

    def both_or_none(self, first: str, second: str) -> tuple[ir.Value, ir.Value] | None:
        """Two inputs that come together."""
        a, b = self.get(first), self.get(second)
        if a is not None and b is not None:
            return a, b
        if a is not None or b is not None:
            raise Decline(f"inputs {first!r} and {second!r} must come together")
        return None


__all__ = ["FusedNode"]
