"""The nodes of a function under construction: what `bodies` is written in."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.graph import NodeBuilder
from onnx_attnq.scheme import numerics

_STRIDES: Final = tuple(2**power for power in range(1, 24))


class Body(NodeBuilder):
    """The nodes of a function under construction, written for one opset; it has each constant once."""

    def __init__(self, opset: int, *, by_head: bool) -> None:
        super().__init__(opset, lambda op_type, number: (f"{op_type}_{number}", f"{op_type.lower()}_{number}"))
        self.by_head = by_head
        self._inputs: list[ir.Value] = []
        self._constants: dict[tuple[str, ir.DataType | None], ir.Value] = {}

    def input(self, name: str) -> ir.Value:
        """The function's next input."""
        value = ir.Value(name=name)
        self._inputs.append(value)
        return value

    def affine(self, value: ir.Value, step: ir.Value, shift: ir.Value) -> ir.Value:
        """The quotient value / step, plus shift, without a division for each element."""
        return self.Add(self.Mul(value, self.Reciprocal(step)), shift)

    def byte(self, number: ir.Value | None) -> ir.Value:
        """A whole number from 0 to 255 as QuantizeLinear takes it; None is 0."""
        if number is None:
            return self.constant(0, ir.DataType.UINT8)
        return self.Cast(self.Squeeze(number), to=ir.DataType.UINT8.value)

    def dequantize(self, codes: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        """The product (codes - zero) * scale, float32."""
        if self.opset >= 19:  # onnx's ReferenceEvaluator does not know DequantizeLinear of the opsets before
            return self.DequantizeLinear(codes, scale, *(() if zero is None else (self.byte(zero),)))
        return self.products(codes, scale, zero)

    def products(self, codes: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        """The same with scale and zero that may be tables."""
        number = self.Cast(codes, to=ir.DataType.FLOAT.value)
        return self.Mul(number if zero is None else self.Sub(number, zero), scale)

    def per_row(self, table: ir.Value) -> ir.Value:
        """A table of shape (1,) or (H, 1, 1) as it broadcasts to what `row` makes."""
        return self.squeeze(table, -1)

    def stride(self, value: ir.Value) -> ir.Value:
        """`numerics.sample_stride` of the size of the last axis, int64 of shape (1,)."""
        keys = self.size(value, -1)
        too_few = self.Less(keys, self.ints(*(stride * numerics.SMALLEST_SAMPLE for stride in _STRIDES)))
        fitting = self.Where(too_few, self.ints(1), self.ints(*_STRIDES))
        return self.reduce("ReduceMax", fitting, -1, keepdims=True)

    def every(self, value: ir.Value, axis: int, stride: ir.Value) -> ir.Value:
        """The elements along an axis whose index is a multiple of the stride."""
        return self.Slice(value, self.ints(0), self.ints(2**62), self.ints(axis), stride)

    def at_multiples(self, value: ir.Value, stride: ir.Value) -> ir.Value:
        """1 where the index of the last axis is a multiple of the stride, else 0: float32 of shape (L_k,)."""
        zero, one = (self.constant(number, ir.DataType.INT64) for number in (0, 1))
        index = self.Range(zero, self.Squeeze(self.size(value, -1)), one)
        remainder = self.Mod(index, stride)
        return self.Cast(self.Equal(remainder, self.ints(0)), to=ir.DataType.FLOAT.value)

    def transpose(self, value: ir.Value, parameter: str) -> ir.Value:
        """The value with its axes permuted by an attribute of the function."""
        return self.Transpose(value, perm=ir.RefAttr("perm", parameter, ir.AttributeType.INTS))

    def row(self, reduction: str, value: ir.Value) -> ir.Value:
        """ReduceMax or ReduceSum over the last axis, which is gone.

        A tensor whose last axis has size 1 would do, but onnxruntime takes ten times as long for a number's sum,
        product or maximum with it.
        """
        return self.reduce(reduction, value, -1, keepdims=False)

    def column(self, rows: ir.Value) -> ir.Value:
        """What `row` made, with a last axis of size 1, which broadcasts to the rows that it was made of."""
        return self.unsqueeze(rows, -1)

    def nan_of(self, rows: ir.Value) -> ir.Value:
        """NaN where a row is, else what any Max takes away: onnxruntime's ReduceMax and QuantizeLinear overlook NaN."""
        return self.Min(rows, self.number(-np.inf))

    def number(self, value: float) -> ir.Value:
        """A float32 constant."""
        return self.constant(value, ir.DataType.FLOAT)

    def constant(self, array: npt.ArrayLike, dtype: ir.DataType) -> ir.Value:
        """`NodeBuilder.constant`, once for each."""
        key = str(array), dtype
        if key not in self._constants:
            self._constants[key] = super().constant(array, dtype)
        return self._constants[key]

    def constant_of(self, attribute: str) -> ir.Value:
        """The tensor that an attribute of the function holds."""
        key = attribute, None
        if key not in self._constants:
            self._constants[key] = self.Constant(value=ir.RefAttr("value", attribute, ir.AttributeType.TENSOR))
        return self._constants[key]

    def function(self, domain: str, name: str, output: ir.Value, attributes: list[ir.Attr]) -> ir.Function:
        """The finished function, without what its output does not need; attributes are parameters without a default."""
        needed, nodes = {output}, []
        for node in reversed(self.nodes):
            if node.outputs[0] in needed:
                needed.update(value for value in node.inputs if value is not None)
                nodes.append(node)
        graph = ir.Graph(self._inputs, [output], nodes=nodes[::-1], opset_imports={"": self.opset}, name=name)
        parameters = [ir.Attr(a.name, a.type, None) for a in attributes]
        return ir.Function(domain, name, graph=graph, attributes=parameters)
