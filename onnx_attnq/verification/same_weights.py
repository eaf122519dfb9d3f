"""Do two models have the same weights?"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_attnq.model import SMALL_TENSOR, same_bytes


def other_weights(a: ir.Model, b: ir.Model) -> tuple[str, ...]:
    """Names of weights that both models have, and that differ in type, shape or bytes.

    Weights are initializers, Constants, and other tensors of nodes that are too large to be part of `structure_hash`,
    named after the node's first output; those of subgraphs and functions, too. They are read from their files only
    where they are not the same tensor.

    Raises:
        InvalidModel: A file is not what it was when the models were loaded.
    """
    before = dict(_weights(a))
    return tuple(key[-1] for key, tensor in _weights(b) if key in before and not _is_same(before[key], tensor))


def _weights(model: ir.Model) -> Iterator[tuple[tuple[str, ...], ir.TensorProtocol]]:
    yield from _of_graph(model.graph, ())
    for identifier, function in model.functions.items():
        yield from _of_graph(function.graph, identifier)


def _of_graph(graph: ir.Graph, inside: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ir.TensorProtocol]]:
    """Tensors by name; in front of it, the function, and for each node around it the first output and the attribute."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield (*inside, name), value.const_value
    for node in graph:
        output = node.outputs[0].name or "" if node.outputs else ""
        for name, attribute in node.attributes.items():
            place = (*inside, name)
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _of_graph(attribute.as_graph(), (*place, output))
            elif attribute.type == ir.AttributeType.TENSOR:
                if node.op_type == "Constant" or attribute.as_tensor().nbytes > SMALL_TENSOR:
                    yield (*place, output), attribute.as_tensor()
            elif attribute.type in (ir.AttributeType.GRAPHS, ir.AttributeType.TENSORS):
                yield from _of_several(attribute, (*place, output))


def _of_several(attribute: ir.Attr, inside: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ir.TensorProtocol]]:
    for number, item in enumerate(attribute.value):
        if attribute.type == ir.AttributeType.GRAPHS:
            yield from _of_graph(item, (*inside, str(number)))
        else:
            yield (*inside[:-1], str(number), inside[-1]), item


def _is_same(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    return a.dtype == b.dtype and a.shape == b.shape and same_bytes(a, b)


__all__ = ["other_weights"]
