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

import numpy as np
import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost, Product, describe
from onnx_attnq.graph import Types, axes_of, constant, dtype_of, known_op, number_of

LOWEST_MASK: Final = -1e30
"""A constant below this stays the same when any score is added to it, in float32."""

HIGHEST_FILL: Final = -1e4
"""Scores that are replaced by this or less weigh nothing beside any that is not: exp(x - 104) is 0 in float32."""

LOWEST_FLOAT: Final = float(np.finfo(np.float32).min)
MOST_AXES: Final = 5
"""Of the tensors that the native library takes."""

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
    before = _trace_scores(scores, scored, rank, types)
    if isinstance(before, Lost):
        return before
    scale, softcap, masks = before
    dtype = types.dtype(weighed.inputs[1])
    guarded = _trace_probabilities(probabilities, weighed, masks, dtype)
    if isinstance(guarded, Lost):
        return guarded
    context, out_perm = _trace_context(weighed.outputs[0], rank)
    scale *= query.scale * key.scale
    return Attention(query, key, value, scale, masks, guarded, context, out_perm, dtype or ir.DataType.FLOAT, softcap)


def _trace_scores(
    scores: ir.Value, product: ir.Node, rank: int, types: Types
) -> tuple[float, float, tuple[Mask, ...]] | Lost:
    """Scale, softcap and masks between the product and the softmax, in the order in which they are applied."""
    scale, softcap = 1.0, 0.0
    masks: list[Mask] = []
    value = scores
    while True:
        if not _used_once(value):
            return Lost(f"the scores {value.name!r} are used elsewhere too")
        node = value.producer()
        if node is product:
            masks.reverse()
            # c tanh(f s) is the score s f c with the cap c.
            scale *= softcap or 1.0
            return Lost(_MIXED) if _is_mixed(masks) else (scale, softcap, tuple(map(_lowered, masks)))
        if node is None:
            return Lost("the product of query and key is in another graph")
        index = next((i for i, v in enumerate(node.inputs) if v is not None and _leads_to(v, product)), None)
        if index is not None and (higher := _higher_rank(node, index, rank, types)):
            return Lost(higher)
        # Upstream is walked last to first: a mask found after a scale was scaled too.
        if known_op(node) in ("Mul", "Div"):
            factor = number_of(node.inputs[1]) or (number_of(node.inputs[0]) if known_op(node) == "Mul" else None)
            if not factor:
                return Lost(f"{describe(node)} is no multiplication by a constant number")
            scale *= factor if known_op(node) == "Mul" else 1.0 / factor
            value = _other(node, factor_first=number_of(node.inputs[1]) is None)
        elif _is_noop(node):
            value = _first(node)
        elif known_op(node) == "Tanh" and not softcap and scale > 0.0:
            softcap, scale, value = scale, 1.0, _first(node)
        else:
            mask = None if index is None else _mask(node, index)
            if known_op(node) == "Cast":
                return Lost(f"{describe(node)} takes scores of another type, to which they were rounded")
            if mask is None or index is None:
                return Lost(f"{describe(node)} is neither scale nor mask")
            if scale != 1.0 or softcap:
                return Lost(f"{describe(node)} masks before the {'softcap' if softcap else 'scale'}")
            masks.append(mask)
            value = _input(node, index)


def _higher_rank(node: ir.Node, index: int, rank: int, types: Types) -> str:
    """How something that meets the scores, which are input ``index``, could have more axes; "" if none has."""
    for i, other in enumerate(node.inputs):
        if i == index or other is None:
            continue
        axes = types.rank(other)
        if axes is None and node.outputs[0].shape is None:
            return f"how many axes {other.name!r} of {describe(node)} has is unknown"
        if axes is not None and axes > rank:
            return f"{other.name!r} of {describe(node)} has {axes} axes, and the scores have {rank}"
    return ""


_MIXED: Final = f"scores are replaced by a value above {LOWEST_MASK:g} beside another mask, so that its value counts"


def _is_mixed(masks: list[Mask]) -> bool:
    """Whether scores are replaced by a value that another mask may be compared with."""
    fills = {mask.fill if isinstance(mask, Filled) else None for mask in masks}
    return len(fills) > 1 and any(fill is not None and fill > LOWEST_MASK for fill in fills)


def _lowered(mask: Mask) -> Mask:
    """A mask that makes any score negligible: next to another score its weight is 0, and alone it gives a flat row."""
    if isinstance(mask, Filled) and mask.fill > LOWEST_MASK:
        return dataclasses.replace(mask, fill=LOWEST_FLOAT)
    return mask


def _mask(node: ir.Node, index: int) -> Mask | None:
    """What the node does to the scores that are its input ``index``, if that is a mask."""
    match known_op(node):
        case "Add":
            return Added(_input(node, 1 - index))
        case "Where" if index in (1, 2):
            fill = number_of(node.inputs[3 - index])
            return None if fill is None or fill > HIGHEST_FILL else Filled(_input(node, 0), index == 2, fill)
        case "Max" if len(node.inputs) == 2:
            lowest = number_of(node.inputs[1 - index])
            return None if lowest is None or lowest > LOWEST_MASK else Bounded(lowest)
    return None


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
        if len(users) == 1 and (_is_noop(users[0]) or _casts_to(users[0], dtype)):
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
    for _ in range(_MOST_BETWEEN):
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
        value = _first(node)
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


_ON_SCORES: Final = ("Add", "Mul", "Div", "Where", "Max", "Tanh")


def _leads_to(value: ir.Value, product: ir.Node) -> bool:
    """Whether scale and mask ops lead from the product to the value."""
    pending, seen = [value], set[ir.Value]()
    while pending and len(seen) < _MOST_BETWEEN:
        node = pending.pop().producer()
        if node is product:
            return True
        if node is not None and (known_op(node) in _ON_SCORES or _is_noop(node)):
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def _is_noop(node: ir.Node) -> bool:
    if known_op(node) == "Cast":
        return dtype_of(node.inputs[0]) == dtype_of(node.outputs[0]) == ir.DataType.FLOAT
    if known_op(node) == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        untrained = len(node.inputs) < 3 or node.inputs[2] is None or (training is not None and not training.numpy())
        return untrained and not any(output.uses() for output in node.outputs[1:])
    return known_op(node) == "Identity"


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
