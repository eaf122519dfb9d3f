"""Does a rewritten model have the weights of the original? The rewriting of attention changes none."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_attnq.model import same_bytes


def other_weights(original: ir.Model, rewritten: ir.Model) -> tuple[str, ...]:
    """Names of weights that both models have, subgraphs included, and that differ in type, shape or bytes.

    Weights are initializers and Constants. They are read from their files only where they are not the same tensor.

    Raises:
        InvalidModel: A file is not what it was when the models were loaded.
    """
    before = dict(_weights(original.graph))
    return tuple(
        key[-1] for key, tensor in _weights(rewritten.graph) if key in before and not _is_same(before[key], tensor)
    )


def _weights(graph: ir.Graph, inside: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ir.TensorProtocol]]:
    """Tensors by name; in front of it, for each node that they are inside of, its first output and the attribute."""
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            yield (*inside, name), value.const_value
    for node in graph:
        output = node.outputs[0].name or "" if node.outputs else ""
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _weights(attribute.as_graph(), (*inside, output, name))
            elif attribute.type == ir.AttributeType.TENSOR and node.op_type == "Constant":
                yield (*inside, output), attribute.as_tensor()


def _is_same(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a is b:
        return True
    return a.dtype == b.dtype and a.shape == b.shape and same_bytes(a, b)


__all__ = ["other_weights"]
