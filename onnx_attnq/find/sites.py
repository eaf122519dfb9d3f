"""Find every attention of a model: each softmax ends up as a site, or as a rejection with a reason.

A softmax is an attention when, along its axis, its input comes from a product whose operand on that
axis depends on run-time data (the keys), and its output is contracted with an operand that does too
(the values). That one rule admits any chain of scales, masks, casts and layout changes between the three
nodes, and declines routers and classifier heads (the axis comes from a weight), codebooks (the values
are a weight), additive pooling and linear attention (no product of two run-time operands).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost, Product, describe
from onnx_attnq.find.exposed import Exposed, Origin
from onnx_attnq.find.fused import is_fused_attention
from onnx_attnq.find.product_search import Search
from onnx_attnq.find.softmax import SoftmaxRoot, softmax_root
from onnx_attnq.find.whole_attention import Attention, match_attention
from onnx_attnq.graph import Dataflow, Types, constant, dimension, known_op, size_of

_LOG: Final = logging.getLogger(__name__)

_NO_SOFTMAX: Final = {
    **dict.fromkeys(
        ("Sigmoid", "HardSigmoid", "Relu", "Softplus"),
        "it weighs the values in place of a softmax: its rows have no sum to keep",
    ),
    "Exp": "its row sum divides the context, or is written in an unknown way, so the probabilities never exist; "
    "export without late normalization",
}
"""Ops that weigh the values without a softmax, and why each is left; listed so that users know of them."""


class Form(enum.StrEnum):
    """What the rewriter replaces at a site."""

    SOFTMAX = "softmax"
    """The softmax itself: scores in, quantized probabilities out."""
    PROBABILITIES = "probabilities"
    """Nothing: probabilities are quantized where they leave the softmax."""
    ATTENTION = "attention"
    """The products with Q, K and V too."""


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One softmax that is an attention.

    Attributes:
        id: Stable name, unique in the model: the node's name, or its output's.
        op_type: Op of the node in the file, such as ``Softmax`` or ``MultiHeadAttention``.
        node: Name of that node.
        output: Name of its first output.
        scope: ``main``, or the path of the subgraph it is in.
        form: What the rewriter replaces.
        heads: Number of heads where the shapes tell, else None.
        shape: Of the probabilities: numbers, symbols, and None for what is unknown; None if all of it is.
        chain: Op types from the scores' product to the product with V.
        probabilities: The softmax's result, over ``axis``, in the model's own type.
        scores: The softmax's input, or None where only the probabilities can be taken.
        axis: The axis of the keys in both, counted from the end.
        score_products: The products that the scores are made of; the first is Q·Kᵀ.
        value_products: The products of the probabilities with V.
        story: The steps of the walk, for ``inspect --explain``.
        attention: The whole attention, where one op can replace it.
        softmax_only: Why one op cannot, and the products stay; empty where it can.
    """

    id: str
    op_type: str
    node: str
    output: str
    scope: str
    form: Form
    heads: int | None
    shape: tuple[int | str | None, ...] | None
    chain: tuple[str, ...]
    probabilities: ir.Value = dataclasses.field(repr=False, compare=False)
    scores: ir.Value | None = dataclasses.field(repr=False, compare=False)
    axis: int = dataclasses.field(repr=False, compare=False)
    score_products: tuple[Product, ...] = dataclasses.field(repr=False, compare=False)
    value_products: tuple[Product, ...] = dataclasses.field(repr=False, compare=False)
    story: tuple[str, ...] = dataclasses.field(repr=False, compare=False)
    attention: Attention | None = dataclasses.field(repr=False, compare=False)
    softmax_only: str = dataclasses.field(default="", repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A softmax or fused attention that is left alone.

    Attributes:
        node: Name of the node, or of its first output where it has none.
        op_type: Its op.
        scope: ``main``, or the path of the subgraph it is in.
        reason: One sentence that a person can act on.
        story: The steps of the walk, for ``inspect --explain``.
        lost_in: The ops that the walk could not follow.
    """

    node: str
    op_type: str
    scope: str
    reason: str
    story: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)
    lost_in: frozenset[ir.OperatorIdentifier] = dataclasses.field(default=frozenset(), repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Sites:
    """Everything that looked like attention, in the order of the graph.

    Attributes:
        sites: The attentions.
        rejections: What else looked like one.
        exposed: The model that they were found in, and what it was before.
    """

    sites: tuple[AttentionSite, ...]
    rejections: tuple[Rejection, ...]
    exposed: Exposed = dataclasses.field(repr=False, compare=False)


def find_sites(model: ir.Model | Exposed) -> Sites:
    """Every attention whose softmax is visible in the main graph or a subgraph.

    Args:
        model: What `expose` returned, or a model as it is, with whatever is fused in it. Not changed.

    Returns:
        Sites and rejections. Every softmax-like computation is in exactly one of the two.
    """
    exposed = model if isinstance(model, Exposed) else Exposed.as_it_is(model)
    flow = Dataflow(exposed.model)
    types = Types(flow)
    search = Search(flow, types)
    sites: list[AttentionSite] = []
    rejections: list[Rejection] = []
    fault = _runtime_fault(flow)
    roots = {node: softmax_root(node, types) for graph in flow.graphs for node in graph}
    divided = {root.scores for root in roots.values() if isinstance(root, SoftmaxRoot)}
    for graph in flow.graphs:
        scope = flow.scope(graph)
        for node in graph:
            name = node.name or node.outputs[0].name or ""
            if is_fused_attention(node) or node in exposed.declined:
                reason = exposed.declined.get(node, "a fused op; `expose` makes its softmax visible")
                rejections.append(Rejection(name, node.op_type, scope, reason))
                continue
            root = roots[node]
            if root is None:
                in_place = _NO_SOFTMAX.get(node.op_type) if not node.domain else None
                if in_place is not None and node.inputs[0] not in divided and _weighs_values(node, search):
                    rejections.append(Rejection(name, node.op_type, scope, in_place))
                continue
            if isinstance(root, Lost):
                rejections.append(Rejection(name, node.op_type, scope, root.reason))
                continue
            found = _judge(root, search)
            if isinstance(found, _Refusal):
                rejections.append(Rejection(name, node.op_type, scope, found.reason, found.story, found.lost_in))
                continue
            sites.append(_site(root, found, scope, exposed.origins[node], types, fault))
    _LOG.info("found %d attention sites; declined %d", len(sites), len(rejections))
    for rejection in rejections:
        _LOG.debug("declined %s %r: %s", rejection.op_type, rejection.node, rejection.reason)
    return Sites(tuple(sites), tuple(rejections), exposed)


def _site(root: SoftmaxRoot, found: _Found, scope: str, origin: Origin, types: Types, fault: str) -> AttentionSite:
    story, whole = found.story, None
    reason = (
        "its softmax is not over the last axis" if root.replaceable else "only what its softmax gives can be quantized"
    )
    if root.replaceable and root.scores is not None and root.axis == -1:
        products = found.score_products, found.value_products
        match = Lost(fault) if fault else match_attention(root.scores, root.probabilities, *products, types)
        if isinstance(match, Lost):
            reason = match.reason
            story = (*story, f"softmax only: {reason}")
        else:
            whole, reason = match, ""
    form = Form.SOFTMAX if root.replaceable else Form.PROBABILITIES
    if whole is not None:
        form = Form.ATTENTION
    return AttentionSite(
        id=origin.id,
        op_type=origin.op_type,
        node=origin.node,
        output=origin.output,
        scope=scope,
        form=form,
        heads=_heads(root.probabilities),
        shape=_shape(root.probabilities),
        chain=found.chain,
        probabilities=root.probabilities,
        scores=root.scores,
        axis=root.axis,
        score_products=found.score_products,
        value_products=found.value_products,
        story=story,
        attention=whole,
        softmax_only=reason,
    )


def _runtime_fault(flow: Dataflow) -> str:
    """Why no whole attention may be replaced; "" where one may.

    onnxruntime 1.32 gives wrong numbers where it moves a Transpose through a DequantizeLinear without zero point. A
    model with such a node can be wrong as it is; the Transposes in the body of a whole attention make more so.
    """
    for graph in flow.graphs:
        for node in graph:
            if known_op(node) == "DequantizeLinear" and len(node.inputs) == 2 and constant(node.inputs[0]) is None:
                return f"{describe(node)} has no zero point, behind which onnxruntime misplaces Transposes; give it one"
    return ""


def _weighs_values(node: ir.Node, search: Search) -> bool:
    """Whether what a node makes of the products of query and key is multiplied with V."""
    return bool(search.before(node.inputs[0], -1).products and search.after(node.outputs[0], -1).products)


# --- is it attention?


@dataclasses.dataclass(frozen=True)
class _Found:
    score_products: tuple[Product, ...]
    value_products: tuple[Product, ...]
    chain: tuple[str, ...]
    story: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Refusal:
    reason: str
    story: tuple[str, ...]
    lost_in: frozenset[ir.OperatorIdentifier]


def _judge(root: SoftmaxRoot, search: Search) -> _Found | _Refusal:
    before = search.before(root.scores if root.scores is not None else root.node.inputs[0], root.axis)
    if not before.products:
        reason = before.reason or "no product of query and key leads to it"
        return _Refusal(reason, before.story, frozenset(before.lost_in))
    after = search.after(root.probabilities, root.axis)
    story = before.story + after.story
    if not after.products:
        reason = after.reason or "no product with V follows it"
        return _Refusal(reason, story, frozenset(before.lost_in + after.lost_in))
    chain = (*reversed(before.chain), f"[{root.node.op_type}]", *after.chain)
    return _Found(before.products, after.products, chain, story)


# --- what is known of its size


def _heads(probabilities: ir.Value) -> int | None:
    """All axes between batch and queries: heads, or key heads and the queries' heads of each."""
    shape = probabilities.shape
    if shape is None or len(shape) < 4:
        return None
    sizes = [size for axis in range(1, len(shape) - 2) if (size := size_of(probabilities, axis)) is not None]
    return math.prod(sizes) if len(sizes) == len(shape) - 3 else None


def _shape(probabilities: ir.Value) -> tuple[int | str | None, ...] | None:
    shape = probabilities.shape
    return None if shape is None else tuple(dimension(probabilities, axis) for axis in range(len(shape)))
