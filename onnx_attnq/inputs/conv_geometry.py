"""How large an image or how long a signal must be for the convolutions that read it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from onnx_attnq.inputs.uses import Use, uses, walk

PATCHES: Final = 8
"""Patches along an edge of an image, or frames of a signal, where the model does not fix them."""

_END_OF_FRONT: Final = frozenset({"MatMul", "Gemm", "MatMulInteger", "Shape", "Softmax"})
"""Where a convolutional front end ends, at the latest."""


def image_shape(model: ir.Model, value: ir.Value) -> tuple[int, int, int] | None:
    """Channels, height and width for an image that is cut into patches; None when no 2-D convolution reads it.

    A table of learned positions, one for each patch and perhaps one more for the class token, tells the size that the
    model was made for. Otherwise there are `PATCHES` along an edge where the convolutions end.
    """
    for use in uses(model, value):
        weight = _weight(use)
        if weight is None or len(weight.shape) != 4:
            continue
        width, channels = weight.shape.numpy()[:2]
        stride = tuple(use.node.attributes.get_ints("strides", [1, 1]))
        if len(stride) != 2:
            continue
        side = _table_side(model, width)
        if side is None:
            side, stride = PATCHES, _stride(model, value)
        return channels * use.node.attributes.get_int("group", 1), side * stride[0], side * stride[1]
    return None


def _weight(use: Use) -> ir.TensorProtocol | None:
    """Of a convolution that reads a value."""
    match use.node.op_type:
        case "Conv" | "ConvInteger" if use.index == 0:
            return use.tensor(1)
        case "QLinearConv" if use.index == 0:
            return use.tensor(3)
    return None


def _stride(model: ir.Model, value: ir.Value) -> tuple[int, int]:
    """By how much everything before the first product makes an image smaller."""
    largest = (1, 1)
    for use, stride in walk(model, value, (1, 1), _strided):
        largest = max(largest, _strided(use, stride) or stride, key=math.prod)
    return largest


def _strided(use: Use, stride: tuple[int, int]) -> tuple[int, int] | None:
    if use.node.op_type in _END_OF_FRONT:
        return None
    if use.node.op_type in ("Conv", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool") and use.index == 0:
        strides = use.node.attributes.get_ints("strides", [1, 1])
        if len(strides) == 2:
            return stride[0] * strides[0], stride[1] * strides[1]
    return stride


def signal_length(model: ir.Model, value: ir.Value) -> int | None:
    """Samples that give `PATCHES` frames after all 1-D convolutions that a signal runs through; None without any."""
    length = None
    for node, kernel in reversed(list(_front(model, value))):
        stride, dilation = ((node.attributes.get_ints(name, []) or [1])[0] for name in ("strides", "dilations"))
        length = ((length or PATCHES) - 1) * stride + dilation * (kernel - 1) + 1
    return length


def _table_side(model: ir.Model, width: int) -> int | None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or not 2 <= len(tensor.shape) <= 3 or tensor.shape[-1] != width:
            continue
        rows = math.prod(tensor.shape.numpy()[:-1])
        for patches in (rows - 1, rows):
            if patches > 1 and math.isqrt(patches) ** 2 == patches and tensor.shape[0] in (1, rows):
                return math.isqrt(patches)
    return None


def _front(model: ir.Model, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The 1-D convolutions before the first product, in order, with their kernel sizes."""
    for use, _ in walk(model, value, True, lambda use, _: None if use.node.op_type in _END_OF_FRONT else True):
        if use.node.op_type == "Conv" and use.index == 0:
            weight = use.tensor(1)
            if weight is not None and len(weight.shape) == 3:
                yield use.node, weight.shape.numpy()[2]


__all__ = ["PATCHES", "image_shape", "signal_length"]
