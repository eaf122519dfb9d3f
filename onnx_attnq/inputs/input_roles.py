"""What each input of a model is for.

Exporters agree on few names. A role is read from the operators that consume an input where that
tells, and from its name and type otherwise.
"""

from __future__ import annotations

import enum
from typing import Final

import onnx_ir as ir

from onnx_attnq.inputs.input_uses import uses
from onnx_attnq.inputs.signature import ModelInput


class Role(enum.Enum):
    """What an input is for; those first whose dims say most about the sizes that all inputs share."""

    TOKENS = enum.auto()
    """Ids of tokens: indices into a table of embeddings."""
    PAST = enum.auto()
    """Keys or values of earlier tokens, or, in whole numbers, how many those are."""
    FEATURES = enum.auto()
    """Real numbers: an image, a signal, embeddings."""
    POSITIONS = enum.auto()
    """Where the tokens stand, counted from the beginning of the past."""
    SEGMENTS = enum.auto()
    """Which of two sentences a token belongs to."""
    MASK = enum.auto()
    """Which keys may be attended to."""
    LAST_INDEX = enum.auto()
    """The index of the last key, for each row of the batch."""
    TOTAL_LENGTH = enum.auto()
    """The number of keys."""
    SWITCH = enum.auto()
    """Of a merged decoder: whether there is a past."""
    OTHER = enum.auto()
    """A whole number of unknown meaning."""


_BY_CONSUMER: Final = {
    ("Attention", 3): Role.MASK,
    ("MultiHeadAttention", 4): Role.MASK,
    ("DecoderMaskedMultiHeadAttention", 3): Role.MASK,
    ("DecoderMaskedMultiHeadAttention", 7): Role.PAST,
    ("GroupQueryAttention", 5): Role.LAST_INDEX,
    ("GroupQueryAttention", 6): Role.TOTAL_LENGTH,
}
"""By operator and place; all of com.microsoft but the first, which has the same meaning in ai.onnx."""


def role_of(model: ir.Model, value: ir.Value, item: ModelInput) -> Role:
    """The role of a graph input, which ``item`` describes."""
    name = item.name.lower()
    for use in uses(model, value):
        if (role := _BY_CONSUMER.get((use.node.op_type, use.index))) is not None:
            return role
    if "mask" in name:
        return Role.MASK
    if "past" in name or "cache" in name:
        return Role.SWITCH if item.dtype.kind == "b" else Role.PAST
    if item.dtype.kind not in "biu":
        return Role.FEATURES
    if "position" in name:
        return Role.POSITIONS
    if "token_type" in name or "segment" in name:
        return Role.SEGMENTS
    return Role.OTHER if table_rows(model, value) is None else Role.TOKENS


def table_rows(model: ir.Model, value: ir.Value) -> int | None:
    """Rows of the smallest table that a value is an index into, such as the size of a vocabulary; None without one."""
    rows = []
    for use in uses(model, value):
        match use.node.op_type, use.index:
            case "Gather", 1:
                table, axis = use.tensor(0), use.node.attributes.get_int("axis", 0)
            case "GatherBlockQuantized", 1:
                table, axis = use.tensor(0), use.node.attributes.get_int("gather_axis", 0)
            case "EmbedLayerNormalization", (0 | 1) as index:
                table, axis = use.tensor(2 if index == 0 else 4), 0
            case _:
                continue
        if table is not None:
            rows.append(int(table.shape.numpy()[axis]))
    return min(rows, default=None)


__all__ = ["Role", "role_of", "table_rows"]
