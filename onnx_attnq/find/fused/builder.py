"""Builds the nodes of a decomposition for one opset from 11 to the newest.

Between opset 11 and 24 several ops moved arguments from attributes to inputs. The methods here hide
that, so that the decompositions are written once. Nothing is in a graph before `decompose` puts it there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.graph import dtype_of, size_of

Extent: TypeAlias = int | ir.Value
"""The size of an axis: a number where the model fixes it, else an int64 tensor of shape [1]."""

LOWEST_OPSET: Final = 11
"""Slice with inputs, negative axes and Range are there from opset 11 on."""


class NodeBuilder:
    """A list of new nodes whose values are named ``{prefix}/{op}_{number}``.

    Args:
        opset: Version of the standard ops, 11 or higher.
        prefix: A name that is unique in the model; the name of an output of the node to be replaced.
    """

    def __init__(self, opset: int, prefix: str) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self._prefix = prefix
        self._branches = itertools.count()

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, **attributes: int | float | Sequence[int]
    ) -> Sequence[ir.Value]:
        """Adds a standard node and returns its outputs."""
        attrs = [ir.convenience.convert_attributes({name: value})[0] for name, value in attributes.items()]
        return self._add(op_type, inputs, attrs, outputs)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: int | float | Sequence[int]) -> ir.Value:
        """Adds a standard node with one output and returns that."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    @staticmethod
    def describe(value: ir.Value, source: ir.Value, *shape: int | str | None) -> ir.Value:
        """Notes what is known about a new value: its shape, and the element type of what it was made of."""
        if (dtype := dtype_of(source)) is not None:
            value.dtype, value.shape = dtype, ir.Shape(shape)
        return value

    def drop_unused(self, results: Sequence[ir.Value]) -> None:
        """Takes back the nodes that lead to none of the results."""
        kept: list[ir.Node] = []
        for node in reversed(self.nodes):
            if any(output.uses() or output in results for output in node.outputs):
                kept.append(node)
            else:
                node.resize_inputs(0)
        self.nodes[:] = reversed(kept)

    def discard(self) -> None:
        """Takes back every use of the model's values by the nodes built so far."""
        for node in self.nodes:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    for inner in attribute.as_graph():
                        inner.resize_inputs(0)
            node.resize_inputs(0)
        self.nodes.clear()

    # Branches.

    def branch(self) -> NodeBuilder:
        """A builder of nodes that are computed only if `choose` decides so; they may use all that is there before."""
        return NodeBuilder(self.opset, f"{self._prefix}/branch_{next(self._branches)}")

    def choose(
        self, condition: ir.Value, then: NodeBuilder, when_true: ir.Value, other: NodeBuilder, when_false: ir.Value
    ) -> ir.Value:
        """An If: the value of one branch or of the other."""

        def graph(branch: NodeBuilder, result: ir.Value) -> ir.Graph:
            return ir.Graph([], [result], nodes=branch.nodes, name=branch._prefix)

        attributes = (
            ir.AttrGraph("then_branch", graph(then, when_true)),
            ir.AttrGraph("else_branch", graph(other, when_false)),
        )
        return self._add("If", (condition,), attributes, 1)[0]

    # Constants.

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """A Constant node: also allowed where initializers are not, in functions."""
        numpy_array = np.asarray(array).astype(dtype.numpy())
        tensor = ir.Tensor(numpy_array, dtype=dtype)
        value = self._add("Constant", (), [ir.AttrTensor("value", tensor)], 1)[0]
        value.dtype, value.shape = dtype, ir.Shape(numpy_array.shape)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(numbers, ir.DataType.INT64)

    # Sizes of axes.

    def extent(self, value: ir.Value, axis: int) -> Extent:
        """The size of an axis (counted from the front) of a value."""
        if (fixed := size_of(value, axis)) is not None:
            return fixed
        return self.op("Gather", self.op("Shape", value), self.ints(axis), axis=0)

    def vector(self, *parts: Extent) -> ir.Value:
        """The sizes as one int64 vector: a shape, or starts and ends of slices."""
        numbers = [part for part in parts if isinstance(part, int)]
        if len(numbers) == len(parts):
            return self.ints(*numbers)
        values = [self.ints(part) if isinstance(part, int) else part for part in parts]
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=0)

    def add(self, a: Extent, b: Extent) -> Extent:
        """The sum of two sizes."""
        return a + b if isinstance(a, int) and isinstance(b, int) else self.op("Add", self.vector(a), self.vector(b))

    def subtract(self, a: Extent, b: Extent) -> Extent:
        """The difference of two sizes."""
        return a - b if isinstance(a, int) and isinstance(b, int) else self.op("Sub", self.vector(a), self.vector(b))

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The greater of two int64 tensors; Max takes integers only from opset 12 on."""
        return self.op("Where", self.op("Less", a, b), b, a)

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller of two int64 tensors."""
        return self.op("Where", self.op("Less", a, b), a, b)

    def arange(self, length: Extent) -> ir.Value:
        """0, 1, … length - 1, int64."""
        if isinstance(length, int):
            return self.ints(*range(length))
        zero, one = self.constant(0, ir.DataType.INT64), self.constant(1, ir.DataType.INT64)
        return self.op("Range", zero, self.squeeze(length, 0), one)

    # Layout.

    def cast(self, value: ir.Value, dtype: ir.DataType, source: ir.DataType | None = None) -> ir.Value:
        """The value in another element type; the value itself if ``source`` is that type already."""
        if source == dtype:
            return value
        result = self.op("Cast", value, to=int(dtype))
        result.dtype = dtype
        return result

    def reshape(self, value: ir.Value, *shape: Extent) -> ir.Value:
        """Reshape; 0 copies an axis, -1 is what remains."""
        return self.op("Reshape", value, self.vector(*shape))

    def transpose(self, value: ir.Value, *perm: int) -> ir.Value:
        """Transpose."""
        return self.op("Transpose", value, perm=perm)

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Adds axes of size 1 at these places of the result."""
        return self._with_axes("Unsqueeze", value, axes, as_input=self.opset >= 13)

    def squeeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Removes axes of size 1."""
        return self._with_axes("Squeeze", value, axes, as_input=self.opset >= 13)

    def reduce_max(self, value: ir.Value) -> ir.Value:
        """The maximum over the last axis, which stays with size 1."""
        return self._with_axes("ReduceMax", value, (-1,), as_input=self.opset >= 18, keepdims=1)

    def slice(self, value: ir.Value, axis: int, start: Extent, end: Extent, step: int = 1) -> ir.Value:
        """value[start:end:step] along one axis."""
        return self.op(
            "Slice", value, self.vector(start), self.vector(end), self.ints(axis), *([self.ints(step)] * (step != 1))
        )

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
        self, op_type: str, value: ir.Value, axes: Sequence[int], *, as_input: bool, **attributes: int
    ) -> ir.Value:
        if as_input:
            return self.op(op_type, value, self.ints(*axes), **attributes)
        return self.op(op_type, value, axes=axes, **attributes)

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Sequence[Any], outputs: int
    ) -> Sequence[ir.Value]:
        name = f"{self._prefix}/{op_type}_{len(self.nodes)}"
        values = [ir.Value(name=name if outputs == 1 else f"{name}_{i}") for i in range(outputs)]
        self.nodes.append(ir.Node("", op_type, inputs, attributes, outputs=values, name=name))
        return values


__all__ = ["LOWEST_OPSET", "Extent", "NodeBuilder"]
