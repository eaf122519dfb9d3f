"""Which whole attentions one op can replace, products and layout included.

`QuantizedAttention` covers Q·Kᵀ · scale + mask → softmax → guard → · V. What leads from the products to the
softmax must be of these kinds, must be used for nothing else, and must be float32:

1. multiplication or division by one constant number: part of the scale;
2. addition of a mask; replacement of masked scores by a very low constant, which adding one equals; a
   lower bound that is as low;
3. Transpose of query, key, value and context, which the op's permutations express;
4. after the softmax, Where(IsNaN(p), 0, p), which zeroes fully masked rows.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost, Product, describe
from onnx_attnq.graph import Types, constant, dtype_of, number_of

LOWEST_MASK: Final = -1e30
"""A constant below this swallows any score that is added to it, in float32."""

_MOST_BETWEEN: Final = 256
"""Nodes to look at for one step, so that sites that share a long chain do not each follow all of it."""


@dataclasses.dataclass(frozen=True)
class Added:
    """A mask that is added to the scores."""

    mask: ir.Value


@dataclasses.dataclass(frozen=True)
class Filled:
    """Scores that are replaced by ``fill`` where ``condition`` is ``when``."""

    condition: ir.Value
    when: bool
    fill: float


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Scores, mask included, that are not allowed below ``lowest``."""

    lowest: float


Mask = Added | Filled | Bounded


@dataclasses.dataclass(frozen=True)
class Operand:
    """An input of a product, traced to where its layout ops begin.

    Attributes:
        value: The traced value.
        perm: Permutation of its axes that the product sees.
        scale: What it was multiplied by on the way.
    """

    value: ir.Value
    perm: tuple[int, ...]
    scale: float


@dataclasses.dataclass(frozen=True)
class Attention:
    """An attention that one op can replace.

    Attributes:
        query: (..., L_q, D) after its permutation.
        key: (..., D, L_k) after its permutation: the right operand of the product.
        value: (..., L_k, D_v) after its permutation.
        scale: Factor on the scores, those of query and key included.
        masks: What is done to the scaled scores, in order.
        zeroes_masked_rows: Whether a guard turns the NaN of a fully masked row into zeros.
        context: The value that the op's output replaces.
        out_perm: Permutation of (..., L_q, D_v) that gives it.
    """

    query: Operand
    key: Operand
    value: Operand
    scale: float
    masks: tuple[Mask, ...]
    zeroes_masked_rows: bool
    context: ir.Value
    out_perm: tuple[int, ...]


def match_attention(
    scores: ir.Value,
    probabilities: ir.Value,
    score_products: tuple[Product, ...],
    value_products: tuple[Product, ...],
    types: Types,
) -> Attention | Lost:
    """The attention around a softmax over the last axis, or why one op cannot replace it."""
    if len(score_products) != 1 or len(value_products) != 1:
        return Lost("more than one product makes the scores or takes the probabilities")
    scored, weighed = score_products[0].node, value_products[0].node
    if scored.op_type != "MatMul" or weighed.op_type != "MatMul" or not value_products[0].is_left:
        return Lost("a product is not a MatMul with the probabilities on the left")
    if types.dtype(scores) != ir.DataType.FLOAT:
        return Lost("the scores are not float32")
    before = _trace_scores(scores, scored)
    if isinstance(before, Lost):
        return before
    guarded = _trace_probabilities(probabilities, weighed)
    if isinstance(guarded, Lost):
        return guarded
    query = _trace_operand(scored.inputs[0], types, scaled=True)
    key = _trace_operand(scored.inputs[1], types, scaled=True)
    value = _trace_operand(weighed.inputs[1], types, scaled=False)
    for operand in (query, key, value):
        if isinstance(operand, Lost):
            return operand
    assert isinstance(query, Operand)
    assert isinstance(key, Operand)
    assert isinstance(value, Operand)
    if len({len(query.perm), len(key.perm), len(value.perm)}) != 1:
        return Lost("query, key and value are of different rank")
    scale, masks = before
    context, out_perm = _trace_context(weighed.outputs[0], len(query.perm))
    return Attention(query, key, value, scale * query.scale * key.scale, masks, guarded, context, out_perm)


def _trace_scores(scores: ir.Value, product: ir.Node) -> tuple[float, tuple[Mask, ...]] | Lost:
    """Scale and masks between the product and the softmax, in the order in which they are applied."""
    scale = 1.0
    masks: list[Mask] = []
    value = scores
    while True:
        if not _used_once(value):
            return Lost(f"the scores {value.name!r} are used elsewhere too")
        node = value.producer()
        if node is product:
            return scale, tuple(reversed(masks))
        if node is None:
            return Lost("the product of query and key is in another graph")
        # Upstream is walked last to first: a mask found after a scale was scaled too.
        if node.op_type in ("Mul", "Div"):
            factor = number_of(node.inputs[1]) or (number_of(node.inputs[0]) if node.op_type == "Mul" else None)
            if not factor:
                return Lost(f"{describe(node)} is no multiplication by a constant number")
            scale *= factor if node.op_type == "Mul" else 1.0 / factor
            value = _other(node, factor_first=number_of(node.inputs[1]) is None)
        elif _is_noop(node):
            value = _first(node)
        else:
            index = next((i for i, v in enumerate(node.inputs) if v is not None and _leads_to(v, product)), None)
            mask = None if index is None else _mask(node, index)
            if mask is None or index is None:
                return Lost(f"{describe(node)} is neither scale nor mask")
            if scale != 1.0:
                return Lost(f"{describe(node)} masks before the scale")
            masks.append(mask)
            value = _input(node, index)


def _mask(node: ir.Node, index: int) -> Mask | None:
    """What the node does to the scores that are its input ``index``, if that is a mask."""
    match node.op_type:
        case "Add":
            return Added(_input(node, 1 - index))
        case "Where" if index in (1, 2):
            fill = number_of(node.inputs[3 - index])
            return None if fill is None or fill > LOWEST_MASK else Filled(_input(node, 0), index == 2, fill)
        case "Max" if len(node.inputs) == 2:
            lowest = number_of(node.inputs[1 - index])
            return None if lowest is None or lowest > LOWEST_MASK else Bounded(lowest)
    return None


def _trace_probabilities(probabilities: ir.Value, product: ir.Node) -> bool | Lost:
    """Whether there is a guard between the softmax and the product with V; nothing else may be there."""
    value, guarded = probabilities, False
    while True:
        if value.is_graph_output():
            return Lost("the probabilities are an output of the model")
        users = [use.node for use in value.uses()]
        if users == [product]:
            return guarded
        if len(users) == 1 and _is_noop(users[0]):
            value = users[0].outputs[0]
        elif (guard := _guard(value, users)) is not None and not guarded:
            value, guarded = guard, True
        else:
            return Lost(f"the probabilities are used by {', '.join(sorted({user.op_type for user in users}))}")


def _guard(value: ir.Value, users: list[ir.Node]) -> ir.Value | None:
    """The output of Where(IsNaN(value), 0, value), when that is all that uses the value."""
    by_op = {user.op_type: user for user in users}
    if set(by_op) != {"IsNaN", "Where"} or len(users) != 2:
        return None
    where, is_nan = by_op["Where"], by_op["IsNaN"].outputs[0]
    fits = where.inputs[0] is is_nan and where.inputs[2] is value and number_of(where.inputs[1]) == 0.0
    return where.outputs[0] if fits and len(is_nan.uses()) == 1 else None


def _trace_operand(value: ir.Value | None, types: Types, *, scaled: bool) -> Operand | Lost:
    """Upstream through Transpose, and where it can be folded into the scale, multiplication by a number."""
    rank = types.rank(value)
    if value is None or rank is None or rank < 2:
        return Lost("the rank of an operand is unknown")
    perm, scale = tuple(range(rank)), 1.0
    for _ in range(_MOST_BETWEEN):
        node = value.producer()
        if node is None:
            break
        if node.op_type == "Transpose" and (attribute := node.attributes.get("perm")) is not None:
            inner = attribute.as_ints()
            perm = tuple(int(inner[axis]) for axis in perm)
            value = _first(node)
        elif scaled and node.op_type == "Mul" and (factor := number_of(node.inputs[1])):
            scale *= factor
            value = _first(node)
        elif scaled and node.op_type == "Div" and (factor := number_of(node.inputs[1])):
            scale /= factor
            value = _first(node)
        else:
            break
    return Operand(value, perm, scale)


def _trace_context(context: ir.Value, rank: int) -> tuple[ir.Value, tuple[int, ...]]:
    """The context, transposed by the one Transpose that uses it if there is one."""
    users = [use.node for use in context.uses()]
    if len(users) == 1 and users[0].op_type == "Transpose" and not context.is_graph_output():
        attribute = users[0].attributes.get("perm")
        if attribute is not None:
            return users[0].outputs[0], tuple(int(axis) for axis in attribute.as_ints())
    return context, tuple(range(rank))


def _leads_to(value: ir.Value, product: ir.Node) -> bool:
    """Whether scale and mask ops lead from the product to the value."""
    pending, seen = [value], set[ir.Value]()
    while pending and len(seen) < _MOST_BETWEEN:
        node = pending.pop().producer()
        if node is product:
            return True
        if node is not None and (node.op_type in ("Add", "Mul", "Div", "Where", "Max") or _is_noop(node)):
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _is_noop(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return dtype_of(node.inputs[0]) == dtype_of(node.outputs[0]) == ir.DataType.FLOAT
    if node.op_type == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        untrained = len(node.inputs) < 3 or node.inputs[2] is None or (training is not None and not training.numpy())
        return untrained and not any(output.uses() for output in node.outputs[1:])
    return node.op_type == "Identity"


def _used_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _first(node: ir.Node) -> ir.Value:
    return _input(node, 0)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _other(node: ir.Node, *, factor_first: bool) -> ir.Value:
    return _input(node, 1 if factor_first else 0)
