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
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from onnx_attnq import walk
from onnx_attnq.attention import Attention, match_attention
from onnx_attnq.dataflow import Dataflow
from onnx_attnq.fused import is_fused_attention
from onnx_attnq.infer import branch_outputs, rank_of
from onnx_attnq.softmax import SoftmaxRoot, softmax_root, through
from onnx_attnq.walk import Lost, Passed, Position, Product, describe

_MOST_STEPS = 10_000
"""A bound on one walk, so that a hostile graph cannot make it endless."""


ORIGIN: Final = "onnx_attnq.origin"
"""Key in the ``meta`` of a softmax that came out of a fused op: its `Origin`."""

DECLINED: Final = "onnx_attnq.declined"
"""Key in the ``meta`` of a fused op that was not decomposed: the reason."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The fused op that a softmax was a part of.

    Attributes:
        op_type: Its op.
        node: Its name.
        output: Name of its first output.
    """

    op_type: str
    node: str
    output: str


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
        chain: Op types from the scores' product to the product with V.
        probabilities: The softmax's result, over ``axis``, in the model's own type.
        scores: The softmax's input, or None where only the probabilities can be taken.
        axis: The axis of the keys in both, counted from the end.
        score_products: The products that the scores are made of; the first is Q·Kᵀ.
        value_products: The products of the probabilities with V.
        story: The steps of the walk, for ``inspect --explain``.
        attention: The whole attention, where one op can replace it.
    """

    id: str
    op_type: str
    node: str
    output: str
    scope: str
    form: Form
    heads: int | None
    chain: tuple[str, ...]
    probabilities: ir.Value = dataclasses.field(repr=False, compare=False)
    scores: ir.Value | None = dataclasses.field(repr=False, compare=False)
    axis: int = dataclasses.field(repr=False, compare=False)
    score_products: tuple[Product, ...] = dataclasses.field(repr=False, compare=False)
    value_products: tuple[Product, ...] = dataclasses.field(repr=False, compare=False)
    story: tuple[str, ...] = dataclasses.field(repr=False, compare=False)
    attention: Attention | None = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A softmax or fused attention that is left alone.

    Attributes:
        node: Name of the node.
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
    """Everything that looked like attention, in the order of the graph."""

    sites: tuple[AttentionSite, ...]
    rejections: tuple[Rejection, ...]


def find_sites(model: ir.Model) -> Sites:
    """Every attention whose softmax is visible in the main graph or a subgraph.

    Args:
        model: Not changed.

    Returns:
        Sites and rejections. Every softmax-like computation is in exactly one of the two.
    """
    flow = Dataflow(model)
    sites: list[AttentionSite] = []
    rejections: list[Rejection] = []
    taken: dict[str, int] = {}
    for graph in flow.graphs:
        scope = flow.scope(graph)
        for node in graph:
            if is_fused_attention(node):
                reason = node.meta.get(DECLINED) or "a fused op; `expose` makes its softmax visible"
                rejections.append(Rejection(node.name or "", node.op_type, scope, reason))
                continue
            root = softmax_root(node, graph)
            if root is None:
                continue
            if isinstance(root, Lost):
                rejections.append(Rejection(node.name or "", node.op_type, scope, root.reason))
                continue
            found = _judge(root, flow)
            if isinstance(found, _Refusal):
                rejections.append(
                    Rejection(node.name or "", node.op_type, scope, found.reason, found.story, found.lost_in)
                )
                continue
            sites.append(_site(node, root, found, scope, taken))
    return Sites(tuple(sites), tuple(rejections))


def _site(node: ir.Node, root: SoftmaxRoot, found: _Found, scope: str, taken: dict[str, int]) -> AttentionSite:
    story, whole = found.story, None
    if root.replaceable and root.scores is not None and root.axis == -1:
        match = match_attention(root.scores, root.probabilities, found.score_products, found.value_products)
        if isinstance(match, Lost):
            story = (*story, f"softmax only: {match.reason}")
        else:
            whole = match
    form = Form.SOFTMAX if root.replaceable else Form.PROBABILITIES
    if whole is not None:
        form = Form.ATTENTION
    origin = node.meta.get(ORIGIN) or Origin(node.op_type, node.name or "", node.outputs[0].name or "")
    return AttentionSite(
        id=_unique_id(origin.node or origin.output or origin.op_type, scope, taken),
        op_type=origin.op_type,
        node=origin.node,
        output=origin.output,
        scope=scope,
        form=form,
        heads=_heads(root.probabilities),
        chain=found.chain,
        probabilities=root.probabilities,
        scores=root.scores,
        axis=root.axis,
        score_products=found.score_products,
        value_products=found.value_products,
        story=story,
        attention=whole,
    )


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


def _judge(root: SoftmaxRoot, flow: Dataflow) -> _Found | _Refusal:
    story: list[str] = []
    start = root.scores if root.scores is not None else root.node.inputs[0]
    before = _walk_back(start, root.axis, flow, story)
    if not before.products:
        return _Refusal(before.reason or "no product of query and key leads to it", tuple(story), before.lost_in)
    after = _walk_on(root.probabilities, root.axis, flow, story)
    lost_in = before.lost_in | after.lost_in
    if not after.products:
        return _Refusal(after.reason or "no product with V follows it", tuple(story), lost_in)
    chain = (*before.chain, f"[{root.node.op_type}]", *after.chain)
    return _Found(before.products, after.products, chain, tuple(story))


@dataclasses.dataclass(frozen=True)
class _Walked:
    products: tuple[Product, ...]
    reason: str
    chain: tuple[str, ...]
    lost_in: frozenset[ir.OperatorIdentifier] = frozenset()


def _walk_back(start: ir.Value | None, axis: int, flow: Dataflow, story: list[str]) -> _Walked:
    """From the scores to the products of query and key that they are made of."""
    if start is None:
        return _Walked((), "its input is missing", ())
    products: list[Product] = []
    chains: list[tuple[str, ...]] = []
    reason = ""
    lost_in: set[ir.OperatorIdentifier] = set()
    seen: set[tuple[ir.Value, int]] = set()
    pending: list[tuple[Position, bool, tuple[str, ...]]] = [(Position(start, axis), False, ())]
    for _ in range(_MOST_STEPS):
        if not pending:
            break
        position, mixed, chain = pending.pop()
        if (position.value, position.axis) in seen:
            continue
        seen.add((position.value, position.axis))
        step = _enter_if(position) or walk.backward(position.value, position.axis)
        node = position.value.producer()
        op = () if node is None else (node.op_type,)
        match step:
            case Passed(positions):
                pending.extend((p, mixed, (*op, *chain)) for p in reversed(positions) if flow.depends_on_data(p.value))
            case Product():
                verdict = _is_score(step, flow, mixed)
                if verdict is None:
                    products.append(step)
                    chains.append((*op, *chain))
                    story.append(f"scores: {describe(step.node)} multiplies query and key")
                elif isinstance(verdict, Position):
                    pending.append((verdict, True, (*op, *chain)))
                else:
                    story.append(f"scores: {verdict}")
                    reason = reason or verdict
            case Lost(text, op_id):
                story.append(f"scores: {text}")
                lost_in.update(() if op_id is None else (op_id,))
    if not products and not reason:
        reason = f"no product of query and key leads to it: {story[0].removeprefix('scores: ')}" if story else ""
    return _Walked(tuple(products), reason, chains[0] if chains else (), frozenset(lost_in))


def _enter_if(position: Position) -> Passed | None:
    """The outputs of both branches, for a value that an If computes."""
    node = position.value.producer()
    if node is None or node.op_type != "If":
        return None
    return Passed(tuple(Position(output, position.axis) for output in branch_outputs(position.value)))


def _is_score(product: Product, flow: Dataflow, mixed: bool) -> str | Position | None:
    """None for a product of query and key, a reason against it, or where to walk on."""
    name = describe(product.node)
    if not flow.depends_on_data(product.with_axis.value):
        return f"the softmax runs over an axis that a weight of {name} supplies, as in a router or classifier"
    if not flow.depends_on_data(product.other) and walk.is_linear(product):
        # Talking heads mix the scores of the heads with one square matrix before the softmax. Scores with
        # heads have four axes; fewer are a linear layer on tokens.
        if not mixed and walk.is_square(product) and (rank_of(product.with_axis.value) or 4) >= 4:
            return product.with_axis
        return f"{name} is a linear layer of one input, as in additive pooling: there is no query"
    if _is_probabilities(product.with_axis.value) or _is_probabilities(product.other):
        return f"{name} is the context of another softmax, not a product of query and key"
    return None


def _is_probabilities(value: ir.Value) -> bool:
    source = through(value, ("Cast", "Identity", "Transpose", "Reshape", "Dropout", "Unsqueeze", "Squeeze"))
    node = None if source is None else source.producer()
    return node is not None and node.op_type == "Softmax"


def _walk_on(start: ir.Value, axis: int, flow: Dataflow, story: list[str]) -> _Walked:
    """From the probabilities to their products with V."""
    products: list[Product] = []
    chains: list[tuple[str, ...]] = []
    reason = ""
    lost_in: set[ir.OperatorIdentifier] = set()
    seen: set[tuple[ir.Value, int]] = set()
    pending: list[tuple[Position, tuple[str, ...]]] = [(Position(start, axis), ())]
    for _ in range(_MOST_STEPS):
        if not pending:
            break
        position, chain = pending.pop()
        if (position.value, position.axis) in seen:
            continue
        seen.add((position.value, position.axis))
        for use in position.value.uses():
            step = walk.forward(use.node, use.idx, position.axis)
            op = use.node.op_type
            if isinstance(step, Passed) and sum(map(flow.depends_on_data, walk.operands(use.node))) > 1:
                step = Lost(f"{describe(use.node)} multiplies it along another axis, as slots are updated")
            match step:
                case Passed(positions):
                    pending.extend((p, (*chain, op)) for p in positions)
                case Product() if flow.depends_on_data(step.other):
                    products.append(step)
                    chains.append((*chain, op))
                    story.append(f"context: {describe(step.node)} multiplies with V")
                case Product():
                    text = f"the values that {describe(step.node)} weighs are constant, as in a codebook"
                    story.append(f"context: {text}")
                    reason = reason or text
                case Lost(text, op_id):
                    story.append(f"context: {text}")
                    lost_in.update(() if op_id is None else (op_id,))
        pending.extend((p, chain) for p in _leave_subgraph(position, flow))
    if not products and not reason:
        lost = [s.removeprefix("context: ") for s in story if s.startswith("context: ")]
        reason = f"no product with V follows it: {lost[0]}" if lost else ""
    return _Walked(tuple(products), reason, chains[0] if chains else (), frozenset(lost_in))


def _leave_subgraph(position: Position, flow: Dataflow) -> Iterator[Position]:
    """The output of the If that a value leaves its branch by."""
    graph = position.value.graph
    if graph is None or not position.value.is_graph_output() or not isinstance(graph, ir.Graph):
        return
    owner = flow.owner(graph)
    if owner is None or owner.op_type != "If":
        return
    for index, output in enumerate(graph.outputs):
        if output is position.value:
            yield Position(owner.outputs[index], position.axis)


# --- what a site is called


def _unique_id(name: str, scope: str, taken: dict[str, int]) -> str:
    name = name.strip("/")
    full = name if scope == "main" else f"{scope.removeprefix('main/')}/{name}"
    count = taken.get(full, 0)
    taken[full] = count + 1
    return full if count == 0 else f"{full}#{count + 1}"


def _heads(probabilities: ir.Value) -> int | None:
    shape = probabilities.shape
    if shape is None or len(shape) < 4:
        return None
    heads = shape[-3]
    return heads if isinstance(heads, int) else None
