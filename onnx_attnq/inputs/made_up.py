"""Sample inputs made up from a model's signature, for when nobody has data.

They run, and they exercise padding, a past, single steps and different lengths. They say nothing
about accuracy, for which real data is needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs.conv_geometry import image_shape, signal_length
from onnx_attnq.inputs.input_roles import Role, role_of, table_rows
from onnx_attnq.inputs.signature import Dim, ModelInput, Sample, evaluate_dim, is_expression, model_inputs
from onnx_attnq.model import MAX_RANK

SHAPES: Final = ((2, 16), (1, 9), (2, 12), (1, 7))
"""Rows and tokens of the samples, in turn: short enough for any table of positions, and not all even."""

PAST_LENGTH: Final = 6
"""Tokens that a decoder has seen before."""

PADDING: Final = 2
"""Positions of the last row that the mask hides: the last ones, or the first where there is a past."""

MAX_BYTES: Final = 2**30
"""The largest array that is made; a hostile model may declare an input of any size."""

FIRST_WORD: Final = 4
"""Lower ids are padding and other special tokens, from which some models derive a mask."""


def generate_samples(
    model: ir.Model, count: int = len(SHAPES), seed: int = 0, shapes: Sequence[tuple[int, int]] = SHAPES
) -> tuple[Sample, ...]:
    """Make inputs for a model; equal arguments give equal arrays on every platform.

    A model that takes a past gets, in turn, a text after a past, and one token after a past.

    Args:
        model: The model; only its inputs, and the shapes of some weights, are looked at.
        count: How many samples.
        seed: Of token ids and features.
        shapes: (batch, length) of the samples, in turn, where the model leaves them open.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: An input is too large to be made up.
    """
    values = {value.name: value for value in model.graph.inputs}
    inputs = [_Input.of(model, values[item.name], item) for item in model_inputs(model)]
    # onnxruntime takes several rows of several tokens only without a past.
    prompts_have_past = not any(node.op_type == "GroupQueryAttention" for node in model.graph.all_nodes())
    # RandomState, because numpy promises that its stream never changes; that of Generator may.
    random = np.random.RandomState(seed)
    samples = []
    for index in range(count):
        batch, tokens = shapes[index % len(shapes)]
        encoder = shapes[(index + 1) % len(shapes)][1]
        past = 0
        if any(entry.role is Role.PAST for entry in inputs):
            is_step = index % 2 == 1
            tokens = 1 if is_step else tokens
            past = PAST_LENGTH if is_step or prompts_have_past else 0
        samples.append(_sample(inputs, _Lengths(batch, tokens, past, encoder).fitted_to(inputs), random))
    return tuple(samples)


def edge_samples(model: ir.Model, seed: int = 0) -> tuple[Sample, ...]:
    """Inputs at the edge of what a model is fed: a row without a visible key, and a NaN.

    Two models that compute the same do so here too: a row of uniform attention, or the NaN that the first one gives.

    Returns:
        Up to two samples: one for a model with a mask, one for a model that takes real numbers.
    """
    (base,) = generate_samples(model, 1, seed)
    values = {value.name: value for value in model.graph.inputs}
    roles = {item.name: role_of(model, values[item.name], item) for item in model_inputs(model)}
    masks = [name for name, role in roles.items() if role is Role.MASK and base[name].ndim > 1]
    features = [name for name, role in roles.items() if role is Role.FEATURES and base[name].size]
    found: list[Sample] = []
    if masks:
        found.append({**base, **{name: _with_hidden_row(base[name]) for name in masks}})
    if features:
        spoiled = base[features[0]].copy()
        spoiled.flat[-1] = np.nan
        found.append({**base, features[0]: spoiled})
    return tuple(found)


def _with_hidden_row(mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mask, with nothing visible in the last row of the batch."""
    hidden = mask.copy()
    # As in `_values`: an additive mask is one of real numbers with an axis for queries.
    hidden[-1] = np.finfo(mask.dtype).min if mask.dtype.kind == "f" and mask.ndim > 2 else 0
    return hidden


@dataclasses.dataclass(frozen=True, slots=True)
class _Input:
    """An input and what is known about it."""

    item: ModelInput
    role: Role
    rows: int | None
    """Of the table that it is an index into."""
    sizes: tuple[int | None, ...]
    """Of its dims, where convolutions demand them."""

    @classmethod
    def of(cls, model: ir.Model, value: ir.Value, item: ModelInput) -> _Input:
        role = role_of(model, value, item)
        sizes: tuple[int | None, ...] = ()
        if role is Role.FEATURES and item.shape is not None:
            if len(item.shape) == 4 and (image := image_shape(model, value)) is not None:
                sizes = (None, *image)
            elif len(item.shape) in (2, 3):
                sizes = (*[None] * (len(item.shape) - 1), signal_length(model, value))
        return cls(item, role, table_rows(model, value), sizes)

    @property
    def dims(self) -> tuple[Dim, ...]:
        return (None, None) if self.item.shape is None else self.item.shape

    @property
    def past_axis(self) -> int:
        """Where the past is in an array of keys or values: (batch, heads, past, width), unless a name tells."""
        named = [axis for axis, dim in enumerate(self.dims) if isinstance(dim, str) and "past" in dim]
        return named[0] if named else len(self.dims) - 2


@dataclasses.dataclass(frozen=True, slots=True)
class _Lengths:
    """The sizes from which all others follow."""

    batch: int
    tokens: int
    past: int
    encoder: int

    def fitted_to(self, inputs: Sequence[_Input]) -> _Lengths:
        """The same, but for what the model fixes."""
        tokens, past = self.tokens, self.past
        for entry in inputs:
            fixed = entry.dims
            if entry.role is Role.TOKENS and len(fixed) == 2 and isinstance(fixed[1], int):
                tokens = fixed[1]
            if entry.role is Role.PAST and len(fixed) > 2 and "encoder" not in entry.item.name:
                size = fixed[entry.past_axis]
                past = size if isinstance(size, int) else past
        return dataclasses.replace(self, tokens=tokens, past=past)

    def guess(self, entry: _Input, axis: int) -> int:
        """The size of an open dim, by its name, its place and the role of the input."""
        dim = entry.dims[axis]
        name = dim.lower() if isinstance(dim, str) else ""
        rank = len(entry.dims)
        if "batch" in name or (axis == 0 and rank > 1) or entry.role is Role.LAST_INDEX:
            return self.batch
        if axis < len(entry.sizes) and (size := entry.sizes[axis]) is not None:
            return size
        if "encoder" in name:
            return self.encoder
        if "total" in name or "max" in name or (entry.role is Role.MASK and axis == rank - 1):
            return self.past + self.tokens
        if "past" in name or entry.role is Role.PAST:
            return self.past
        return self.tokens


def _sample(inputs: Sequence[_Input], lengths: _Lengths, random: np.random.RandomState) -> Sample:
    symbols = _symbols(inputs, lengths)
    return {
        entry.item.name: _values(entry, _shape(entry, lengths, symbols), lengths, random).astype(entry.item.dtype)
        for entry in inputs
    }


def _symbols(inputs: Sequence[_Input], lengths: _Lengths) -> dict[str, int]:
    """The sizes of all symbols; and of all expressions, which follow from the symbols if these are known."""
    symbols: dict[str, int] = {}
    named = [
        (dim, lengths.guess(entry, axis))
        for entry in sorted(inputs, key=lambda entry: entry.role.value)
        for axis, dim in enumerate(entry.dims)
        if isinstance(dim, str)
    ]
    for dim, guess in sorted(named, key=lambda pair: is_expression(pair[0])):
        computed = evaluate_dim(dim, symbols)
        symbols[dim] = guess if computed is None or computed < 0 else computed
    return symbols


def _shape(entry: _Input, lengths: _Lengths, symbols: Mapping[str, int]) -> tuple[int, ...]:
    shape = tuple(
        symbols[dim] if isinstance(dim, str) else lengths.guess(entry, axis) if dim is None else dim
        for axis, dim in enumerate(entry.dims)
    )
    # numpy counts the axes of size 0 out, too, and random numbers are float64 at first.
    if len(shape) > MAX_RANK or math.prod(max(size, 1) for size in shape) * 8 > MAX_BYTES:
        raise InvalidData(f"input {entry.item.name!r} of shape {shape} is too large to be made up; give data")
    return shape


def _values(
    entry: _Input, shape: tuple[int, ...], lengths: _Lengths, random: np.random.RandomState
) -> npt.NDArray[Any]:
    total = lengths.past + lengths.tokens
    whole = entry.item.dtype.kind in "biu"
    match entry.role:
        case Role.TOKENS:
            rows = entry.rows or 1
            lowest = min(FIRST_WORD, rows - 1)
            return lowest + np.floor(random.random_sample(shape) * (rows - lowest))
        case Role.POSITIONS:
            positions = lengths.past + (np.arange(shape[-1]) if shape else np.array(0))
            return np.broadcast_to(positions if entry.rows is None else np.minimum(positions, entry.rows - 1), shape)
        case Role.MASK:
            visible = _visible(shape, lengths)
            # One for tokens; or, if it has an axis for queries and is not whole, what is added to the scores.
            return visible if whole or len(shape) <= 2 else np.where(visible, 0.0, -1e4)
        case Role.LAST_INDEX:
            return np.full(shape, total - 1)
        case Role.TOTAL_LENGTH:
            return np.full(shape, total)
        case Role.SWITCH:
            return np.full(shape, lengths.tokens == 1)
        case Role.SEGMENTS:
            return np.zeros(shape)
        case Role.OTHER:
            return np.ones(shape)
        case Role.PAST if whole:
            return np.full(shape, lengths.past)
        case Role.PAST | Role.FEATURES:
            # Uniform with variance 1: unlike the normal distribution it needs no logarithm, which differs by platform.
            return (random.random_sample(shape) * 2 - 1) * math.sqrt(3)


def _visible(shape: tuple[int, ...], lengths: _Lengths) -> npt.NDArray[np.bool_]:
    visible = np.ones(shape, dtype=np.bool_)
    if len(shape) > 1 and min(shape) > 0 and shape[-1] > PADDING + 1:
        visible[-1, ..., slice(PADDING) if lengths.past else slice(-PADDING, None)] = False
    return visible


__all__ = ["PADDING", "PAST_LENGTH", "SHAPES", "edge_samples", "generate_samples"]
