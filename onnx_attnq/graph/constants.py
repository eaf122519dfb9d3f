"""Values that are known before a run: initializers and Constant nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node, else None.

    An initializer that is a graph input too (IR version 4 and later) is a default that the caller may override, so it
    is no constant. Unlike ``onnx_ir.convenience.get_const_tensor``, this does not rename the tensor, which is a part
    of the model.

    Raises:
        InvalidModel: An initializer without a tensor.

    >>> constant(ir.val("x", const_value=ir.tensor([1.0, 2.0]))).size
    2
    >>> constant(ir.val("x")) is None
    True
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    if value.is_initializer():
        raise InvalidModel(f"initializer {value.name!r} has no data")
    attribute = _constant_attribute(value)
    return None if attribute is None else _tensor_of(attribute)


def number_of(value: ir.Value | None) -> float | None:
    """The number that a floating-point constant of one element holds.

    >>> number_of(ir.val("x", const_value=ir.tensor([0.5])))
    0.5
    """
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype is None or not tensor.dtype.is_floating_point():
        return None
    return float(np.asarray(tensor.numpy()).astype(np.float64).reshape(()))


def _constant_attribute(value: ir.Value) -> ir.Attr | None:
    """What a Constant node holds, where one computes the value."""
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain or len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    return None if attribute.is_ref() else attribute


def _tensor_of(attribute: ir.Attr) -> ir.TensorProtocol | None:
    match attribute.name:
        case "value":
            tensor: ir.TensorProtocol = attribute.value  # as_tensor() checks the protocol, which takes half of all time
            return tensor
        case "value_float" | "value_floats":
            return ir.tensor(np.array(attribute.value, dtype=np.float32))
        case "value_int" | "value_ints":
            return ir.tensor(np.array(attribute.value, dtype=np.int64))
        case "value_string":
            return ir.StringTensor([attribute.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            strings = [text.encode() for text in attribute.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
    return None
