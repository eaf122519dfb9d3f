"""What is done to the scores between the product of query and key and the softmax: scale, softcap and masks."""

from __future__ import annotations

import dataclasses
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_attnq.find.axis_walk import Lost, describe
from onnx_attnq.graph import Types, constant, dtype_of, known_op, number_of

LOWEST_MASK: Final = -1e30
"""A constant below this stays the same when any score is added to it, in float32."""

HIGHEST_FILL: Final = -1e4
"""Scores that are replaced by this or less weigh nothing beside any that is not: exp(x - 104) is 0 in float32."""

LOWEST_FLOAT: Final = float(np.finfo(np.float32).min)

MOST_BETWEEN: Final = 256
"""Nodes to look at for one step, so that sites that share a long chain do not each follow all of it."""

_MIXED: Final = f"scores are replaced by a value above {LOWEST_MASK:g} beside another mask, so that its value counts"


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


Mask: TypeAlias = Added | Filled | Bounded


@dataclasses.dataclass(frozen=True)
class ScoreOps:
    """What ops do to a product x: masks of ``softcap * tanh(scale / softcap * x)``, or of ``scale * x`` if it is 0.

    While ops are collected, from the softmax upwards, ``scale`` is what multiplies the input of the last one and
    ``softcap`` what multiplies the tanh.
    """

    scale: float = 1.0
    softcap: float = 0.0
    masks: tuple[Mask, ...] = ()


def trace_scores(scores: ir.Value, product: ir.Node, rank: int, types: Types) -> ScoreOps | Lost:
    """The ops between the product and the softmax, or the first that an attention op has no place for."""
    found, value = ScoreOps(), scores
    while True:
        if not _used_once(value):
            return Lost(f"the scores {value.name!r} are used elsewhere too")
        node = value.producer()
        if node is product:
            return _checked(found)
        if node is None:
            return Lost("the product of query and key is in another graph")
        index = next((i for i, v in enumerate(node.inputs) if v is not None and _leads_to(v, product)), None)
        if index is not None and (higher := _higher_rank(node, index, rank, types)):
            return Lost(higher)
        step = _with_op(found, node, index)
        if isinstance(step, Lost):
            return step
        found, value = step


def _with_op(found: ScoreOps, node: ir.Node, index: int | None) -> tuple[ScoreOps, ir.Value] | Lost:
    """What is found with one op more, in front of the others, and the scores that it takes.

    Args:
        found: What comes after the op.
        node: The op.
        index: Which of its inputs leads to the product, if one does.
    """
    op = known_op(node)
    if is_noop(node):
        return found, first_input(node)
    if op in ("Mul", "Div"):
        factor, scores = _scaled(node)
        if not factor:
            return Lost(f"{describe(node)} is no multiplication by a constant number")
        return dataclasses.replace(found, scale=found.scale * factor), scores
    if op == "Tanh" and not found.softcap and found.scale > 0.0:
        return dataclasses.replace(found, softcap=found.scale, scale=1.0), first_input(node)
    if op == "Cast":
        return Lost(f"{describe(node)} takes scores of another type, to which they were rounded")
    mask = None if index is None else _mask(node, index)
    if mask is None or index is None:
        return Lost(f"{describe(node)} is neither scale nor mask")
    if found.scale != 1.0 or found.softcap:  # what comes after would scale the mask, too
        return Lost(f"{describe(node)} masks before the {'softcap' if found.softcap else 'scale'}")
    return dataclasses.replace(found, masks=(mask, *found.masks)), _input(node, index)


def _scaled(node: ir.Node) -> tuple[float | None, ir.Value]:
    """The number by which a Mul or Div multiplies, if it is constant, and what it multiplies."""
    right = number_of(node.inputs[1])
    if known_op(node) == "Div":
        return (1.0 / right if right else None), _input(node, 0)
    if right is not None:
        return right, _input(node, 0)
    return number_of(node.inputs[0]), _input(node, 1)


def _checked(found: ScoreOps) -> ScoreOps | Lost:
    """What was found, with masks that hide a key in any case; not if the value of a mask may count."""
    fills = {mask.fill if isinstance(mask, Filled) else None for mask in found.masks}
    if len(fills) > 1 and any(fill is not None and fill > LOWEST_MASK for fill in fills):
        return Lost(_MIXED)
    # Outside of the tanh the cap, and inside the scale, which was collected without the cap.
    scale = found.scale * (found.softcap or 1.0)
    return ScoreOps(scale, found.softcap, tuple(map(_lowered, found.masks)))


def _lowered(mask: Mask) -> Mask:
    """A mask that makes any score negligible: next to another score its weight is 0, and alone it gives a flat row."""
    if isinstance(mask, Filled) and mask.fill > LOWEST_MASK:
        return dataclasses.replace(mask, fill=LOWEST_FLOAT)
    return mask


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


_ON_SCORES: Final = ("Add", "Mul", "Div", "Where", "Max", "Tanh")


def _leads_to(value: ir.Value, product: ir.Node) -> bool:
    """Whether scale and mask ops lead from the product to the value."""
    pending, seen = [value], set[ir.Value]()
    while pending and len(seen) < MOST_BETWEEN:
        node = pending.pop().producer()
        if node is product:
            return True
        if node is not None and (known_op(node) in _ON_SCORES or is_noop(node)):
            new = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(new)
            pending.extend(new)
    return False


def is_noop(node: ir.Node) -> bool:
    """Whether a node gives what it takes: Identity, Dropout outside of training, a Cast of float32 to float32."""
    if known_op(node) == "Cast":
        return dtype_of(node.inputs[0]) == dtype_of(node.outputs[0]) == ir.DataType.FLOAT
    if known_op(node) == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        untrained = len(node.inputs) < 3 or node.inputs[2] is None or (training is not None and not training.numpy())
        return untrained and not any(output.uses() for output in node.outputs[1:])
    return known_op(node) == "Identity"


def _used_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def first_input(node: ir.Node) -> ir.Value:
    """The first input, of a node that has one."""
    return _input(node, 0)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
