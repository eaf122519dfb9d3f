"""Functions that import another opset than the model's: whether their nodes mean the same there.

onnxruntime runs a function by the opset that the function imports. When it is inlined, its nodes come under the
model's, so that is done only where the definitions of both opsets agree on what each node uses.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnx_attnq.graph import standard_opset


def take_opset(function: ir.Function, opset: int | None) -> str:
    """Let a function import the model's opset, if each of its nodes means the same there; else say what does not."""
    own = standard_opset(function.opset_imports)
    if own is None or opset is None or own == opset:
        return ""
    for node in function.all_nodes():
        if node.domain in ("", "ai.onnx") and not _means_the_same(node, own, opset):
            return (
                f"the function {function.name!r} imports opset {own} and the model {opset}, in which {node.op_type} "
                "is another; convert the model to one opset first"
            )
    function.opset_imports.pop("ai.onnx", None)
    function.opset_imports[""] = opset
    return ""


def _means_the_same(node: ir.Node, old: int, new: int) -> bool:
    """Whether attributes, their defaults, and inputs of a node are the same by the definitions of two opsets.

    That a later definition takes more types makes no difference; nor does an attribute that the other lacks, as long as
    the node does not set it and the one that has it has a default.
    """
    try:
        a, b = (onnx.defs.get_schema(node.op_type, version, "") for version in (old, new))
    except onnx.defs.SchemaError:
        return False
    if a.since_version == b.since_version:
        return True
    if len(node.inputs) > min(a.max_input, b.max_input) or len(node.inputs) < max(a.min_input, b.min_input):
        return False
    if [i.name for i in a.inputs[: len(node.inputs)]] != [i.name for i in b.inputs[: len(node.inputs)]]:
        return False
    return all(_same_attribute(node, name, a, b) for name in {*a.attributes, *b.attributes})


def _same_attribute(node: ir.Node, name: str, a: onnx.defs.OpSchema, b: onnx.defs.OpSchema) -> bool:
    defined = [schema.attributes[name] for schema in (a, b) if name in schema.attributes]
    if name in node.attributes:
        return len(defined) == 2
    defaults = {attribute.default_value.SerializeToString(deterministic=True) for attribute in defined}
    return len(defaults) == 1 and (len(defined) == 2 or defaults != {b""})


__all__ = ["take_opset"]
