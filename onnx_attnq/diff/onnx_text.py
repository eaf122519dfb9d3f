"""Nodes, types and constants as text in the syntax of ONNX, with names and subgraphs left to the caller.

The same functions write canonical forms (canonical names), hash expressions (hashes as names) and show
differences (the model's own names), so what takes part in a comparison is decided once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.diff.tensor_content import content_hash, strings
from onnx_attnq.graph import constant, subgraphs

INLINE_ELEMENTS: Final = 8
"""Constants up to this size are written out; larger ones are a hash."""

NameOf = Callable[[ir.Value], str]
"""How a value is called, or written when it is a constant."""
GraphText = Callable[[ir.Graph], str]
"""How a subgraph in an attribute is written."""

_BARE: Final = re.compile(r"[^\s%,=(){}<>\[\]\"]+")


def quote(name: str) -> str:
    """A name as it is, or as a JSON string when it has characters of the syntax.

    >>> quote("/layer.0/Softmax_output_0"), quote("a, b")
    ('/layer.0/Softmax_output_0', '"a, b"')
    """
    return name if _BARE.fullmatch(name) else string_text(name)


def string_text(text: str | bytes) -> str:
    """A JSON string in ASCII; bytes that are not UTF-8 become lone surrogates."""
    return json.dumps(text if isinstance(text, str) else text.decode("utf-8", "surrogateescape"))


def type_text(kind: ir.TypeProtocol | None, shape: ir.Shape | None) -> str:
    """A type, such as ``float[batch,12,?]``; ``float[...]`` when the rank is unknown, ``float`` for a scalar.

    >>> type_text(ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 12, None]))
    'float[batch,12,?]'
    """
    match kind:
        case None:
            return "?"
        case ir.SequenceType():
            return f"seq({type_text(kind.elem_type, shape)})"
        case ir.OptionalType():
            return f"optional({type_text(kind.elem_type, shape)})"
        case ir.SparseTensorType():
            return f"sparse_tensor({_tensor_type_text(kind.dtype, shape)})"
        case _:
            return _tensor_type_text(kind.dtype, shape)


def tensor_text(tensor: ir.TensorProtocol) -> str:
    """A constant: its type, and its elements or the hash of its bytes. Different bits give different texts.

    >>> tensor_text(ir.tensor(np.array([0, -1], dtype=np.int64)))
    'int64[2] {0, -1}'
    >>> tensor_text(ir.tensor(np.zeros((3, 4), dtype=np.float32)))
    'float[3,4] sha256:17b0761f87b081d5cf10757ccc89f12b'
    """
    kind = _tensor_type_text(tensor.dtype, tensor.shape)
    if tensor.size <= INLINE_ELEMENTS:
        if tensor.dtype == ir.DataType.STRING:
            return f"{kind} {{{', '.join(string_text(text) for text in strings(tensor))}}}"
        array = tensor.numpy().reshape(-1)
        # A NaN has many bit patterns and a complex number no agreed notation: these keep their hash.
        with np.errstate(invalid="ignore"):  # a signalling NaN
            is_written_out = not np.iscomplexobj(array) and not np.isnan(array.astype(np.float64)).any()
        if is_written_out:
            return f"{kind} {{{', '.join(_element_text(x) for x in array)}}}"
    return f"{kind} sha256:{content_hash(tensor)}"


class ConstantTexts:
    """The texts of a model's constants. Each is read once, however often it is asked for."""

    def __init__(self) -> None:
        self._texts: dict[ir.Value, str | None] = {}

    def __call__(self, value: ir.Value) -> str | None:
        """The text of a constant, None for any other value."""
        if value not in self._texts:
            tensor = constant(value)
            self._texts[value] = None if tensor is None else tensor_text(tensor)
        return self._texts[value]


def operand_text(value: ir.Value | None, name_of: NameOf) -> str:
    """What a node reads, or an empty name where it reads nothing."""
    return '""' if value is None else name_of(value)


def inputs_of(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """A node's inputs without the missing ones at the end, which mean nothing."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return tuple(inputs)


def results(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """A node's outputs, None where an optional one is not wanted, without those at the end."""
    outputs: list[ir.Value | None] = [None if value.name == "" else value for value in node.outputs]
    while outputs and outputs[-1] is None:
        outputs.pop()
    return tuple(outputs)


def op_text(node: ir.Node) -> str:
    """The operator: ``Softmax``, ``com.microsoft.Attention``, ``pkg.block:overload``."""
    domain = f"{node.domain}." if node.domain else ""
    return quote(f"{domain}{node.op_type}{':' if node.overload else ''}{node.overload}")


def call_text(node: ir.Node, name_of: NameOf, graph_text: GraphText) -> str:
    """The right-hand side: operator, attributes in order of their names, operands."""
    attributes = attributes_text(node, graph_text)
    inside = f" <{', '.join(f'{name} = {text}' for name, text in attributes.items())}>" if attributes else ""
    return f"{op_text(node)}{inside} ({', '.join(operand_text(value, name_of) for value in inputs_of(node))})"


def node_text(node: ir.Node, name_of: NameOf, graph_text: GraphText) -> str:
    """One node: ``y = Softmax <axis = -1> (x)``."""
    outputs = ", ".join('""' if value is None else name_of(value) for value in results(node))
    return f"{outputs} = {call_text(node, name_of, graph_text)}"


def attributes_text(node: ir.Node, graph_text: GraphText) -> dict[str, str]:
    """Attribute names, sorted, and what they hold."""
    return {name: attribute_text(node.attributes[name], graph_text) for name in sorted(node.attributes)}


def attribute_text(attr: ir.Attr, graph_text: GraphText) -> str:
    """The value of an attribute; ``@name`` where a function's body refers to an attribute of its call.

    >>> attribute_text(ir.AttrFloat32("alpha", 0.1), str), attribute_text(ir.AttrInt64s("perm", [0, 2]), str)
    ('0.1', '[0, 2]')
    """
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    kind = ir.AttributeType
    match attr.type:
        case kind.INTS | kind.FLOATS | kind.STRINGS | kind.TENSORS | kind.GRAPHS | kind.TYPE_PROTOS:
            if not attr.value:  # an empty list would not show what it is a list of
                return f"{attr.type.name.lower()} []"
            single = kind[attr.type.name.removesuffix("S")]
            return f"[{', '.join(_scalar_text(single, item, graph_text) for item in attr.value)}]"
    return _scalar_text(attr.type, attr.value, graph_text)


def ordered_subgraphs(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The graphs in a node's attributes, by attribute name."""
    return sorted(subgraphs(node), key=itemgetter(0))


def _scalar_text(kind: ir.AttributeType, value: Any, graph_text: GraphText) -> str:
    match kind:
        case ir.AttributeType.FLOAT:
            return _float_text(np.float32(value))
        case ir.AttributeType.STRING:
            return string_text(value)
        case ir.AttributeType.TENSOR:
            return tensor_text(value)
        case ir.AttributeType.GRAPH:
            return graph_text(value)
        case ir.AttributeType.TYPE_PROTO:
            return type_text(value.type, value.shape)
    return str(value)


def _float_text(x: Any) -> str:
    """The shortest decimal that reads back as the same number of the same type; the bits of a NaN.

    Python rounds it, not numpy, whose notation depends on its version: 2.4 writes float16 65500 as 6.55e+04.
    """
    exact = float(x)
    if math.isnan(exact):
        return f"nan:{int(x.view(np.uint32)):08x}"
    with np.errstate(over="ignore"):  # 7e+04, one digit of float16 65504, is infinite
        for digits in range(1, 17):
            short = float(f"{exact:.{digits}g}")
            if float(type(x)(short)) == exact:
                return repr(short)
    return repr(exact)


def _element_text(x: Any) -> str:
    """An element of a tensor, exactly. The integers of ml_dtypes (int4) are no numpy integers."""
    if isinstance(x, np.integer | np.bool_):
        return str(x)
    return _float_text(x)


def _tensor_type_text(dtype: ir.DataType, shape: ir.Shape | ir.ShapeProtocol | None) -> str:
    if shape is None:
        return f"{dtype.name.lower()}[...]"
    dims = ",".join(str(dim) if isinstance(dim, int) else _dim_text(dim.value) for dim in shape)
    return f"{dtype.name.lower()}[{dims}]" if len(shape) else dtype.name.lower()


def _dim_text(name: str | None) -> str:
    if name is None:
        return "?"
    return name if re.fullmatch(r"[^,\[\]\"?]+", name) else string_text(name)


__all__ = [
    "INLINE_ELEMENTS",
    "ConstantTexts",
    "GraphText",
    "NameOf",
    "attribute_text",
    "attributes_text",
    "call_text",
    "inputs_of",
    "node_text",
    "op_text",
    "operand_text",
    "ordered_subgraphs",
    "quote",
    "results",
    "string_text",
    "tensor_text",
    "type_text",
]
