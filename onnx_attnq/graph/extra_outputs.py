"""Make values inside of a model its outputs, so that a run shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_attnq.errors import InvalidModel
from onnx_attnq.graph.dataflow import Dataflow
from onnx_attnq.graph.types import dtype_of, rank_of

FIRST_ROW: Final = "onnx_attnq_first_row"
END_ROW: Final = "onnx_attnq_end_row"
"""Inputs of `some_rows`, int64 of shape (1,)."""

ROW_COUNT: Final = "onnx_attnq_row_count"
"""The last output of `some_rows`."""


def probe(model: ir.Model, names: Sequence[str], scope: str = "main") -> ir.Model:
    """A copy of the model whose outputs are the named values, and nothing else.

    What they do not need is left out, so that a run costs no more time and memory than they do. A
    value inside of an If comes out of that node, as an empty tensor when another branch was taken; a
    value inside of a Loop or Scan comes out with the iterations as its first axis.

    Args:
        model: Not changed.
        names: Names of values that can be used in ``scope``.
        scope: ``main``, or a subgraph as `Dataflow.scope` names it.

    Raises:
        InvalidModel: There is no value of that name.
    """
    copy = model.clone()
    flow = Dataflow(copy)
    values = flow.values_in(scope)
    outputs = []
    for name in names:
        if name not in values:
            raise InvalidModel(f"there is no value {name!r} in {scope}")
        outputs.append(_lift(values[name], flow))
    copy.graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(copy)
    return copy


def _lift(value: ir.Value, flow: Dataflow) -> ir.Value:
    """The value in the main graph that shows what ``value`` in a subgraph was."""
    if (integers := _integers(value)) is not None or value.type is None:
        value.type = ir.TensorType(integers or dtype_of(value) or ir.DataType.FLOAT)
    graph = value.graph
    owner = flow.owner(graph) if isinstance(graph, ir.Graph) else None
    if owner is None:
        return value
    # A copy, because the value may be an output of the subgraph already, and a value is listed as an output once only.
    shown = ir.Node("", "Identity", [value])
    shown.outputs[0].name, shown.outputs[0].type = f"{value.name}_shown", value.type
    rank = rank_of(value) if owner.op_type in ("Loop", "Scan") else None
    if owner.op_type == "Scan" and rank is not None:  # onnxruntime has to know the rank there
        shown.outputs[0].shape = ir.Shape([None] * rank)
    assert isinstance(graph, ir.Graph)
    graph.append(shown)
    for other in (g for g in flow.graphs if flow.owner(g) is owner):
        other.outputs.append(shown.outputs[0] if other is graph else _empty(other, value))
    for name in ("scan_output_axes", "scan_output_directions"):  # of a Scan: one number for each output
        if name in owner.attributes:
            owner.attributes[name] = ir.AttrInt64s(name, [*owner.attributes.get_ints(name), 0])
    owner.resize_outputs(len(owner.outputs) + 1)
    lifted = owner.outputs[-1]
    lifted.name = f"{value.name}_lifted"
    lifted.type = value.type
    if rank is not None:
        lifted.shape = ir.Shape([None] * (rank + 1))
    return _lift(lifted, flow)


def _integers(value: ir.Value) -> ir.DataType | None:
    """The type of what a quantized op gives, which is that of its zero point."""
    node = value.producer()
    zero = node.inputs[-1] if node is not None and node.op_type.startswith("QLinear") and node.inputs else None
    return None if zero is None else dtype_of(zero)


def _empty(graph: ir.Graph, like: ir.Value) -> ir.Value:
    """An empty tensor for the branch that does not have the value."""
    assert like.dtype is not None
    tensor = ir.tensor(np.zeros(0, like.dtype.numpy()))
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
    node.outputs[0].name = f"{like.name}_not_taken"
    node.outputs[0].type = like.type
    graph.append(node)
    return node.outputs[0]


def some_rows(model: ir.Model) -> ir.Model:
    """A copy of a model whose outputs are parts of its own: some places of the last axis but one.

    The first place and the one behind the last are two more inputs, and how many places there are is one more output,
    so that a large output can be had in several runs.
    """
    copy = model.clone()
    graph = copy.graph
    int64 = ir.TensorType(ir.DataType.INT64)
    first, end = (ir.Value(name=name, type=int64, shape=ir.Shape([1])) for name in (FIRST_ROW, END_ROW))
    graph.inputs.extend([first, end])

    def node(op_type: str, name: str, *inputs: ir.Value, **attributes: Sequence[int]) -> ir.Value:
        made = ir.Node("", op_type, inputs, ir.convenience.convert_attributes(attributes))
        made.outputs[0].name = name
        graph.append(made)
        return made.outputs[0]

    whole = list(graph.outputs)
    axis, after = (node("Constant", f"{ROW_COUNT}_{-k}", value_ints=[k]) for k in (-2, -1))
    for place, value in enumerate(whole):
        shown = node("Slice", f"{value.name}_rows", value, first, end, axis)
        shown.type = value.type
        graph.outputs[place] = shown
    sizes = node("Shape", f"{ROW_COUNT}_of", whole[0])
    count = node("Slice", ROW_COUNT, sizes, axis, after)
    count.type, count.shape = int64, ir.Shape([1])
    graph.outputs.append(count)
    return copy
