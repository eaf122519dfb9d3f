"""Whether a standard operator has as many inputs and outputs, and attributes of the kind, as its specification says.

Everything after loading relies on it: `node.inputs[1]` of a MatMul is there, `axis` of a Softmax is a whole number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Final

import onnx

from onnx_attnq.errors import InvalidModel

_KINDS: Final = {value: name for name, value in onnx.AttributeProto.AttributeType.items()}


def check_operator(node: onnx.NodeProto, opsets: Mapping[str, int], title: str) -> None:
    """Check a node of the standard domain against the schema of its opset; unknown operators pass.

    Args:
        node: The node; not one that calls a function of the model.
        opsets: Versions by domain, as the model or the function imports them.
        title: Of the node, for messages.

    Raises:
        InvalidModel: With the reason, without the file's name.
    """
    if node.domain == "com.microsoft":
        _check_kinds(node, _CONTRIBUTED, title)
        if len(node.input) < (least := _LEAST_INPUTS.get(node.op_type, 0)):
            raise InvalidModel(f"{title} has {len(node.input)} inputs; at least {least} are allowed")
    if node.domain not in ("", "ai.onnx"):
        return
    schema = _schema(node.op_type, opsets.get("", opsets.get("ai.onnx", 0)))
    if schema is not None:
        _check_counts(node, schema, title)
        _check_attributes(node, schema, title)


def _check_counts(node: onnx.NodeProto, schema: onnx.defs.OpSchema, title: str) -> None:
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", _named(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}" if most < 2**31 - 1 else f"at least {least}"
            raise InvalidModel(f"{title} has {len(names)} {what}; {allowed} are allowed")
    for index, parameter in enumerate(schema.inputs):
        if parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single and not node.input[index]:
            raise InvalidModel(f"{title} lacks its input {parameter.name!r}")


def _check_attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema, title: str) -> None:
    declared = schema.attributes
    _check_kinds(node, {name: one.type.name for name, one in declared.items()}, title)  # type: ignore[attr-defined]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.STRING and not _is_text(attribute.s):
            raise InvalidModel(f"{title}: attribute {attribute.name!r} is not UTF-8")
        if attribute.name in _TYPES and not attribute.ref_attr_name and attribute.i not in _KNOWN_TYPES:
            raise InvalidModel(f"{title}: attribute {attribute.name!r} is {attribute.i}, which is no data type")
    present = {attribute.name for attribute in node.attribute}
    for name in present - declared.keys():
        raise InvalidModel(f"{title} has the attribute {name!r}, which its operator does not have")
    for name, one in declared.items():
        if one.required and name not in present:
            raise InvalidModel(f"{title} lacks its attribute {name!r}")


def _named(outputs: Iterable[str]) -> list[str]:
    """The outputs up to the last that has a name: onnx_ir writes no others."""
    names = list(outputs)
    while names and not names[-1]:
        names.pop()
    return names


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_kinds(node: onnx.NodeProto, kinds: Mapping[str, str], title: str) -> None:
    for attribute in node.attribute:
        wanted, found = kinds.get(attribute.name), _KINDS[attribute.type]
        if wanted not in (None, found):
            raise InvalidModel(
                f"{title}: attribute {attribute.name!r} is of type {found.lower()}; it must be {str(wanted).lower()}"
            )


_TYPES: Final = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})
"""Attributes that name a type of elements."""

_KNOWN_TYPES: Final = frozenset(onnx.TensorProto.DataType.values())

_CONTRIBUTED: Final = {
    **dict.fromkeys(("num_heads", "kv_num_heads", "unidirectional", "do_rotary", "rotary_interleaved"), "INT"),
    **dict.fromkeys(("rotary_embedding_dim", "past_present_share_buffer", "local_window_size", "is_causal"), "INT"),
    **dict.fromkeys(("smooth_softmax", "qk_output", "output_qk", "axis", "is_inner_broadcast", "opset"), "INT"),
    **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB", "K", "N", "bits", "block_size"), "INT"),
    **dict.fromkeys(("scale", "alpha", "mask_filter_value", "softcap", "epsilon"), "FLOAT"),
    "qkv_hidden_sizes": "INTS",
}
"""Kinds of attributes by name, of the operators of com.microsoft that are read or decomposed; onnx knows no schemas."""

_LEAST_INPUTS: Final = {
    **dict.fromkeys(("BitmaskDropout", "Gelu", "Trilu", "Unique", "MultiHeadAttention"), 1),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "Pad", "Range", "BiasDropout", "BiasSoftmax"), 2),
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "Attention", "GridSample"), 2),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulNBits"), 3),
    **dict.fromkeys(("MatMulIntegerToFloat", "RotaryEmbedding"), 4),
    **{"QLinearSoftmax": 5, "QLinearAdd": 7, "QLinearMul": 7, "GroupQueryAttention": 7},
}
"""How many inputs these operators have at least."""


@functools.lru_cache(maxsize=1024)
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


__all__ = ["check_operator"]
