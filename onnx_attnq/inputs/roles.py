"""What each input of a model is for.

Exporters agree on few names. A role is read from the operators that an input reaches where that tells, and from its
name and type otherwise.
"""

from __future__ import annotations

import enum
import math
import re
from typing import Final

import numpy as np
import onnx_ir as ir

from onnx_attnq.graph import Holds, constant, input_holds
from onnx_attnq.inputs.mask_meaning import mask_meaning
from onnx_attnq.inputs.signature import ModelInput
from onnx_attnq.inputs.uses import Use, uses, walk


class Role(enum.Enum):
    """What an input is for; those first whose dims say most about the sizes that all inputs share."""

    TOKENS = enum.auto()
    """Ids of tokens: indices into a table of embeddings."""
    PAST = enum.auto()
    """Keys or values of earlier tokens, or, in whole numbers, how many those are."""
    FEATURES = enum.auto()
    """Real numbers: an image, a signal, embeddings."""
    POSITIONS = enum.auto()
    """Positions of the tokens, counted from the beginning of the past."""
    SEGMENTS = enum.auto()
    """Which of two sentences a token belongs to."""
    MASK = enum.auto()
    """Which keys may be attended to."""
    LENGTHS = enum.auto()
    """How many of the tokens count, for each row of the batch."""
    LAST_INDEX = enum.auto()
    """The index of the last key, for each row of the batch."""
    TOTAL_LENGTH = enum.auto()
    """The number of keys."""
    SWITCH = enum.auto()
    """Of a merged decoder: whether there is a past."""
    SETTING = enum.auto()
    """A few real numbers that are no data: a speed, a scale of the noise."""
    CHOICE = enum.auto()
    """A whole number that the graph compares with constants: a sampling rate, a mode."""
    OTHER = enum.auto()
    """A whole number of unknown meaning."""


_OF_FUSED: Final = {
    Holds.VISIBLE: Role.MASK,
    Holds.ADDED: Role.MASK,
    Holds.MASK: Role.MASK,
    Holds.PAST: Role.PAST,
    Holds.PAST_LENGTH: Role.PAST,
    Holds.LAST_KEY: Role.LAST_INDEX,
    Holds.TOTAL_LENGTH: Role.TOTAL_LENGTH,
    Holds.LENGTHS: Role.LENGTHS,
    Holds.POSITIONS: Role.POSITIONS,
}
"""By what a fused attention op reads it as."""

_COMPARISONS: Final = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_KEEP_INDICES: Final = frozenset({"Clip", "Max", "Min", "Where", "Mod"})
"""Operators whose output still holds indices."""

_FEW_SETTINGS: Final = 4


def role_of(model: ir.Model, value: ir.Value, item: ModelInput) -> Role:
    """The role of a graph input, which ``item`` describes."""
    name = item.name.lower()
    for use in uses(model, value):
        if (holds := input_holds(use.node, use.index)) is not None:
            counts = holds is Holds.VISIBLE and item.shape is not None and len(item.shape) == 1
            return Role.LENGTHS if counts else _OF_FUSED[holds]
    if "mask" in name:
        return Role.MASK
    if "past" in name or "cache" in name or past_axis(model, value, item) is not None:
        return Role.SWITCH if item.dtype.kind == "b" else Role.PAST
    if item.dtype.kind not in "biu":
        if _is_setting(item):
            return Role.SETTING
        return Role.FEATURES if mask_meaning(model, value) is None else Role.MASK
    return _role_of_whole(model, value, item)


def _role_of_whole(model: ir.Model, value: ir.Value, item: ModelInput) -> Role:
    name = item.name.lower()
    if "position" in name:
        return Role.POSITIONS
    if "token_type" in name or "segment" in name:
        return Role.SEGMENTS
    if table_rows(model, value) is not None:
        return Role.TOKENS
    if choice_of(model, value) is not None:
        return Role.CHOICE
    if _is_length(model, value, item):
        return Role.LENGTHS
    return Role.OTHER if mask_meaning(model, value) is None else Role.MASK


def table_rows(model: ir.Model, value: ir.Value) -> int | None:
    """Rows of the smallest table that a value is an index into, such as the size of a vocabulary; None without one."""
    rows = []
    for use, _ in walk(model, value, True, _indices):
        match use.node.op_type, use.index:
            case "Gather", 1:
                table, axis = 0, use.node.attributes.get_int("axis", 0)
            case "GatherBlockQuantized", 1:
                table, axis = 0, use.node.attributes.get_int("gather_axis", 0)
            case "EmbedLayerNormalization", (0 | 1) as index:
                table, axis = (2 if index == 0 else 4), 0
            case _:
                continue
        shape = _table_shape(use, table)
        if shape is not None and axis < len(shape):
            rows.append(shape[axis])
    return min(rows, default=None)


def past_axis(model: ir.Model, value: ir.Value, item: ModelInput) -> int | None:
    """The axis along which a graph output continues an input: that of earlier tokens; None if no output does."""
    rank = len(item.shape or ())
    if item.dtype.kind in "biu" or rank < 3:
        return None
    for node, index in value.uses():
        if node.op_type == "Concat" and not node.domain and node.outputs[0].is_graph_output():
            return node.attributes.get_int("axis", 0) % rank if index == 0 else None
    return None


def choice_of(model: ir.Model, value: ir.Value) -> int | None:
    """A constant that a whole number is compared with for equality, which the graph has a branch for."""
    if value.shape is None or len(value.shape) > 1 or value.dtype is ir.DataType.BOOL:
        return None
    for use in uses(model, value):
        if use.node.op_type == "Equal" and (tensor := use.tensor(1 - use.index)) is not None and tensor.size == 1:
            return int(np.asarray(tensor.numpy()).reshape(()))
    return None


def _indices(use: Use, _: bool) -> bool | None:
    return True if use.is_layout or (not use.node.domain and use.node.op_type in _KEEP_INDICES) else None


def _table_shape(use: Use, index: int) -> tuple[int, ...] | None:
    """The shape of a table that is an initializer, or computed from initializers alone."""
    if (tensor := use.tensor(index)) is not None:
        return tuple(tensor.shape.numpy())
    return _constant_shape(use.input(index), 8)


def _constant_shape(value: ir.Value | None, depth: int) -> tuple[int, ...] | None:
    """Of a value that elementwise ops compute from constants."""
    if value is None or depth == 0 or value.is_graph_input():
        return None
    if (tensor := constant(value)) is not None:
        return tuple(tensor.shape.numpy())
    node = value.producer()
    if node is None:
        return None
    match node.op_type:
        case "Cast" | "DequantizeLinear" | "QuantizeLinear" | "Identity" | "Clip":
            return _constant_shape(node.inputs[0], depth - 1)
        case "Add" | "Sub" | "Mul" | "Div":
            shapes = [_constant_shape(operand, depth - 1) for operand in node.inputs]
            known = [shape for shape in shapes if shape is not None]
            return tuple(np.broadcast_shapes(*known)) if len(known) == len(shapes) else None
        case "Transpose":
            shape = _constant_shape(node.inputs[0], depth - 1)
            perm = node.attributes.get_ints("perm", [])
            return None if shape is None else tuple(shape[axis] for axis in perm or reversed(range(len(shape))))
    return None


def _is_length(model: ir.Model, value: ir.Value, item: ModelInput) -> bool:
    """Whether an input is compared with a count of positions, or is called a length."""
    if item.shape is not None and len(item.shape) > 2:
        return False
    for use in uses(model, value):
        if use.node.op_type in _COMPARISONS and _counts(use.input(1 - use.index)):
            return True
    few = item.shape is None or len(item.shape) < 2
    return few and re.search(r"len(gth)?s?($|[^a-z])", item.name.lower()) is not None


def _counts(value: ir.Value | None) -> bool:
    """Whether a value counts positions: a Range, or the constant 0, 1, 2, …."""
    for _ in range(8):
        if value is None:
            return False
        tensor = constant(value)
        if tensor is not None:
            size = math.prod(tensor.shape.numpy())
            return 1 < size <= 2**20 and np.array_equal(np.asarray(tensor.numpy()).ravel(), np.arange(size))
        node = value.producer()
        if node is None:
            return False
        if node.op_type in ("Range", "CumSum", "NonZero"):
            return True
        value = node.inputs[0] if node.inputs else None
    return False


def _is_setting(item: ModelInput) -> bool:
    """A scalar, or a handful of real numbers, without an axis for rows or tokens."""
    shape = item.shape
    if shape is None or len(shape) > 1:
        return False
    return all(isinstance(dim, int) and dim <= _FEW_SETTINGS for dim in shape)


__all__ = ["Role", "choice_of", "past_axis", "role_of", "table_rows"]
