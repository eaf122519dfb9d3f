"""What made-up inputs hold, by role."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.inputs.mask_meaning import Meaning
from onnx_attnq.inputs.open_dims import KnownInput, Lengths
from onnx_attnq.inputs.roles import Role

PADDING: Final = 2
"""Positions of the last row that the mask hides: the last ones, or the first where there is a past."""

FIRST_WORD: Final = 4
"""Lower ids are padding and other special tokens, from which some models derive a mask."""

HIDDEN: Final = -1e4
"""What a mask that is added to the scores has for a hidden key; float16 holds it."""


def follows_from_lengths(role: Role) -> bool:
    """Whether the values are known once the lengths are: nothing of them is random."""
    return role not in (Role.TOKENS, Role.PAST, Role.FEATURES)


def values_of(
    entry: KnownInput, shape: tuple[int, ...], lengths: Lengths, random: np.random.RandomState
) -> npt.NDArray[Any]:
    """The array for an input, before it is converted to the input's type."""
    match entry.role:
        case Role.TOKENS:
            rows = entry.rows or 1
            lowest = min(FIRST_WORD, rows - 1)
            return lowest + np.floor(random.random_sample(shape) * (rows - lowest))
        case Role.POSITIONS:
            positions = lengths.past + (np.arange(shape[-1]) if shape else np.array(0))
            return np.broadcast_to(positions if entry.rows is None else np.minimum(positions, entry.rows - 1), shape)
        case Role.MASK:
            return _mask(entry, _visible(shape, lengths))
        case Role.LENGTHS:
            return _row_lengths(shape, lengths.tokens)
        case Role.LAST_INDEX:
            return np.full(shape, lengths.total - 1)
        case Role.TOTAL_LENGTH:
            return np.full(shape, lengths.total)
        case Role.SWITCH:
            return np.full(shape, lengths.tokens == 1)
        case Role.CHOICE:
            return np.full(shape, entry.choice)
        case Role.SEGMENTS:
            return np.zeros(shape)
        case Role.OTHER | Role.SETTING:
            return np.ones(shape)
        case Role.PAST if entry.is_whole:
            return np.full(shape, lengths.past)
        case Role.PAST | Role.FEATURES:
            # Uniform with variance 1: unlike the normal distribution it needs no logarithm, which differs by platform.
            values = (random.random_sample(shape) * 2 - 1) * math.sqrt(3)
            return _filled(values, entry.past_axis, lengths) if entry.is_buffer else values


def _filled(buffer: npt.NDArray[Any], axis: int, lengths: Lengths) -> npt.NDArray[Any]:
    """A buffer with zeros behind what is in it, as runtimes allocate it; what a model makes of these is not defined."""
    rows = np.full(buffer.shape[0], lengths.past)
    if lengths.total > PADDING + 1:
        rows[-1:] = max(lengths.past - PADDING, 0)  # the mask hides as many of its tokens
    places = np.arange(buffer.shape[axis]).reshape(-1, *[1] * (buffer.ndim - axis - 1))
    return np.where(places < rows.reshape(-1, *[1] * (buffer.ndim - 1)), buffer, 0.0)


def _mask(entry: KnownInput, visible: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    match entry.meaning:
        case Meaning.ONE_IS_VISIBLE:
            return visible
        case Meaning.ONE_IS_HIDDEN:
            return ~visible
        case Meaning.ADDED:
            return np.where(visible, 0.0, HIDDEN)
        case None:
            # One for tokens; or, if it has an axis for queries and is not whole, what is added to the scores.
            return visible if entry.is_whole or visible.ndim <= 2 else np.where(visible, 0.0, HIDDEN)


def _visible(shape: tuple[int, ...], lengths: Lengths) -> npt.NDArray[np.bool_]:
    visible = np.ones(shape, dtype=np.bool_)
    if lengths.spare and shape and shape[-1] == lengths.past + lengths.spare:
        visible[..., lengths.total :] = False
    elif len(shape) > 1 and min(shape) > 0 and shape[-1] > PADDING + 1:
        visible[-1, ..., slice(PADDING) if lengths.past else slice(-PADDING, None)] = False
    return visible


def _row_lengths(shape: tuple[int, ...], tokens: int) -> npt.NDArray[Any]:
    """All tokens, but for the last of several rows, which is shorter."""
    rows = np.full(shape, tokens)
    if shape and shape[0] > 1:
        rows[-1] = max(tokens - PADDING, 1)
    return rows


__all__ = ["FIRST_WORD", "HIDDEN", "PADDING", "follows_from_lengths", "values_of"]
