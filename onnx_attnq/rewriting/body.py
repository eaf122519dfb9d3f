"""The nodes of a function under construction: what `bodies` is written in."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.scheme import numerics

_STRIDES: Final = tuple(2**power for power in range(1, 24))


class Body:
    """The nodes of a function under construction, written for one opset."""

    def __init__(self, opset: int, *, by_head: bool) -> None:
        self._opset = opset
        self.by_head = by_head
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._constants: dict[float | str | tuple[int, ...], ir.Value] = {}

    def input(self, name: str) -> ir.Value:
        """The function's next input."""
        value = ir.Value(name=name)
        self._inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        node = ir.Node(
            "", op_type, inputs, ir.convenience.convert_attributes(attributes), name=f"{op_type}_{len(self._nodes)}"
        )
        node.outputs[0].name = f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(node)
        return node.outputs[0]

    def affine(self, value: ir.Value, step: ir.Value, shift: ir.Value) -> ir.Value:
        """The quotient value / step, plus shift, without a division for each element."""
        return self.op("Add", self.op("Mul", value, self.op("Reciprocal", step)), shift)

    def byte(self, number: ir.Value | None) -> ir.Value:
        """A whole number from 0 to 255 as QuantizeLinear takes it; None is 0."""
        if number is None:
            return self._constant("zero byte", np.array(0, np.uint8))
        return self.op("Cast", self.op("Squeeze", number), to=ir.DataType.UINT8.value)

    def dequantize(self, codes: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        """The product (codes - zero) * scale, float32."""
        if self._opset >= 19:  # onnx's ReferenceEvaluator does not know DequantizeLinear of the opsets before
            return self.op("DequantizeLinear", codes, scale, *(() if zero is None else (self.byte(zero),)))
        return self.products(codes, scale, zero)

    def products(self, codes: ir.Value, scale: ir.Value, zero: ir.Value | None) -> ir.Value:
        """The same with scale and zero that may be tables."""
        number = self.op("Cast", codes, to=ir.DataType.FLOAT.value)
        return self.op("Mul", number if zero is None else self.op("Sub", number, zero), scale)

    def per_row(self, table: ir.Value) -> ir.Value:
        """A table of shape (1,) or (H, 1, 1) as it broadcasts to what `row` makes."""
        if self._opset >= 13:
            return self.op("Squeeze", table, self._last_axis())
        return self.op("Squeeze", table, axes=[-1])

    def stride(self, value: ir.Value) -> ir.Value:
        """`numerics.sample_stride` of the size of the last axis, int64 of shape (1,)."""
        keys = self.op("Gather", self.op("Shape", value), self._last_axis())
        too_few = self.op("Less", keys, self.whole(*(stride * numerics.SMALLEST_SAMPLE for stride in _STRIDES)))
        fitting = self.op("Where", too_few, self.whole(1), self.whole(*_STRIDES))
        return self.column(self.row("ReduceMax", fitting))

    def every(self, value: ir.Value, axis: int, stride: ir.Value) -> ir.Value:
        """The elements along an axis whose index is a multiple of the stride."""
        return self.op("Slice", value, self.whole(0), self.whole(2**62), self.whole(axis), stride)

    def at_multiples(self, value: ir.Value, stride: ir.Value) -> ir.Value:
        """1 where the index of the last axis is a multiple of the stride, else 0: float32 of shape (L_k,)."""
        keys = self.op("Gather", self.op("Shape", value), self._last_axis())
        zero, one = self.op("Squeeze", self.whole(0)), self.op("Squeeze", self.whole(1))
        index = self.op("Range", zero, self.op("Squeeze", keys), one)
        remainder = self.op("Mod", index, stride)
        return self.op("Cast", self.op("Equal", remainder, self.whole(0)), to=ir.DataType.FLOAT.value)

    def transpose(self, value: ir.Value, parameter: str) -> ir.Value:
        """The value with its axes permuted by an attribute of the function."""
        return self.op("Transpose", value, perm=ir.RefAttr("perm", parameter, ir.AttributeType.INTS))

    def row(self, reduction: str, value: ir.Value) -> ir.Value:
        """ReduceMax or ReduceSum over the last axis, which is gone.

        A tensor whose last axis has size 1 would do, but onnxruntime takes ten times as long for a number's sum,
        product or maximum with it.
        """
        if self._opset >= (13 if reduction == "ReduceSum" else 18):
            return self.op(reduction, value, self._last_axis(), keepdims=0)
        return self.op(reduction, value, axes=[-1], keepdims=0)

    def column(self, rows: ir.Value) -> ir.Value:
        """What `row` made, with a last axis of size 1, which broadcasts to the rows that it was made of."""
        if self._opset >= 13:
            return self.op("Unsqueeze", rows, self._last_axis())
        return self.op("Unsqueeze", rows, axes=[-1])

    def row_max(self, value: ir.Value) -> ir.Value:
        """The largest of each row; NaN where it holds one, which onnxruntime's ReduceMax overlooks; 0 without keys."""
        total = self.row("ReduceSum", value)
        keys = self.op("Gather", self.op("Shape", value), self._last_axis())
        no_maximum = self.op("Or", self.op("IsNaN", total), self.op("Equal", keys, self.whole(0)))
        return self.op("Where", no_maximum, total, self.row("ReduceMax", value))

    def number(self, value: float) -> ir.Value:
        """A float32 constant."""
        return self._constant(value, np.array(value, np.float32))

    def constant_of(self, attribute: str) -> ir.Value:
        """The tensor that an attribute of the function holds."""
        if attribute not in self._constants:
            reference = ir.RefAttr("value", attribute, ir.AttributeType.TENSOR)
            self._constants[attribute] = self.op("Constant", value=reference)
        return self._constants[attribute]

    def _last_axis(self) -> ir.Value:
        return self.whole(-1)

    def whole(self, *numbers: int) -> ir.Value:
        """An int64 constant of one axis."""
        return self._constant(numbers, np.array(numbers, np.int64))

    def _constant(self, key: float | str | tuple[int, ...], array: np.ndarray[Any, Any]) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=ir.AttrTensor("value", ir.tensor(array)))
        return self._constants[key]

    def function(self, domain: str, name: str, output: ir.Value, attributes: list[ir.Attr]) -> ir.Function:
        """The finished function, without what its output does not need; attributes are parameters without a default."""
        needed, nodes = {output}, []
        for node in reversed(self._nodes):
            if node.outputs[0] in needed:
                needed.update(value for value in node.inputs if value is not None)
                nodes.append(node)
        graph = ir.Graph(self._inputs, [output], nodes=nodes[::-1], opset_imports={"": self._opset}, name=name)
        parameters = [ir.Attr(a.name, a.type, None) for a in attributes]
        return ir.Function(domain, name, graph=graph, attributes=parameters)
