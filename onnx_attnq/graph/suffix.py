"""The part of a model that follows one value: what has to run again when only that value changes."""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.graph.dataflow import subgraphs
from onnx_attnq.graph.types import dtype_of

_RANDOM: Final = frozenset({"RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})


@dataclasses.dataclass(frozen=True)
class Suffix:
    """What follows a value.

    Attributes:
        model: Computes the outputs of the whole model that depend on the value.
        start: Name of the value, which is an input.
        boundary: Names of its other inputs: values that do not depend on the start.
    """

    model: ir.Model
    start: str
    boundary: tuple[str, ...]


def suffix(model: ir.Model, start: ir.Value) -> Suffix:
    """The nodes that depend on ``start``, as a model of their own.

    Args:
        model: Not changed.
        start: A value of the main graph.

    Raises:
        InvalidModel: No output depends on the value, or the element type of an input of the part is unknown.
    """
    graph = model.graph
    dependent = {start}
    boundary: dict[ir.Value, None] = {}
    fixed = {value for value in graph.initializers.values() if value.const_value is not None}
    for node in graph:
        read = _read_by(node)
        if node.op_type == "Constant" or (read and fixed.issuperset(read) and node.op_type not in _RANDOM):
            fixed.update(node.outputs)
        if not dependent.isdisjoint(read):
            dependent.update(node.outputs)
            boundary.update((value, None) for value in read if value.graph is graph)
    outputs = [value for value in graph.outputs if value in dependent and value is not start]
    if not outputs:
        raise InvalidModel(f"no output of the model depends on {start.name!r}")
    outside = [value for value in boundary if value not in dependent and value not in fixed]
    part = ir.convenience.extract(graph, [start, *outside], outputs)
    for value, original in zip(part.inputs, (start, *outside), strict=True):
        dtype = dtype_of(original)
        if dtype is None:
            raise InvalidModel(f"the element type of {original.name!r} is unknown")
        value.type, value.shape = ir.TensorType(dtype), None  # any batch, and any number of keys
    made = ir.Model(part, ir_version=model.ir_version, functions=tuple(f.clone() for f in model.functions.values()))
    made.opset_imports.update(model.opset_imports)
    return Suffix(made, str(start.name), tuple(str(value.name) for value in outside))


def _read_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, those that its subgraphs take from around them included."""
    read = [value for value in node.inputs if value is not None]
    for _, graph in subgraphs(node):
        for inner in graph:
            read.extend(_read_by(inner))
        read.extend(graph.outputs)
    return read


__all__ = ["Suffix", "suffix"]
