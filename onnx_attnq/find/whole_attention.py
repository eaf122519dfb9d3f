"""Which whole attentions one op can replace, products and layout included.

`QuantizedAttention` covers Q·Kᵀ · scale → softcap + mask → softmax → guard → · V. What leads from the products to the
softmax must be of these kinds, must be used for nothing else, and must be float32:

1. multiplication or division by one constant number: part of the scale; tanh between two of them: a softcap;
2. addition of a mask; replacement of masked scores by a very low constant, which adding one equals; a
   lower bound that is as low;
3. Transpose of query, key, value and context, which the op's permutations express;
4. after the softmax, Where(IsNaN(p), 0, p) or Where(max(mask) = -inf, 0, p), which zeroes fully masked rows;
5. after that, a Cast to the type of V, where only the scores of a model are float32.

Nothing may raise the rank of the scores above that of query and key, which the permutations are for, or above what
the native library takes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost, Product, describe
from onnx_attnq.find.score_ops import MOST_BETWEEN, Added, Mask, first_input, is_noop, trace_scores
from onnx_attnq.graph import Types, axes_of, constant, known_op, number_of

MOST_AXES: Final = 5
"""Of the tensors that the native library takes."""


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
        softcap: What tanh keeps the scaled scores within, before any mask; 0 for none.
        masks: What is done to the scaled scores, in order.
        zeroes_masked_rows: Whether a guard turns the NaN of a fully masked row into zeros.
        context: The value that the op's output replaces.
        out_perm: Permutation of (..., L_q, D_v) that gives it.
        dtype: Type of value and context.
    """

    query: Operand
    key: Operand
    value: Operand
    scale: float
    masks: tuple[Mask, ...]
    zeroes_masked_rows: bool
    context: ir.Value
    out_perm: tuple[int, ...]
    dtype: ir.DataType = ir.DataType.FLOAT
    softcap: float = 0.0


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
    if known_op(scored) != "MatMul" or known_op(weighed) != "MatMul" or not value_products[0].is_left:
        return Lost("a product is not a MatMul with the probabilities on the left")
    if (dtype := types.dtype(scores)) != ir.DataType.FLOAT:
        kind = "of unknown type" if dtype is None else dtype.name.lower()
        return Lost(f"the scores are {kind}, and one op for all computes in float32")
    last = scores.producer()
    if last is not None and known_op(last) == "Concat":
        return Lost(f"a sink, which {describe(last)} puts beside the scores, belongs to no key")
    query = _trace_operand(scored.inputs[0], types, scaled=True)
    key = _trace_operand(scored.inputs[1], types, scaled=True)
    value = _trace_operand(weighed.inputs[1], types, scaled=False)
    for operand in (query, key, value):
        if isinstance(operand, Lost):
            return operand
    assert isinstance(query, Operand)
    assert isinstance(key, Operand)
    assert isinstance(value, Operand)
    rank = len(query.perm)
    if {len(key.perm), len(value.perm)} != {rank}:
        return Lost("query, key and value are of different rank")
    if rank > MOST_AXES:
        return Lost(f"query and key have {rank} axes, and the op takes {MOST_AXES} at most")
    before = trace_scores(scores, scored, rank, types)
    if isinstance(before, Lost):
        return before
    dtype = types.dtype(weighed.inputs[1])
    guarded = _trace_probabilities(probabilities, weighed, before.masks, dtype)
    if isinstance(guarded, Lost):
        return guarded
    context, out_perm = _trace_context(weighed.outputs[0], rank)
    return Attention(
        query,
        key,
        value,
        before.scale * query.scale * key.scale,
        before.masks,
        guarded,
        context,
        out_perm,
        dtype or ir.DataType.FLOAT,
        before.softcap,
    )


def _trace_probabilities(
    probabilities: ir.Value, product: ir.Node, masks: tuple[Mask, ...], dtype: ir.DataType | None
) -> bool | Lost:
    """Whether there is a guard between the softmax and the product with V; only a cast to its type may be there too."""
    value, guarded = probabilities, False
    while True:
        if value.is_graph_output():
            return Lost("the probabilities are an output of the model")
        users = [use.node for use in value.uses()]
        if users == [product]:
            return guarded
        if len(users) == 1 and (is_noop(users[0]) or _casts_to(users[0], dtype)):
            value = users[0].outputs[0]
        elif (guard := _guard(value, users, masks)) is not None and not guarded:
            value, guarded = guard, True
        else:
            return Lost(f"the probabilities are used by {', '.join(sorted({user.op_type for user in users}))}")


def _casts_to(node: ir.Node, dtype: ir.DataType | None) -> bool:
    """Whether the node casts to the type of V, where that is a float type."""
    to = node.attributes.get("to")
    return known_op(node) == "Cast" and to is not None and dtype is not None and to.as_int() == int(dtype)


def _guard(value: ir.Value, users: list[ir.Node], masks: tuple[Mask, ...]) -> ir.Value | None:
    """The output of Where(condition, 0, value) that zeroes rows without any key, when that is all that uses the value.

    The condition is IsNaN(value), or that the greatest value of each row of the one mask is -inf.
    """
    where = next((user for user in users if known_op(user) == "Where"), None)
    if where is None or where.inputs[2] is not value or number_of(where.inputs[1]) != 0.0 or where.inputs[0] is None:
        return None
    condition = where.inputs[0].producer()
    if known_op(condition) == "IsNaN" and condition is not None:
        fits = set(users) == {condition, where} and len(users) == 2 and len(condition.outputs[0].uses()) == 1
    else:
        fits = users == [where] and condition is not None and _is_empty_row(condition, masks)
    return where.outputs[0] if fits else None


def _is_empty_row(condition: ir.Node, masks: tuple[Mask, ...]) -> bool:
    """Whether a node tells where each row of the only mask, an added one, is -inf."""
    if known_op(condition) != "Equal" or len(masks) != 1 or number_of(condition.inputs[1]) != -math.inf:
        return False
    greatest = None if condition.inputs[0] is None else condition.inputs[0].producer()
    (mask,) = masks
    return (
        greatest is not None
        and known_op(greatest) == "ReduceMax"
        and isinstance(mask, Added)
        and greatest.inputs[0] is mask.mask
        and axes_of(greatest) == [-1]
    )


def _trace_operand(value: ir.Value | None, types: Types, *, scaled: bool) -> Operand | Lost:
    """Upstream through Transpose, and where it can be folded into the scale, multiplication by a number."""
    rank = types.rank(value)
    if value is None or rank is None or rank < 2:
        return Lost("the rank of an operand is unknown")
    perm, scale = tuple(range(rank)), 1.0
    for _ in range(MOST_BETWEEN):
        node = value.producer()
        factor = _factor(node, rank, types) if scaled else None
        if node is None:
            break
        if known_op(node) == "Transpose" and (attribute := node.attributes.get("perm")) is not None:
            inner = attribute.as_ints()
            if sorted(inner) != list(range(rank)):
                return Lost(f"{describe(node)} does not permute {rank} axes")
            perm = tuple(int(inner[axis]) for axis in perm)
        elif factor is not None:
            scale *= factor
        else:
            break
        value = first_input(node)
    return Operand(value, perm, scale)


def _factor(node: ir.Node | None, rank: int, types: Types) -> float | None:
    """What a node multiplies its first input by, if that is one constant number and adds no axes."""
    if node is None or known_op(node) not in ("Mul", "Div"):
        return None
    number, tensor = number_of(node.inputs[1]), constant(node.inputs[1])
    if not number or tensor is None or (len(tensor.shape) > 1 and types.rank(node.inputs[0]) != rank):
        return None
    return number if known_op(node) == "Mul" else 1.0 / number


def _trace_context(context: ir.Value, rank: int) -> tuple[ir.Value, tuple[int, ...]]:
    """The context, transposed by the one Transpose that uses it if there is one."""
    users = [use.node for use in context.uses()]
    # A branch of an If may use a value from outside: what it computes is not there outside.
    here = len(users) == 1 and users[0].graph is context.graph and not context.is_graph_output()
    if here and known_op(users[0]) == "Transpose":
        attribute = users[0].attributes.get("perm")
        if attribute is not None and sorted(attribute.as_ints()) == list(range(rank)):
            return users[0].outputs[0], tuple(int(axis) for axis in attribute.as_ints())
    return context, tuple(range(rank))
