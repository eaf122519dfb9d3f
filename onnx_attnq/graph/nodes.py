"""Building nodes: the one way in which decompositions, bodies of functions and the rewriter make new ones.

onnx_ir's Tape records nodes, but names neither them nor their values, and cannot remove any. onnxscript's GraphBuilder
names them, but makes numbers initializers, which functions cannot have, adds metadata of its own to every node, infers
shapes of each by onnx, and would make onnxscript a requirement. So this is a list, `ir.node`, and the few ops whose
arguments moved from attributes to inputs between opset 11 and the newest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Naming: TypeAlias = Callable[[str, int], tuple[str, str]]
"""For an op type and how many nodes there are: the names of a node and of its value."""


class NodeBuilder:
    """A list of new nodes, in no graph yet.

    Standard ops with one output are methods of their names.

    Args:
        opset: Version of the standard ops, 11 or higher.
        naming: Gives the names of new nodes and values.

    >>> b = NodeBuilder(17, lambda op_type, number: (f"{op_type}_{number}", f"{op_type.lower()}_{number}"))
    >>> x = ir.val("x", ir.DataType.FLOAT, ("B", "L"))
    >>> b.Mul(x, b.unsqueeze(b.Neg(x), 0)).name
    'mul_3'
    >>> [node.op_type for node in b.nodes]
    ['Neg', 'Constant', 'Unsqueeze', 'Mul']
    """

    def __init__(self, opset: int, naming: Naming) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self._naming = naming

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        """`op` of a standard op."""
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return functools.partial(self.op, op_type)

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Adds a node with one output and returns that."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Adds a node and returns its outputs."""
        name, value = self._naming(op_type, len(self.nodes))
        values = [ir.Value(name=value if outputs == 1 else f"{value}_{i}") for i in range(outputs)]
        self.nodes.append(ir.node(op_type, inputs, attributes, domain=domain, outputs=values, name=name))
        return values

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """A Constant node: also allowed where initializers are not, in functions."""
        tensor = ir.Tensor(np.asarray(array).astype(dtype.numpy()), dtype=dtype)
        return self.op("Constant", value=ir.AttrTensor("value", tensor))

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(numbers, ir.DataType.INT64)

    def cast(self, value: ir.Value, dtype: ir.DataType, source: ir.DataType | None = None) -> ir.Value:
        """The value in another element type; the value itself if ``source`` is that type already."""
        if source == dtype:
            return value
        result = self.op("Cast", value, to=int(dtype))
        result.dtype = dtype
        return result

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Adds axes of size 1 at these places of the result."""
        return self._with_axes("Unsqueeze", value, axes, as_input=self.opset >= 13)

    def squeeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Removes axes of size 1."""
        return self._with_axes("Squeeze", value, axes, as_input=self.opset >= 13)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of an axis, int64 of shape (1,)."""
        if self.opset < 15:
            return self.Gather(self.Shape(value), self.ints(axis), axis=0)
        return self.Shape(value, start=axis) if axis == -1 else self.Shape(value, start=axis, end=axis + 1)

    def reduce(self, op_type: str, value: ir.Value, axis: int, *, keepdims: bool) -> ir.Value:
        """ReduceMax or ReduceSum over an axis."""
        as_input = self.opset >= (13 if op_type == "ReduceSum" else 18)
        return self._with_axes(op_type, value, (axis,), as_input=as_input, keepdims=int(keepdims))

    def split(self, value: ir.Value, axis: int, sizes: Sequence[int] | int) -> Sequence[ir.Value]:
        """Parts of the given sizes, or that many equal parts."""
        if not isinstance(sizes, int):
            if self.opset >= 13:
                return self.ops("Split", value, self.ints(*sizes), axis=axis, outputs=len(sizes))
            return self.ops("Split", value, axis=axis, split=sizes, outputs=len(sizes))
        if self.opset >= 18:
            return self.ops("Split", value, axis=axis, num_outputs=sizes, outputs=sizes)
        return self.ops("Split", value, axis=axis, outputs=sizes)

    def _with_axes(
        self, op_type: str, value: ir.Value, axes: Sequence[int], *, as_input: bool, **attributes: Any
    ) -> ir.Value:
        if as_input:
            return self.op(op_type, value, self.ints(*axes), **attributes)
        return self.op(op_type, value, axes=axes, **attributes)


__all__ = ["Naming", "NodeBuilder"]
