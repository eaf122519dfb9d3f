"""Bring attention into the open: inline the model-local functions that hide a part of one."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.sites import find_sites, is_softmax


def expose(model: ir.Model) -> None:
    """Inline, in place, functions that contain a softmax or stand between a softmax and its products.

    Other functions stay functions. A model without functions is not touched.
    """
    if not model.functions:
        return
    hidden = _with_softmax(model.functions.values())
    if hidden:
        InlinePass(lambda f: f.identifier() in hidden)(model)
    if model.functions and any(r.lost_in & set(model.functions) for r in find_sites(model).rejections):
        InlinePass()(model)


def _with_softmax(functions: Iterable[ir.Function]) -> set[ir.OperatorIdentifier]:
    """The functions that contain a softmax, directly or in a function that they call."""
    calls = {f.identifier(): {node.op_identifier() for node in f.all_nodes()} for f in functions}
    hidden = {f.identifier() for f in functions if any(is_softmax(node) for node in f.all_nodes())}
    while True:
        more = {name for name, called in calls.items() if called & hidden} - hidden
        if not more:
            return hidden
        hidden |= more
