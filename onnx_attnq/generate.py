"""Sample inputs made up from a model's signature, for when nobody has data.

Exporters agree on few names, so a role is read from what consumes an input where that tells, and from
the name otherwise. What comes out runs and exercises padding, past and different lengths; it says
nothing about accuracy, for which real data is needed.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.conv_geometry import image_shape, signal_length
from onnx_attnq.errors import InvalidData
from onnx_attnq.input_uses import uses
from onnx_attnq.inputs import Sample
from onnx_attnq.signature import Dim, ModelInput, evaluate_dim, is_expression, model_inputs

BATCH: Final = 2
"""Rows of a batch: one complete, one with padding."""

SEQUENCE_LENGTHS: Final = (16, 9, 12, 7)
"""Tokens of the samples, in turn: short enough for any table of positions, and not all even."""

PAST_LENGTH: Final = 6
"""Tokens that a decoder has seen before."""

PADDING: Final = 2
"""Positions at the end of the second row that the mask hides."""

MAX_BYTES: Final = 2**30
"""The largest array that is made; a hostile model may declare an input of any size."""


class Role(enum.Enum):
    """What an input is for."""

    TOKENS = enum.auto()
    MASK = enum.auto()
    POSITIONS = enum.auto()
    SEGMENTS = enum.auto()
    PAST = enum.auto()
    SWITCH = enum.auto()
    LAST_INDEX = enum.auto()
    TOTAL_LENGTH = enum.auto()
    FEATURES = enum.auto()
    OTHER = enum.auto()


_BY_CONSUMER: Final = {
    ("Attention", 3): Role.MASK,
    ("MultiHeadAttention", 4): Role.MASK,
    ("DecoderMaskedMultiHeadAttention", 4): Role.MASK,
    ("GroupQueryAttention", 5): Role.LAST_INDEX,
    ("GroupQueryAttention", 6): Role.TOTAL_LENGTH,
}
"""Inputs of com.microsoft's operators whose meaning their documentation fixes."""


def generate_samples(model: ir.Model, count: int = 4, seed: int = 0) -> tuple[Sample, ...]:
    """Make inputs for a model; equal arguments give equal arrays on every platform.

    Args:
        model: The model; only its inputs, and the shapes of some weights, are looked at.
        count: How many samples. They have different lengths where the model's dims are symbolic.
        seed: Of token ids and features.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: An input is too large to be made, or of a type that cannot be.
    """
    inputs = model_inputs(model)
    roles = {item.name: _role(model, item) for item in inputs}
    # RandomState, because numpy promises that its stream never changes; Generator's may.
    random = np.random.RandomState(seed)
    return tuple(_Maker(model, inputs, roles, index, random).sample() for index in range(count))


def _role(model: ir.Model, item: ModelInput) -> Role:
    value = next(value for value in model.graph.inputs if value.name == item.name)
    name = item.name.lower()
    consumers = {(use.node.op_type, use.index) for use in uses(model, value)}
    for consumer, role in _BY_CONSUMER.items():
        if consumer in consumers:
            return role
    if "mask" in name:
        return Role.MASK
    if item.dtype.kind == "b":
        return Role.SWITCH
    if item.dtype.kind not in "iu":
        return Role.PAST if "past" in name or "cache" in name else Role.FEATURES
    if "position" in name:
        return Role.POSITIONS
    if "token_type" in name or "segment" in name:
        return Role.SEGMENTS
    if _table_rows(model, value) is not None:
        return Role.TOKENS
    return Role.OTHER


def _table_rows(model: ir.Model, value: ir.Value) -> int | None:
    """Rows of the smallest table that the value is an index into; None without one."""
    rows = []
    for use in uses(model, value):
        table, axis = None, 0
        if (use.node.op_type, use.index) == ("Gather", 1):
            table, axis = use.tensor(0), use.node.attributes.get_int("axis", 0)
        elif use.node.op_type == "GatherBlockQuantized" and use.index == 1:
            table, axis = use.tensor(0), use.node.attributes.get_int("gather_axis", 0)
        elif use.node.op_type == "EmbedLayerNormalization" and use.index in (0, 1):
            table = use.tensor(2 if use.index == 0 else 4)
        if table is not None:
            rows.append(int(table.shape.numpy()[axis]))
    return min(rows, default=None)


class _Maker:
    """Makes one sample."""

    def __init__(
        self,
        model: ir.Model,
        inputs: tuple[ModelInput, ...],
        roles: dict[str, Role],
        index: int,
        random: np.random.RandomState,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.roles = roles
        self.index = index
        self.random = random
        self.values = {value.name: value for value in model.graph.inputs}
        self.has_past = Role.PAST in roles.values()
        self.length = SEQUENCE_LENGTHS[index % len(SEQUENCE_LENGTHS)]
        self.encoder_length = SEQUENCE_LENGTHS[(index + 1) % len(SEQUENCE_LENGTHS)]
        self.past = PAST_LENGTH if self.has_past else 0
        self.sizes: dict[str, int] = {}
        self.shapes = {item.name: self.shape(item) for item in sorted(inputs, key=self.rank)}
        self.read_static_lengths()

    def rank(self, item: ModelInput) -> int:
        """Inputs whose symbols say most come first."""
        order = [Role.TOKENS, Role.PAST, Role.FEATURES]
        role = self.roles[item.name]
        return order.index(role) if role in order else len(order)

    def sample(self) -> Sample:
        return {item.name: self.array(item).astype(item.dtype) for item in self.inputs}

    def shape(self, item: ModelInput) -> tuple[int, ...]:
        dims: tuple[Dim, ...] = item.shape if item.shape is not None else (None, None)
        shape = tuple(self.size(dim, axis, item) for axis, dim in enumerate(dims))
        if math.prod(shape) * item.dtype.itemsize > MAX_BYTES:
            raise InvalidData(f"input {item.name!r} of shape {list(shape)} is too large to be made up; give samples")
        return shape

    def size(self, dim: Dim, axis: int, item: ModelInput) -> int:
        if isinstance(dim, int):
            return dim
        if dim is not None and (known := evaluate_dim(dim, self.sizes)) is not None:
            return known
        size = self.guess((dim or "").lower(), axis, item)
        if dim is not None and not is_expression(dim):
            self.sizes[dim] = size
        return size

    def guess(self, symbol: str, axis: int, item: ModelInput) -> int:
        """The size of a dim, by its name, its place and the role of the input."""
        role = self.roles[item.name]
        if "batch" in symbol or (axis == 0 and len(item.shape or ()) > 1):
            return BATCH
        if role is Role.FEATURES and (size := self.feature_size(axis, item)) is not None:
            return size
        if "encoder" in symbol:
            return self.encoder_length
        if "past" in symbol and not is_expression(symbol):
            return self.past
        if role is Role.PAST:
            return self.past
        if role is Role.LAST_INDEX:
            return BATCH
        if "total" in symbol or (role is Role.MASK and axis == len(item.shape or ()) - 1):
            return self.past + self.length
        return self.length

    def feature_size(self, axis: int, item: ModelInput) -> int | None:
        value = self.values[item.name]
        if len(item.shape or ()) == 4:
            image = image_shape(self.model, value)
            return None if image is None else image[axis - 1]
        return signal_length(self.model, value) if axis == len(item.shape or ()) - 1 else None

    def read_static_lengths(self) -> None:
        """Lengths that the model fixes replace those that were planned."""
        for item in self.inputs:
            shape = self.shapes[item.name]
            if self.roles[item.name] is Role.TOKENS and len(shape) > 1:
                self.length = shape[1]
            elif self.roles[item.name] is Role.PAST and len(shape) > 2 and "encoder" not in item.name:
                dims = item.shape or ()
                axes = [axis for axis, dim in enumerate(dims) if isinstance(dim, str) and "past" in dim]
                self.past = shape[axes[0] if axes else -2]

    def array(self, item: ModelInput) -> npt.NDArray[Any]:
        shape = self.shapes[item.name]
        rows = _table_rows(self.model, self.values[item.name])
        match self.roles[item.name]:
            case Role.TOKENS:
                # Low ids are padding and other special tokens, from which some models derive a mask.
                lowest = min(4, (rows or 1) - 1)
                return lowest + np.floor(self.random.random_sample(shape) * ((rows or 1) - lowest))
            case Role.MASK:
                return self.mask(item, shape)
            case Role.POSITIONS:
                positions = self.past + np.arange(shape[-1]) if shape else np.array(self.past)
                return np.broadcast_to(np.minimum(positions, (rows or 2**31) - 1), shape)
            case Role.SEGMENTS:
                return np.zeros(shape)
            case Role.SWITCH:
                return np.full(shape, self.index % 2 == 0)
            case Role.LAST_INDEX:
                return np.full(shape, self.past + self.length - 1)
            case Role.TOTAL_LENGTH:
                return np.full(shape, self.past + self.length)
            case Role.OTHER:
                return np.full(shape, self.past if "past" in item.name else 1)
            case Role.PAST | Role.FEATURES:
                # Uniform with variance 1: unlike a normal distribution it needs no library of mathematics.
                return (self.random.random_sample(shape) * 2 - 1) * math.sqrt(3)

    def mask(self, item: ModelInput, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        visible = np.ones(shape, dtype=bool)
        if len(shape) > 1 and shape[-1] > PADDING + 1 and (shape[0] > 1 or self.index % 2):
            visible[-1, ..., -PADDING:] = False
        if item.dtype.kind in "biu" or len(shape) <= 2:
            return visible
        return np.where(visible, 0.0, -1e4)  # is added to the scores


__all__ = ["BATCH", "PADDING", "PAST_LENGTH", "SEQUENCE_LENGTHS", "generate_samples"]
