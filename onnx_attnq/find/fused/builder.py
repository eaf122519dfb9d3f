"""Builds the nodes of a decomposition: sizes that may be known, branches, and taking back what is not needed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.graph import NodeBuilder, dtype_of, size_of, subgraphs

Extent: TypeAlias = int | ir.Value
"""The size of an axis: a number where the model fixes it, else an int64 tensor of shape [1]."""

LOWEST_OPSET: Final = 11
"""Slice with inputs, negative axes and Range are there from opset 11 on."""


class FusedBuilder(NodeBuilder):
    """The nodes that stand for a fused op; their values are named ``{prefix}/{op}_{number}``.

    Nothing is in a graph before `decompose` puts it there.

    Args:
        opset: Version of the standard ops, `LOWEST_OPSET` or higher.
        prefix: A name that is unique in the model; the name of an output of the node to be replaced.
    """

    def __init__(self, opset: int, prefix: str) -> None:
        super().__init__(opset, lambda op_type, number: (f"{prefix}/{op_type}_{number}",) * 2)
        self._prefix = prefix
        self._branches = itertools.count()
        self._extents: dict[tuple[ir.Value, int], Extent] = {}

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
            for _, branch in subgraphs(node):
                for inner in branch:
                    inner.resize_inputs(0)
            node.resize_inputs(0)
        self.nodes.clear()

    # Branches.

    def branch(self) -> FusedBuilder:
        """A builder of nodes that are computed only if `choose` decides so; they may use all that is there before."""
        return FusedBuilder(self.opset, f"{self._prefix}/branch_{next(self._branches)}")

    def choose(
        self,
        condition: ir.Value,
        then: FusedBuilder,
        when_true: Sequence[ir.Value],
        other: FusedBuilder,
        when_false: Sequence[ir.Value],
    ) -> Sequence[ir.Value]:
        """An If: the values of one branch or of the other."""

        def graph(branch: FusedBuilder, results: Sequence[ir.Value]) -> ir.Graph:
            return ir.Graph([], results, nodes=branch.nodes, name=branch._prefix)

        then_branch, else_branch = graph(then, when_true), graph(other, when_false)
        return self.ops("If", condition, outputs=len(when_true), then_branch=then_branch, else_branch=else_branch)

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """`NodeBuilder.constant`, with its type and shape."""
        value = super().constant(array, dtype)
        value.dtype, value.shape = dtype, ir.Shape(np.shape(array))
        return value

    # Sizes of axes.

    def extent(self, value: ir.Value, axis: int) -> Extent:
        """The size of an axis (counted from the front) of a value; each is computed once."""
        if (fixed := size_of(value, axis)) is not None:
            return fixed
        if (value, axis) not in self._extents:
            self._extents[value, axis] = self.size(value, axis)
        return self._extents[value, axis]

    def note_extents(self, value: ir.Value, extents: Mapping[int, Extent]) -> None:
        """Tells the sizes of axes that have been computed already."""
        self._extents.update({(value, axis): size for axis, size in extents.items()})

    def vector(self, *parts: Extent) -> ir.Value:
        """The sizes as one int64 vector: a shape, or starts and ends of slices."""
        numbers = [part for part in parts if isinstance(part, int)]
        if len(numbers) == len(parts):
            return self.ints(*numbers)
        values = [self.ints(part) if isinstance(part, int) else part for part in parts]
        return values[0] if len(values) == 1 else self.Concat(*values, axis=0)

    def add(self, a: Extent, b: Extent) -> Extent:
        """The sum of two sizes."""
        return a + b if isinstance(a, int) and isinstance(b, int) else self.Add(self.vector(a), self.vector(b))

    def subtract(self, a: Extent, b: Extent) -> Extent:
        """The difference of two sizes."""
        return a - b if isinstance(a, int) and isinstance(b, int) else self.Sub(self.vector(a), self.vector(b))

    def times(self, a: Extent, factor: int) -> Extent:
        """A multiple of a size."""
        return a * factor if isinstance(a, int) else self.Mul(a, self.ints(factor))

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The greater of two int64 tensors; Max takes integers only from opset 12 on."""
        return self.Max(a, b) if self.opset >= 12 else self.Where(self.Less(a, b), b, a)

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller of two int64 tensors."""
        return self.Min(a, b) if self.opset >= 12 else self.Where(self.Less(a, b), a, b)

    def arange(self, length: Extent) -> ir.Value:
        """0, 1, … length - 1, int64."""
        if isinstance(length, int):
            return self.ints(*range(length))
        zero, one = self.constant(0, ir.DataType.INT64), self.constant(1, ir.DataType.INT64)
        return self.Range(zero, self.squeeze(length, 0), one)

    # Layout.

    def reshape(self, value: ir.Value, *shape: Extent) -> ir.Value:
        """Reshape; 0 copies an axis, -1 is what remains."""
        return self.Reshape(value, self.vector(*shape))

    def exactly(self, value: ir.Value, *sizes: Extent) -> ir.Value:
        """Reshape to sizes that may be 0, too: what 0 and -1 stand for cannot be told where an axis is empty.

        Before opset 14 there is no such Reshape; a 0 copies the axis at its place, which is empty as well in what is
        decomposed there. onnxruntime makes -1 of a size that is computed, but for this one.
        """
        fixed = all(isinstance(size, int) and size for size in sizes)
        zeros = {} if fixed or self.opset < 14 else {"allowzero": 1}
        return self.Reshape(value, self.vector(*sizes), **zeros)

    def transpose(self, value: ir.Value, *perm: int) -> ir.Value:
        """Transpose."""
        return self.Transpose(value, perm=perm)

    def slice(self, value: ir.Value, axis: int, start: Extent, end: Extent, step: int = 1) -> ir.Value:
        """value[start:end:step] along one axis."""
        return self.op(
            "Slice", value, self.vector(start), self.vector(end), self.ints(axis), *([self.ints(step)] * (step != 1))
        )


__all__ = ["LOWEST_OPSET", "Extent", "FusedBuilder"]
