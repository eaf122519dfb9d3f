"""What is known of a model whose attention is visible: passed from `expose` to `find_sites` to `rewrite`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnx_attnq.find.fused import FusedOp, is_fused_attention
from onnx_attnq.find.softmax import softmax_root
from onnx_attnq.graph import Dataflow, Snapshot, Types
from onnx_attnq.model import structure_hash


@dataclasses.dataclass(frozen=True)
class Origin:
    """A softmax or fused op as the file has it, which stays its name whatever becomes of the node.

    Attributes:
        id: Unique in the model: the node's name or its output's, behind the path of its subgraph, and with a number
            where that is taken.
        op_type: Its op.
        node: Its name.
        output: Name of its first output.
    """

    id: str
    op_type: str
    node: str
    output: str


@dataclasses.dataclass(frozen=True, eq=False)
class Exposed:
    """A model whose attention is visible, and what it was before.

    Attributes:
        model: The model.
        structure_hash: `onnx_attnq.structure_hash` of the original, which plans refer to.
        snapshot: The original's wiring, for the undo.
        origins: For each softmax, and each fused op that was left, what it was in the file.
        declined: For each fused op that was left, the reason.
        fused: For each softmax that came out of a fused op, that op.
    """

    model: ir.Model
    structure_hash: str
    snapshot: Snapshot
    origins: Mapping[ir.Node, Origin]
    declined: Mapping[ir.Node, str]
    fused: Mapping[ir.Node, FusedOp]

    @classmethod
    def as_it_is(cls, model: ir.Model) -> Exposed:
        """A model to which nothing was done."""
        return cls(model, structure_hash(model), Snapshot(model), origins(model), {}, {})


def origins(model: ir.Model) -> dict[ir.Node, Origin]:
    """Every softmax and fused attention of the main graph and its subgraphs, with an id of its own.

    Made before anything is decomposed, so that an id does not depend on what will be. The first of several nodes of
    one name keeps it.

    >>> q, k, v = (ir.val(name) for name in "qkv")
    >>> nodes = [ir.node("Attention", [q, k, v], name=name) for name in ("/a", "a#2", "a")]
    >>> graph = ir.Graph([q, k, v], [], nodes=nodes, opset_imports={"": 23}, name="g")
    >>> [origin.id for origin in origins(ir.Model(graph, ir_version=10)).values()]
    ['a', 'a#2', 'a#3']
    """
    flow = Dataflow(model)
    types = Types(flow)
    nodes = [
        (node, flow.scope(graph))
        for graph in flow.graphs
        for node in graph
        if is_fused_attention(node) or softmax_root(node, types) is not None
    ]
    ids = _unique([_full_name(node, scope) for node, scope in nodes])
    return {
        node: Origin(site, node.op_type, node.name or "", node.outputs[0].name or "")
        for (node, _), site in zip(nodes, ids, strict=True)
    }


def _full_name(node: ir.Node, scope: str) -> str:
    name = (node.name or node.outputs[0].name or node.op_type).strip("/")
    return name if scope == "main" else f"{scope.removeprefix('main/')}/{name}"


def _unique(names: Iterable[str]) -> list[str]:
    """The names; a repeated one gets the lowest number that makes it unique."""
    wanted = list(names)
    taken = set(wanted)
    given: set[str] = set()
    result = []
    for name in wanted:
        candidate, number = name, 1
        while candidate in given or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name}#{number}"
        given.add(candidate)
        result.append(candidate)
    return result


__all__ = ["Exposed", "Origin", "origins"]
