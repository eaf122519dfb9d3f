"""Search a graph for the products around a softmax: of query and key before it, with V after it.

The answer for a place in the graph does not depend on where the search came from, so it is worked out once for
all softmax of a model: the time grows with the number of nodes, also where every softmax leads to every other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias, TypeVar

import onnx_ir as ir

from onnx_attnq.find import axis_walk
from onnx_attnq.find.axis_walk import Lost, Passed, Position, Product, describe
from onnx_attnq.find.softmax import softmax_root, through
from onnx_attnq.graph import Dataflow, Types, branch_outputs, known_op

_MOST: Final = 64
"""Products, lines of the story and lost ops that are kept of one search; an attention has a few."""

_LAYOUT: Final = (
    *("Cast", "Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze"),
    *("Split", "Slice", "Gather"),
)
"""Ops that only move, copy or leave out elements."""

_Path: TypeAlias = "tuple[str, _Path] | None"
"""Op types from a place to the first product, as a list that shares its tail with those of other places."""

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a search came to.

    Attributes:
        products: The products, in the order in which they were found.
        reason: Why there is none, as far as that is known.
        story: A line for each product, and for each path without one.
        lost_in: The ops that could not be followed.
        path: See `chain`.
    """

    products: tuple[Product, ...] = ()
    reason: str = ""
    story: tuple[str, ...] = ()
    lost_in: tuple[ir.OperatorIdentifier, ...] = ()
    path: _Path = None

    @property
    def chain(self) -> tuple[str, ...]:
        """The op types on the way to the first product, the nearest first, with the product's."""
        ops, path = [], self.path
        while path is not None:
            op, path = path
            ops.append(op)
        return tuple(ops)


@dataclasses.dataclass(frozen=True)
class _Place:
    position: Position
    mixed: bool = False
    """Whether the scores were multiplied with a matrix that mixes heads on the way here."""


_Way: TypeAlias = "tuple[str, _Place] | Reached"
"""On to another place, by an op, or "" where none is between; or the end."""


class Search:
    """Searches in a model that is not changed meanwhile."""

    def __init__(self, flow: Dataflow, types: Types) -> None:
        self._flow = flow
        self._types = types
        self._before: dict[_Place, Reached] = {}
        self._after: dict[_Place, Reached] = {}

    def before(self, scores: ir.Value | None, axis: int) -> Reached:
        """From the scores to the products of query and key that they are made of."""
        if scores is None:
            return Reached(reason="its input is missing")
        found = _search(_Place(Position(scores, axis)), self._ways_back, self._before)
        if found.products or found.reason or not found.story:
            return found
        text = found.story[0].removeprefix("scores: ")
        return dataclasses.replace(found, reason=f"no product of query and key leads to it: {text}")

    def after(self, probabilities: ir.Value, axis: int) -> Reached:
        """From the probabilities to their products with V."""
        found = _search(_Place(Position(probabilities, axis)), self._ways_on, self._after)
        if found.products or found.reason or not found.story:
            return found
        text = found.story[0].removeprefix("context: ")
        return dataclasses.replace(found, reason=f"no product with V follows it: {text}")

    def _ways_back(self, place: _Place) -> Iterator[_Way]:
        position = place.position
        step = _enter_if(position) or axis_walk.backward(position.value, position.axis, self._types)
        node = position.value.producer()
        op = "" if node is None else known_op(node)
        match step:
            case Passed(positions):
                on_data = [p for p in positions if self._flow.depends_on_data(p.value)]
                yield from ((op, _Place(p, place.mixed)) for p in on_data)
                if node is not None and op == "ScatterND" and not on_data:
                    text = (
                        f"{describe(node)} writes scores into a constant, as Longformer its bands: not followed; "
                        "use a model with dense attention"
                    )
                    yield Reached(story=(f"scores: {text}",))
            case Product():
                verdict = self._is_score(step, place.mixed)
                if isinstance(verdict, Position):
                    yield op, _Place(verdict, mixed=True)
                elif verdict is None:
                    line = f"scores: {describe(step.node)} multiplies query and key"
                    yield Reached((step,), story=(line,), path=(op, None))
                else:
                    yield Reached(reason=verdict, story=(f"scores: {verdict}",))
            case Lost(text, op_id):
                story, reason = [f"scores: {text}"], ""
                # Wherever the axis goes: what is only moved about and comes from a linear layer is no product of two.
                if (layer := self._linear_source(position.value)) is not None:
                    reason = _no_query(layer)
                    story.append(f"scores: {reason}")
                yield Reached(reason=reason, story=tuple(story), lost_in=() if op_id is None else (op_id,))

    def _linear_source(self, value: ir.Value | None) -> ir.Node | None:
        """The product with a weight that a value is the result of, with nothing but its bias and layout between."""
        on_data = self._flow.depends_on_data
        for _ in range(_MOST):
            value = through(value, _LAYOUT)
            node = None if value is None else value.producer()
            if node is None:
                return None
            inputs = [v for v in axis_walk.operands(node) or node.inputs if on_data(v)]
            if len(inputs) != 1:
                return None
            if axis_walk.operands(node):
                return node
            if known_op(node) not in ("Add", "Sub", "Mul", "Div"):
                return None
            value = inputs[0]
        return None

    def _is_score(self, product: Product, mixed: bool) -> str | Position | None:
        """None for a product of query and key, a reason against it, or where to go on."""
        name = describe(product.node)
        on_data = self._flow.depends_on_data
        if not on_data(product.with_axis.value):
            if not on_data(product.other):
                return (
                    f"query and key of {name} do not depend on the model's inputs, as where learned queries attend to "
                    "one another: its probabilities are the same in every run"
                )
            return (
                f"the softmax runs over an axis that a weight of {name} supplies, as in a router, a classifier "
                "or the features of linear attention"
            )
        if not on_data(product.other) and axis_walk.is_linear(product, self._types):
            # Talking heads mix the scores of the heads with one matrix before the softmax. Scores with heads have
            # four axes; fewer are a linear layer on tokens. Where that is unknown, as many heads come out as go in.
            rank = self._types.rank(product.with_axis.value)
            if not mixed and (axis_walk.is_square(product) if rank is None else rank >= 4):
                return product.with_axis
            return _no_query(product.node)
        if any(_is_probabilities(v, self._types) for v in (product.with_axis.value, product.other)):
            return f"{name} is the context of another softmax, not a product of query and key"
        return None

    def _ways_on(self, place: _Place) -> Iterator[_Way]:
        position, on_data = place.position, self._flow.depends_on_data
        for use in position.value.uses():
            if known_op(use.node) in ("Shape", "Size"):
                continue  # they ask how large it is
            step = axis_walk.forward(use.node, use.idx, position.axis, self._types)
            if isinstance(step, Passed) and sum(map(on_data, axis_walk.operands(use.node))) > 1:
                step = Lost(f"{describe(use.node)} multiplies it along another axis, as slots are updated")
            match step:
                case Passed(positions):
                    yield from ((known_op(use.node), _Place(p)) for p in positions)
                case Product() if on_data(step.other):
                    line = f"context: {describe(step.node)} multiplies with V"
                    yield Reached((step,), story=(line,), path=(known_op(use.node), None))
                case Product():
                    text = f"the values that {describe(step.node)} weighs are constant, as in a codebook"
                    yield Reached(reason=text, story=(f"context: {text}",))
                case Lost(text, op_id):
                    yield Reached(story=(f"context: {text}",), lost_in=() if op_id is None else (op_id,))
        yield from (("", _Place(p)) for p in self._leave_if(position))

    def _leave_if(self, position: Position) -> Iterator[Position]:
        """The output of the If that a value leaves its branch by."""
        graph = position.value.graph
        if not position.value.is_graph_output() or not isinstance(graph, ir.Graph):
            return
        owner = self._flow.owner(graph)
        if owner is None or known_op(owner) != "If":
            return
        for index, output in enumerate(graph.outputs):
            if output is position.value:
                yield Position(owner.outputs[index], position.axis)


def _search(start: _Place, ways: Callable[[_Place], Iterable[_Way]], known: dict[_Place, Reached]) -> Reached:
    """What is reached from ``start``; ``known`` has the answers of earlier searches, and gets this one's."""
    pending, opened = [start], dict[_Place, tuple[_Way, ...]]()
    while pending:  # not recursive: graphs are deeper than Python's stack
        place = pending[-1]
        if place in known:
            pending.pop()
            continue
        if place not in opened:
            opened[place] = tuple(ways(place))
            pending.extend(way[1] for way in reversed(opened[place]) if isinstance(way, tuple))
            continue
        # A place that is still open is one on the way here, in a graph with a cycle.
        known[place] = _united([_seen(way, known) for way in opened[place]])
        pending.pop()
    return known[start]


def _seen(way: _Way, known: dict[_Place, Reached]) -> Reached:
    if isinstance(way, Reached):
        return way
    op, place = way
    found = known.get(place, Reached())
    return dataclasses.replace(found, path=(op, found.path)) if op and found.products else found


def _united(parts: list[Reached]) -> Reached:
    if len(parts) == 1:
        return parts[0]
    return Reached(
        products=_first(product for part in parts for product in part.products),
        reason=next((part.reason for part in parts if part.reason), ""),
        story=_first(line for part in parts for line in part.story),
        lost_in=_first(op for part in parts for op in part.lost_in),
        path=next((part.path for part in parts if part.products), None),
    )


def _first(items: Iterable[_Item]) -> tuple[_Item, ...]:
    return tuple(dict.fromkeys(items))[:_MOST]


def _no_query(layer: ir.Node) -> str:
    return (
        f"{describe(layer)} is a linear layer of one input, as in additive pooling and linear attention: "
        "there is no product of query and key"
    )


def _enter_if(position: Position) -> Passed | None:
    """The outputs of both branches, for a value that an If computes."""
    node = position.value.producer()
    if node is None or known_op(node) != "If":
        return None
    return Passed(tuple(Position(output, position.axis) for output in branch_outputs(position.value)))


def _is_probabilities(value: ir.Value, types: Types) -> bool:
    # Where and IsNaN: the guard that makes the NaN of a fully masked row zero, which begins with its condition.
    source = through(value, (*_LAYOUT, "Where", "IsNaN"))
    node = None if source is None else source.producer()
    return node is not None and softmax_root(node, types) is not None


__all__ = ["Reached", "Search"]
