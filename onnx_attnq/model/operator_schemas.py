"""Whether a standard operator has as many inputs and outputs, and attributes of the kind, as its specification says.

Everything after loading relies on it: `node.inputs[1]` of a MatMul is there, `axis` of a Softmax is a whole number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import onnx

from onnx_attnq.errors import InvalidModel

_KINDS: Final = {value: name for name, value in onnx.AttributeProto.AttributeType.items()}


def check_operator(node: onnx.NodeProto, opsets: Mapping[str, int], title: str) -> None:
    """Check a node of the standard domain against the schema of its opset; others, and unknown ones, pass.

    An attribute that the schema does not have is left to the runtime, which refuses it.

    Args:
        node: The node; not one that calls a function of the model.
        opsets: Versions by domain, as the model or the function imports them.
        title: Of the node, for messages.

    Raises:
        InvalidModel: With the reason, without the file's name.
    """
    if node.domain not in ("", "ai.onnx"):
        return
    schema = _schema(node.op_type, opsets.get("", opsets.get("ai.onnx", 0)))
    if schema is None:
        return
    for what, names, least, most in (
        ("inputs", node.input, schema.min_input, schema.max_input),
        ("outputs", node.output, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}" if most < 2**31 - 1 else f"at least {least}"
            raise InvalidModel(f"{title} has {len(names)} {what}; {allowed} are allowed")
    for index, parameter in enumerate(schema.inputs):
        if parameter.option == onnx.defs.OpSchema.FormalParameterOption.Single and not node.input[index]:
            raise InvalidModel(f"{title} lacks its input {parameter.name!r}")
    present = {attribute.name: attribute for attribute in node.attribute}
    for name, declared in schema.attributes.items():
        attribute = present.get(name)
        if attribute is None:
            if declared.required:
                raise InvalidModel(f"{title} lacks its attribute {name!r}")
        elif (found := _KINDS[attribute.type]) != (wanted := declared.type.name):  # type: ignore[attr-defined]
            raise InvalidModel(f"{title}: attribute {name!r} is of type {found.lower()}; it must be {wanted.lower()}")


@functools.lru_cache(maxsize=1024)
def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


__all__ = ["check_operator"]
