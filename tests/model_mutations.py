"""Changes to models that keep them readable by protobuf, but little else: what a fuzz of the whole job starts from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Nodes: TypeAlias = list[onnx.NodeProto]

OPS = (
    *("Softmax", "LogSoftmax", "MatMul", "Gemm", "Einsum", "Add", "Sub", "Mul", "Div", "Max", "Pow", "Where", "Exp"),
    *("ReduceSum", "ReduceMax", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Concat", "Split", "Slice", "Gather"),
    *("Cast", "Identity", "Dropout", "Expand", "Tile", "Flatten", "Constant", "ConstantOfShape", "Shape", "IsNaN"),
    *("If", "Loop", "Scan", "Attention", "QuantizeLinear", "DequantizeLinear", "Clip", "Tanh", "Trilu", "CumSum"),
)
FUSED = (
    *("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "QAttention", "FusedMatMul"),
    *("DecoderMaskedMultiHeadAttention", "QLinearSoftmax", "BiasSoftmax", "SkipLayerNormalization", "MatMulNBits"),
)
NUMBERS = (0, 1, -1, 2, 3, 4, 7, -5, 16, 99, 2**31 - 1, 2**31, -(2**63), 2**63 - 1)
TYPES = (1, 2, 3, 6, 7, 9, 10, 11, 13, 16)
"""Element types that numpy_helper makes of an array."""


def mutate(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """A changed copy."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(MUTATIONS)(changed, rng)
    return changed


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))


def _node(proto: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes = [node for graph in _graphs(proto) for node in graph.node]
    nodes += (node for function in proto.functions for node in function.node)
    # Rather one that finding and rewriting look at than one of a thousand others.
    near = [node for node in nodes if node.op_type in OPS[:10] or node.op_type in FUSED]
    return rng.choice(near if near and rng.random() < 0.6 else nodes or [proto.graph.node.add(op_type="Identity")])


def _names(proto: onnx.ModelProto) -> list[str]:
    names = [info.name for info in proto.graph.input] + [tensor.name for tensor in proto.graph.initializer]
    return names + [name for graph in _graphs(proto) for node in graph.node for name in node.output] or ["x"]


def _tensor(rng: random.Random, name: str) -> TensorProto:
    shape = [rng.choice((0, 1, 1, 2, 3, 4, 8)) for _ in range(rng.choice((0, 1, 1, 2, 3, 4, 5)))]
    values = np.array(
        [rng.choice((0.0, 1.0, -1.0, 2.0, -1e4, np.nan, np.inf, 0.125)) for _ in range(int(np.prod(shape)))]
    )
    dtype = helper.tensor_dtype_to_np_dtype(rng.choice(TYPES))
    with np.errstate(all="ignore"):
        return numpy_helper.from_array(np.nan_to_num(values).reshape(shape).astype(dtype), name)


def _attribute(rng: random.Random, name: str) -> AttributeProto:
    value = rng.choice(
        (
            lambda: rng.choice(NUMBERS),
            lambda: [rng.choice(NUMBERS) for _ in range(rng.randrange(5))],
            lambda: rng.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-30)),
            lambda: [1.0] * rng.randrange(4),
            lambda: rng.choice(("", "NOTSET", "bhsd,bhtd->bhst", "i,i->", "...", "->", "ij")),
            lambda: ["a"] * rng.randrange(3),
            lambda: _tensor(rng, "t"),
        )
    )()
    attribute_type = AttributeProto.INTS if value == [] else None
    return helper.make_attribute(name, value, attr_type=attribute_type)


def change_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    name = attribute.name
    match rng.randrange(4):
        case 0:
            attribute.CopyFrom(_attribute(rng, name))
        case 1 if attribute.type == AttributeProto.INTS:
            rng.choice(
                (
                    lambda: attribute.ints.append(rng.choice(NUMBERS)),
                    lambda: attribute.ints.reverse(),
                    lambda: attribute.ClearField("ints"),
                )
            )()
        case 2 if attribute.type == AttributeProto.TENSOR:
            attribute.t.CopyFrom(_tensor(rng, attribute.t.name))
        case _ if attribute.type == AttributeProto.INT:
            attribute.i = rng.choice(NUMBERS)
        case _ if attribute.type == AttributeProto.STRING:
            attribute.s = rng.choice((b"", b"bhsd,bhtd->bhst", b"ij,jk", b"\xff", b"reflect"))
        case _:
            node.attribute.remove(attribute)


def add_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    names = ("axis", "axes", "perm", "to", "num_heads", "kv_num_heads", "q_num_heads", "scale", "is_causal", "keepdims", "equation", "transA", "alpha", "qk_matmul_output_mode", "softcap", "unidirectional", "local_window_size", "do_rotary", "mask_filter_value")  # fmt: skip
    node, name = _node(proto, rng), rng.choice(names)
    if all(attribute.name != name for attribute in node.attribute):
        node.attribute.append(_attribute(rng, name))


def change_inputs(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    names = list(node.input)
    match rng.randrange(6):
        case 0 if names:
            names.pop()
        case 1:
            names.append(rng.choice(_names(proto)))
        case 2:
            rng.shuffle(names)
        case 3 if names:
            names[rng.randrange(len(names))] = ""
        case 4 if names:
            names[rng.randrange(len(names))] = rng.choice(_names(proto))
        case _:
            names += names[:1]
    node.input[:] = names


def change_outputs(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    match rng.randrange(3):
        case 0:
            node.output.append(f"more{rng.randrange(1000)}")
        case 1 if len(node.output) > 1:
            node.output[rng.randrange(len(node.output))] = ""
        case _ if node.output:
            del node.output[-1]


def change_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if rng.random() < 0.3:
        node.op_type, node.domain = rng.choice(FUSED), "com.microsoft"
        if all(entry.domain != "com.microsoft" for entry in proto.opset_import):
            proto.opset_import.add(domain="com.microsoft", version=1)
    else:
        node.op_type, node.domain = rng.choice(OPS), ""


def change_domain(proto: onnx.ModelProto, rng: random.Random) -> None:
    _node(proto, rng).domain = rng.choice(("", "ai.onnx", "com.microsoft", "custom", "onnx_attnq"))


def change_initializer(proto: onnx.ModelProto, rng: random.Random) -> None:
    if proto.graph.initializer:
        tensor = rng.choice(proto.graph.initializer)
        tensor.CopyFrom(_tensor(rng, tensor.name))


def change_type(proto: onnx.ModelProto, rng: random.Random) -> None:
    """The declared type or shape of an input, an output or a value between; it may contradict the nodes."""
    graph = rng.choice(list(_graphs(proto)))
    values = [*graph.input, *graph.output, *graph.value_info]
    if not values:
        return
    kind = rng.choice(values).type
    tensor = kind.tensor_type
    match rng.randrange(7):
        case 0:
            tensor.elem_type = rng.choice((*TYPES, 8, 0))
        case 1:
            tensor.ClearField("shape")
        case 2:
            tensor.shape.dim.add(dim_value=rng.choice((0, 1, 4, 2**40)))
        case 3 if tensor.shape.dim:
            del tensor.shape.dim[rng.randrange(len(tensor.shape.dim))]
        case 4 if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_param = rng.choice(("n", "batch", "a+b", "2*n", "", "-1", "a\nb"))
        case 5 if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_value = rng.choice((0, 1, 2, -1, 2**40))
        case _:
            kind.Clear()


def declare_type(proto: onnx.ModelProto, rng: random.Random) -> None:
    shape = [rng.choice((None, "n", 1, 2, 8)) for _ in range(rng.randrange(6))]
    proto.graph.value_info.append(helper.make_tensor_value_info(rng.choice(_names(proto)), rng.choice(TYPES), shape))


def change_opset(proto: onnx.ModelProto, rng: random.Random) -> None:
    owner = rng.choice([proto, *proto.functions])
    if owner.opset_import:
        rng.choice(owner.opset_import).version = rng.choice((1, 11, 12, 13, 17, 18, 20, 21, 23, 24))


def remove_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(proto)))
    if len(graph.node) > 1:
        del graph.node[rng.randrange(len(graph.node))]


def repeat_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(_graphs(proto)))
    if graph.node:
        copy = graph.node.add()
        copy.CopyFrom(rng.choice(graph.node))
        copy.output[:] = [f"copy{rng.randrange(1000)}" for _ in copy.output]


def expose_value(proto: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(_names(proto))
    if all(info.name != name for info in proto.graph.output):
        proto.graph.output.add(name=name)


def input_for_initializer(proto: onnx.ModelProto, rng: random.Random) -> None:
    """An initializer that may be overridden, or an input in its place."""
    if proto.graph.initializer:
        tensor = rng.choice(proto.graph.initializer)
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if rng.random() < 0.5:
            proto.graph.initializer.remove(tensor)


def rename_value(proto: onnx.ModelProto, rng: random.Random) -> None:
    old = rng.choice(_names(proto))
    new = rng.choice(("", "onnx_attnq_no_mask", "a\nb", "a.b[*]", "é", old + "_2", "scale", "x"))
    for graph in _graphs(proto):
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        if value.name == old:
            value.name = new


def rename_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    _node(proto, rng).name = rng.choice(("", "a\nb", "[*]", "x", _node(proto, rng).name))


MUTATIONS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    change_attribute, change_attribute, add_attribute, change_inputs, change_inputs, change_outputs, change_operator,
    change_operator, change_domain, change_initializer, change_initializer, change_type, change_type, declare_type,
    change_opset, remove_node, repeat_node, expose_value, input_for_initializer, rename_value, rename_node,
)  # fmt: skip
