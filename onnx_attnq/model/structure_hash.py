"""A short name for a model's structure, which binds a plan to the model that it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnx_ir as ir

SMALL_TENSOR: Final = 1024
"""Bytes up to which the elements of a tensor attribute count as structure: shapes, axes, scalars."""


def structure_hash(model: ir.Model) -> str:
    """Hash operators, wiring, names, attributes and the signature; not the weights.

    Models that differ in weights only (a fine-tuned one) have the same hash. Metadata, doc
    strings, inferred shapes and the form of serialization are not included.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for line in _model(model):
        # repr quotes strings, and a tuple has a length: no two different lines look the same.
        digest.update(repr(line).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def _model(model: ir.Model) -> Iterable[tuple[Any, ...]]:
    yield ("opsets", *sorted(model.graph.opset_imports.items()))
    yield from _graph(model.graph)
    for identifier, function in sorted(model.functions.items()):
        yield ("function", *identifier, *sorted(function.opset_imports.items()))
        yield from (_attribute(attribute) for _, attribute in sorted(function.attributes.items()))
        yield from _graph(function.graph)


def _graph(graph: ir.Graph) -> Iterable[tuple[Any, ...]]:
    yield ("inputs", *map(_value, graph.inputs))
    for name, value in graph.initializers.items():
        tensor = value.const_value
        yield ("initializer", name) if tensor is None else ("initializer", name, *_signature(tensor))
    for node in graph:
        names = [value.name or "" for value in node.outputs]
        while names and not names[-1]:  # onnx_ir does not serialize trailing outputs without a name
            names.pop()
        inputs = [value.name if value is not None else "" for value in node.inputs]
        yield ("node", node.domain, node.op_type, node.overload, node.name or "", inputs, names)
        for _, attribute in sorted(node.attributes.items()):
            yield _attribute(attribute)
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graph(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for subgraph in attribute.as_graphs():
                    yield from _graph(subgraph)
    yield ("outputs", *map(_value, graph.outputs))


def _value(value: ir.Value) -> tuple[Any, ...]:
    # onnx_ir does not serialize the shape of what has no type.
    return (value.name, str(value.type), str(value.shape if value.type is not None else None))


def _signature(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    return (tensor.dtype.name, tuple(tensor.shape.numpy()))


def _attribute(attribute: ir.Attr) -> tuple[Any, ...]:
    head = ("attribute", attribute.name, attribute.type.name)
    if attribute.value is None and not attribute.is_ref():
        return ("parameter", attribute.name)  # of a function, without a default; files do not keep its type
    if attribute.is_ref():
        return (*head, "reference", attribute.ref_attr_name)
    match attribute.type:
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
            return head  # the graph's own lines follow
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            # A file holds float32; an attribute made in memory may hold more digits.
            return (*head, np.asarray(attribute.value, dtype=np.float32).tobytes())
        case ir.AttributeType.TENSOR:
            return (*head, _tensor(attribute.as_tensor()))
        case ir.AttributeType.TENSORS:
            return (*head, *map(_tensor, attribute.as_tensors()))
        case ir.AttributeType.INTS | ir.AttributeType.STRINGS:
            return (*head, *attribute.value)
        case _:
            return (*head, str(attribute.value))


def _tensor(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    signature = _signature(tensor)
    if isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > SMALL_TENSOR:
        return signature
    if isinstance(tensor, ir.StringTensor):
        return (*signature, *tensor.string_data())
    return (*signature, tensor.tobytes())


__all__ = ["SMALL_TENSOR", "structure_hash"]
