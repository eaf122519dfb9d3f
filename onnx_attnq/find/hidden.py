"""Bring attention into the open: inline the functions that hide a part of one, decompose fused ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.find.fused import Declined, decompose, is_fused_attention
from onnx_attnq.find.sites import DECLINED, ORIGIN, Origin, find_sites
from onnx_attnq.find.softmax import is_softmax, may_be_decomposed
from onnx_attnq.graph import Snapshot
from onnx_attnq.model import fingerprint

_ORIGINAL = "onnx_attnq.original"
_SNAPSHOT = "onnx_attnq.snapshot"


def expose(model: ir.Model, keep: Callable[[ir.Node], bool] = lambda node: False) -> None:
    """Make every attention of a model visible to `find_sites`, in place.

    1. Functions that contain a softmax or a fused attention, or stand between a softmax and its products,
       are inlined. Other functions stay functions.
    2. Fused attention ops become standard ops of the model's own opset, as far as that is known to compute
       the same; the rest stay, and `find_sites` gives the reason.

    Args:
        model: Changed, unless there is nothing to expose.
        keep: Tells which fused ops to leave as they are.
    """
    model.meta[_ORIGINAL] = original_fingerprint(model)
    model.meta[_SNAPSHOT] = original_snapshot(model)
    if model.functions:
        hidden = _hiding(model.functions.values())
        InlinePass(lambda f: f.identifier() in hidden)(model)
    if model.functions and any(r.lost_in & set(model.functions) for r in find_sites(model).rejections):
        InlinePass()(model)
    for node in [n for n in model.graph.all_nodes() if is_fused_attention(n)]:
        if keep(node):
            node.meta[DECLINED] = "left fused, as it was asked for"
            continue
        origin = Origin(node.op_type, node.name or "", node.outputs[0].name or "")
        outcome = decompose(model, node)
        if isinstance(outcome, Declined):
            node.meta[DECLINED] = outcome.reason
        else:
            outcome.softmax.meta[ORIGIN] = origin


def original_fingerprint(model: ir.Model) -> str:
    """The fingerprint that a model had before it was exposed, which is the one that plans refer to."""
    known: str | None = model.meta.get(_ORIGINAL)
    return fingerprint(model) if known is None else known


def original_snapshot(model: ir.Model) -> Snapshot:
    """The wiring that a model had before it was exposed, or has now if it was not."""
    known: Snapshot | None = model.meta.get(_SNAPSHOT)
    return Snapshot(model) if known is None else known


def _hiding(functions: Iterable[ir.Function]) -> set[ir.OperatorIdentifier]:
    """The functions that contain an attention or a part of one, directly or in a function that they call."""
    nodes = {function.identifier(): list(function.all_nodes()) for function in functions}
    hidden = {
        name
        for name, inside in nodes.items()
        if any(is_softmax(node) or is_fused_attention(node) for node in inside)
        or may_be_decomposed(node.op_type for node in inside)
    }
    while True:
        more = {n for n, inside in nodes.items() if hidden & {node.op_identifier() for node in inside}} - hidden
        if not more:
            return hidden
        hidden |= more
