"""Make attention visible: inline the functions that hide a part of one, decompose fused ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.exposed import Exposed, origins
from onnx_attnq.find.function_opsets import take_opset
from onnx_attnq.find.fused import Declined, FusedOp, decompose, is_fused_attention
from onnx_attnq.find.inlining import inline_functions
from onnx_attnq.find.sites import find_sites
from onnx_attnq.find.softmax import is_softmax, may_be_decomposed
from onnx_attnq.graph import Snapshot, standard_opset
from onnx_attnq.model import structure_hash

LEFT_FUSED: Final = "left fused, as it was asked for"
"""Why a fused op is not among the sites where ``keep`` said so."""


def expose(model: ir.Model, keep: Callable[[str], bool] = lambda site: False) -> Exposed:
    """Make every attention of a model visible to `find_sites`, in place.

    1. Functions that contain a softmax or a fused attention, or are between a softmax and its products,
       are inlined. Other functions stay functions.
    2. Fused attention ops become standard ops of the model's own opset, as far as that is known to compute
       the same; the rest stay, and `find_sites` gives the reason.

    Args:
        model: Changed, unless there is nothing to expose.
        keep: Tells by the id of a site whether to leave a fused op as it is.

    Returns:
        What `find_sites` takes: the model, and what it was before.
    """
    original, snapshot = structure_hash(model), Snapshot(model)
    kept = _inline(model)
    known = origins(model)
    declined = {node: kept[node.op_identifier()] for node in model.graph.all_nodes() if node.op_identifier() in kept}
    fused: dict[ir.Node, FusedOp] = {}
    for node in [node for node in known if is_fused_attention(node)]:
        if keep(known[node].id):
            declined[node] = LEFT_FUSED
            continue
        outcome = decompose(model, node)
        if isinstance(outcome, Declined):
            declined[node] = outcome.reason
        else:
            known[outcome.softmax] = known.pop(node)
            fused[outcome.softmax] = outcome.fused
    return Exposed(model, original, snapshot, known, declined, fused)


def _inline(model: ir.Model) -> dict[ir.OperatorIdentifier, str]:
    """Inline the functions that hide an attention; returns those that cannot be, with the reason."""
    kept: dict[ir.OperatorIdentifier, str] = {}

    def inline(names: Iterable[ir.OperatorIdentifier]) -> None:
        opset = standard_opset(model.opset_imports)
        for name in names:
            if reason := take_opset(model.functions[name], opset):
                kept[name] = reason
        chosen = set(names) - set(kept)
        if chosen:
            inline_functions(model, lambda function: function.identifier() in chosen)

    inline(_hiding(model.functions.values()))
    if model.functions and any(r.lost_in & set(model.functions) for r in find_sites(model).rejections):
        inline(list(model.functions))
    return kept


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
