"""The inputs of a model with what is known about each, and first guesses for the sizes that it leaves open."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from onnx_attnq.graph import signature_of
from onnx_attnq.inputs.conv_geometry import image_shape, signal_length
from onnx_attnq.inputs.given_shapes import NO_SHAPES, InputShapes, with_shapes
from onnx_attnq.inputs.mask_meaning import Meaning, mask_meaning
from onnx_attnq.inputs.roles import Role, choice_of, past_axis, role_of, table_rows
from onnx_attnq.inputs.signature import Dim, ModelInput, evaluate_dim, is_expression, model_inputs
from onnx_attnq.inputs.uses import uses


class OpenDim(NamedTuple):
    """A dim that the model leaves open; the same one for inputs whose names differ by a number only.

    Attributes:
        name: Its symbol, or "" where it has none.
        input: The input's name, numbers left out.
        axis: The axis.
    """

    name: str
    input: str
    axis: int

    def __str__(self) -> str:
        """As in an error message."""
        return self.name or f"axis {self.axis} of {self.input!r}"


@dataclasses.dataclass(frozen=True, slots=True)
class KnownInput:
    """An input and what the graph says about it.

    Attributes:
        item: Name, type and dims.
        role: What it is for.
        rows: Of the table that it is an index into.
        meaning: Of its elements, if it is a mask.
        choice: The number that it is compared with.
        sizes: Of its dims, where convolutions demand them.
        past_axis: Where earlier tokens are in an array of keys or values.
        is_buffer: Whether a past is a buffer that is filled in part, and not only as long as what is in it.
    """

    item: ModelInput
    role: Role
    rows: int | None
    meaning: Meaning | None
    choice: int | None
    sizes: tuple[int | None, ...]
    past_axis: int
    is_buffer: bool

    @property
    def is_computed(self) -> bool:
        """Whether one of its sizes is said to be made of others, such as the past and the present together."""
        return any(isinstance(dim, str) and is_expression(dim) for dim in self.dims)

    @classmethod
    def of(cls, model: ir.Model, value: ir.Value, item: ModelInput) -> KnownInput:
        """What a model's graph says about one of its inputs."""
        role = role_of(model, value, item)
        rank = 2 if item.shape is None else len(item.shape)
        sizes: tuple[int | None, ...] = ()
        if role is Role.FEATURES and item.shape is not None:
            if rank == 4 and (image := image_shape(model, value)) is not None:
                sizes = (None, *image)
            elif rank in (2, 3):
                sizes = (*[None] * (rank - 1), signal_length(model, value))
        continued = past_axis(model, value, item)
        named = [axis for axis, dim in enumerate(item.shape or ()) if isinstance(dim, str) and "past" in dim]
        axis = named[0] if named else rank - 2 if continued is None else continued
        return cls(
            item,
            role,
            table_rows(model, value),
            mask_meaning(model, value) if role is Role.MASK else None,
            choice_of(model, value) if role is Role.CHOICE else None,
            sizes,
            axis,
            role is Role.PAST and rank > 2 and _is_buffer(model, value),
        )

    @property
    def dims(self) -> tuple[Dim, ...]:
        """As declared; an input of unknown rank is taken for rows of tokens."""
        return (None, None) if self.item.shape is None else self.item.shape

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole numbers or truth values."""
        return self.item.dtype.kind in "biu"

    def dim(self, axis: int) -> OpenDim:
        """What names an open dim."""
        dim = self.dims[axis]
        return OpenDim(dim if isinstance(dim, str) else "", re.sub(r"\d+", "#", self.item.name), axis)


def known_inputs(model: ir.Model, given: InputShapes = NO_SHAPES) -> tuple[KnownInput, ...]:
    """The inputs that must be fed, those with a shape in ``given`` with that.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: A shape that is given is not one of an input.
    """
    values = {value.name: value for value in model.graph.inputs}
    return tuple(KnownInput.of(model, values[item.name], item) for item in with_shapes(model_inputs(model), given))


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """The sizes from which all others follow.

    Attributes:
        batch: Rows.
        tokens: Tokens of each.
        past: Tokens before these.
        encoder: Tokens of the other text, for what attends to two.
        spare: Places of the past's buffer that hold nothing yet.
    """

    batch: int
    tokens: int
    past: int
    encoder: int
    spare: int = 0

    @property
    def total(self) -> int:
        """Tokens of past and present."""
        return self.past + self.tokens

    def fitted_to(self, inputs: Sequence[KnownInput], shapes: Mapping[str, Sequence[Dim]]) -> Lengths:
        """The same, but for what shapes fix."""
        batch, tokens, past, spare = self.batch, self.tokens, self.past, self.spare
        for entry in inputs:
            shape = shapes[entry.item.name]
            if entry.role is Role.TOKENS and len(shape) == 2:
                batch = shape[0] if isinstance(shape[0], int) else batch
                tokens = shape[1] if isinstance(shape[1], int) else tokens
        for entry in inputs:
            shape = shapes[entry.item.name]
            if entry.role is not Role.PAST or len(shape) < 3 or "encoder" in entry.item.name:
                continue
            size = shape[entry.past_axis]
            if not isinstance(size, int):
                continue
            fits = entry.is_buffer and size >= self.past + tokens
            past, spare = (self.past, size - self.past) if fits else (size, 0)
        return dataclasses.replace(self, batch=batch, tokens=tokens, past=past, spare=spare)

    def guess(self, entry: KnownInput, axis: int) -> int:
        """The size of an open dim, by its name, its place and the role of the input."""
        dim = entry.dims[axis]
        name = dim.lower() if isinstance(dim, str) else ""
        rank = len(entry.dims)
        if "batch" in name or (axis == 0 and rank > 1) or entry.role in (Role.LAST_INDEX, Role.LENGTHS):
            return self.batch
        if axis < len(entry.sizes) and (size := entry.sizes[axis]) is not None:
            return size
        if "encoder" in name:
            return self.encoder
        if entry.role is Role.PAST and axis == entry.past_axis and entry.is_buffer:
            return self.past + self.spare
        if "total" in name or "max" in name or (entry.role is Role.MASK and axis == rank - 1):
            return self.total
        if "past" in name or entry.role is Role.PAST:
            return self.past
        return self.tokens


def first_sizes(inputs: Sequence[KnownInput], lengths: Lengths) -> dict[OpenDim, int]:
    """A size for every open dim; equal for equal symbols, and computed where a dim is an expression of symbols."""
    symbols: dict[str, int] = {}
    ordered = sorted(inputs, key=lambda entry: entry.role.value)
    named = [
        (dim, lengths.guess(entry, axis))
        for entry in ordered
        for axis, dim in enumerate(entry.dims)
        if isinstance(dim, str)
    ]
    for dim, guess in sorted(named, key=lambda pair: is_expression(pair[0])):
        computed = evaluate_dim(dim, symbols)
        symbols[dim] = guess if computed is None or computed < 0 else computed
    return {
        entry.dim(axis): symbols[dim] if isinstance(dim, str) else lengths.guess(entry, axis)
        for entry in ordered
        for axis, dim in enumerate(entry.dims)
        if not isinstance(dim, int)
    }


def shapes_of(inputs: Sequence[KnownInput], sizes: Mapping[OpenDim, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every input; expressions follow from their symbols."""
    symbols = {
        dim.name: size for dim, size in reversed(list(sizes.items())) if dim.name and not is_expression(dim.name)
    }
    shapes = {}
    for entry in inputs:
        shape = []
        for axis, dim in enumerate(entry.dims):
            computed = evaluate_dim(dim, symbols) if isinstance(dim, str) and is_expression(dim) else None
            if isinstance(dim, int):
                shape.append(dim)
            else:
                shape.append(sizes[entry.dim(axis)] if computed is None or computed < 0 else computed)
        shapes[entry.item.name] = tuple(shape)
    return shapes


def groups_of(inputs: Sequence[KnownInput], sizes: Mapping[OpenDim, int]) -> list[tuple[OpenDim, ...]]:
    """Open dims that change together: the edges of an image, equal symbols; then each by itself."""
    groups: list[tuple[OpenDim, ...]] = []
    for entry in inputs:
        edges = [axis for axis in range(1, len(entry.dims)) if not isinstance(entry.dims[axis], int)]
        if entry.role is Role.FEATURES and len(entry.dims) >= 4 and len(edges) > 1:
            groups.append(tuple(entry.dim(axis) for axis in edges[-2:]))
    by_name: dict[str, list[OpenDim]] = {}
    for dim in sizes:
        by_name.setdefault(dim.name or str(dim), []).append(dim)
    groups += [tuple(dims) for dims in by_name.values()]
    groups += [(dim,) for dims in by_name.values() if len(dims) > 1 for dim in dims]
    return groups


def _is_buffer(model: ir.Model, value: ir.Value) -> bool:
    """Whether keys are written into a past, and not put behind it."""
    reached = [use.node for use in uses(model, value)]
    written = any(node.op_type in ("ScatterND", "ScatterElements", "TensorScatter") for node in reached)
    fused = any(signature.buffers for node in reached if (signature := signature_of(node)) is not None)
    return (written or fused) and all(node.op_type != "Concat" for node in reached)


__all__ = ["KnownInput", "Lengths", "OpenDim", "first_sizes", "groups_of", "known_inputs", "shapes_of"]
