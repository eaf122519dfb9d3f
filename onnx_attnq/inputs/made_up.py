"""Sample inputs made up from a model's signature and graph, for when there is no data.

They run, and they exercise padding, a past, single steps and different lengths. They say nothing
about accuracy, for which real data is needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidData
from onnx_attnq.graph import signature_of
from onnx_attnq.inputs.fitting import Fitted, fit
from onnx_attnq.inputs.given_shapes import NO_SHAPES, InputShapes
from onnx_attnq.inputs.made_up_values import PADDING, follows_from_lengths, values_of
from onnx_attnq.inputs.mask_meaning import Meaning
from onnx_attnq.inputs.needed_memory import check_memory
from onnx_attnq.inputs.open_dims import (
    KnownInput,
    Lengths,
    OpenDim,
    first_sizes,
    groups_of,
    known_inputs,
    shapes_of,
)
from onnx_attnq.inputs.roles import Role
from onnx_attnq.inputs.shape_check import Misfit, ShapeCheck
from onnx_attnq.inputs.signature import Sample
from onnx_attnq.model import MAX_RANK

SHAPES: Final = ((2, 16), (1, 9), (2, 12), (1, 7))
"""Rows and tokens of the samples, in turn: short enough for any table of positions, and not all even."""

PAST_LENGTH: Final = 6
"""Tokens that a decoder has seen before."""

PASTS: Final = (PAST_LENGTH, PAST_LENGTH, 0, 1)
"""The same for the samples in turn: none is the first step of a loop, one the shortest cache there is."""

SPARE: Final = 5
"""Unused positions of a past that is a buffer."""

MAX_BYTES: Final = 2**28
"""The largest sample that is made: a hostile model may declare inputs of any size and number."""

MAX_TOTAL_BYTES: Final = 2**30
"""All samples together: they are kept for the whole of a verification."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A sample before its arrays are generated, whose sizes may still change.

    Attributes:
        inputs: What the model takes.
        lengths: The sizes from which the others follow.
        sizes: Of the open dims.
        seed: Of token ids and features: the caller's, and the number of the sample.
        doubt: Why these sizes may not fit, one line; None if no problem was found.
    """

    inputs: tuple[KnownInput, ...]
    lengths: Lengths
    sizes: Mapping[OpenDim, int]
    seed: tuple[int, int]
    doubt: str | None = None

    def sample(self) -> Sample:
        """The arrays.

        Raises:
            InvalidData: An input is too large to be made up.
        """
        # RandomState, because numpy promises that its stream never changes; that of Generator may.
        random = np.random.RandomState(self.seed)
        shapes = self.shapes()
        lengths = self.lengths.fitted_to(self.inputs, shapes)
        return {
            entry.item.name: values_of(entry, shapes[entry.item.name], lengths, random).astype(entry.item.dtype)
            for entry in self.inputs
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays.

        Raises:
            InvalidData: An input is too large to be made up.
        """
        shapes = self.shapes()
        return sum(math.prod(shapes[entry.item.name]) * entry.item.dtype.itemsize for entry in self.inputs)

    def misfit(self, check: ShapeCheck) -> Misfit | None:
        """Why the sizes do not fit, by shape inference."""
        return check.misfit(*self._what_is_known())

    def inner_shapes(self, check: ShapeCheck) -> dict[ir.Value, tuple[int, ...]]:
        """The shapes of values inside of the model that shape inference can tell."""
        return check.shapes(*self._what_is_known())

    def check_memory(self, check: ShapeCheck) -> None:
        """As `needed_memory.check_memory`."""
        check_memory(check, *self._what_is_known())

    def _what_is_known(self) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...]]], dict[str, npt.NDArray[Any]]]:
        """Types and shapes of the inputs, and the values of those that follow from sizes."""
        shapes = self.shapes()
        lengths = self.lengths.fitted_to(self.inputs, shapes)
        values = {
            entry.item.name: values_of(entry, shapes[entry.item.name], lengths, _NO_RANDOM).astype(entry.item.dtype)
            for entry in self.inputs
            if follows_from_lengths(entry.role) and math.prod(shapes[entry.item.name]) <= _SMALL
        }
        return {entry.item.name: (entry.item.dtype, shapes[entry.item.name]) for entry in self.inputs}, values

    def fitted(self, complaint: Callable[[Draft], Misfit | None], most_checks: int) -> Draft:
        """The same with sizes that fit, or with these and the reason why they may not."""

        def check(sizes: Mapping[OpenDim, int]) -> Misfit | None:
            changed = dataclasses.replace(self, sizes=sizes)
            try:
                return complaint(changed)
            except InvalidData as error:  # too large
                return Misfit(-1, "inputs", str(error))

        found = fit(check, self.sizes, groups_of(self.inputs, self.sizes), most_checks=most_checks)
        if found.misfit is None:
            return dataclasses.replace(self, sizes=found.sizes)
        return dataclasses.replace(self, doubt=_doubt(found))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every input."""
        shapes = shapes_of(self.inputs, self.sizes)
        _check_total(self.inputs, shapes)
        return shapes


_NO_RANDOM: Final = np.random.RandomState(0)
_SMALL: Final = 4096
_MOST_CHECKS: Final = 150


def generate_samples(
    model: ir.Model,
    count: int = len(SHAPES),
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    input_shapes: InputShapes = NO_SHAPES,
) -> tuple[Sample, ...]:
    """Make inputs for a model; equal arguments give equal arrays on every platform.

    A model that takes a past gets, in turn, a text after a past, and one token after a past. Sizes that the graph
    fixes are found by shape inference.

    Args:
        model: The model; only its inputs, its graph, and the shapes of some weights, are looked at.
        count: How many samples.
        seed: Of token ids and features.
        shapes: (batch, length) of the samples, in turn, where the model leaves them open.
        input_shapes: The whole shape of some inputs, by name, in every sample. Inputs that share a symbol follow.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: The inputs are too large to be made up; or an input is not there, or has no such shape.
    """
    return tuple(draft.sample() for draft in draft_samples(model, count, seed, shapes, input_shapes))


def draft_samples(
    model: ir.Model,
    count: int = len(SHAPES),
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    input_shapes: InputShapes = NO_SHAPES,
    check: ShapeCheck | None = None,
) -> tuple[Draft, ...]:
    """What `generate_samples` makes arrays of; ``check`` is of the model, where there is one already."""
    inputs = known_inputs(model, input_shapes)
    check = check or ShapeCheck(model)
    drafts: list[Draft] = []
    learned: dict[OpenDim, int] = {}
    for index in range(count):
        lengths = _lengths(model, inputs, index, shapes)
        declared = lengths.fitted_to(inputs, {entry.item.name: entry.dims for entry in inputs})
        first = first_sizes(inputs, declared)
        draft = Draft(inputs, declared, {**first, **learned}, (seed, index))
        if first and (not drafts or drafts[0].doubt is None):
            draft = draft.fitted(lambda changed: changed.misfit(check), _MOST_CHECKS)
            # What the graph fixes it fixes for every sample.
            learned |= {dim: size for dim, size in draft.sizes.items() if size != first[dim]}
        drafts.append(draft)
    if (total := sum(draft.nbytes for draft in drafts)) > MAX_TOTAL_BYTES:
        raise InvalidData(
            f"{count} samples need {total >> 20} MiB, which is too large to be made up "
            f"(limit {MAX_TOTAL_BYTES >> 20} MiB); ask for fewer, or give data"
        )
    return tuple(drafts)


def draft_of(model: ir.Model, inputs: Sequence[KnownInput], lengths: Lengths, seed: int = 0) -> Draft:
    """A draft of given lengths; what they leave open is found by shape inference."""
    check = ShapeCheck(model)
    draft = Draft(tuple(inputs), lengths, first_sizes(inputs, lengths), (seed, 0))
    return draft.fitted(lambda changed: changed.misfit(check), _MOST_CHECKS) if draft.sizes else draft


def edge_samples(model: ir.Model, seed: int = 0, input_shapes: InputShapes = NO_SHAPES) -> tuple[Sample, ...]:
    """Inputs at the edge of what a model is fed: a row without a visible key, and a NaN.

    Two models that compute the same do so here too: a row of uniform attention, or the NaN that the first one gives.

    Returns:
        Up to two samples: one for a model with a mask, one for a model that takes real numbers.
    """
    (draft,) = draft_samples(model, 1, seed, input_shapes=input_shapes)
    base = draft.sample()
    masks = [entry for entry in draft.inputs if entry.role is Role.MASK and base[entry.item.name].ndim > 1]
    features = [entry.item.name for entry in draft.inputs if entry.role is Role.FEATURES and base[entry.item.name].size]
    found: list[Sample] = []
    if masks:
        hidden = {entry.item.name: _with_hidden_row(base[entry.item.name], entry.meaning) for entry in masks}
        found.append({**base, **hidden})
    if features:
        spoiled = base[features[0]].copy()
        spoiled.flat[-1] = np.nan
        found.append({**base, features[0]: spoiled})
    return tuple(found)


def _with_hidden_row(mask: npt.NDArray[Any], meaning: Meaning | None) -> npt.NDArray[Any]:
    """The mask, with nothing visible in the last row of the batch."""
    hidden = mask.copy()
    added = meaning is Meaning.ADDED or (meaning is None and mask.dtype.kind == "f" and mask.ndim > 2)
    hidden[-1] = np.finfo(mask.dtype).min if added else meaning is Meaning.ONE_IS_HIDDEN
    return hidden


def _lengths(model: ir.Model, inputs: Sequence[KnownInput], index: int, shapes: Sequence[tuple[int, int]]) -> Lengths:
    """Of the sample of a number."""
    batch, tokens = shapes[index % len(shapes)]
    encoder = shapes[(index + 1) % len(shapes)][1]
    pasts = [entry for entry in inputs if entry.role is Role.PAST]
    if not pasts:
        return Lengths(batch, tokens, 0, encoder)
    signatures = (signature_of(node) for node in model.graph.all_nodes())
    prompts_have_past = not any(signature.buffers for signature in signatures if signature is not None)
    is_step = index % 2 == 1
    past = PASTS[index % len(PASTS)] if is_step or prompts_have_past else 0
    # A buffer has room to spare, unless its length is said to be that of the past.
    has_room = any(entry.is_buffer for entry in pasts) and not any(entry.is_computed for entry in inputs)
    return Lengths(batch, 1 if is_step else tokens, past, encoder, SPARE if has_room and index % 4 == 3 else 0)


def _check_total(inputs: Sequence[KnownInput], shapes: Mapping[str, tuple[int, ...]]) -> None:
    # numpy counts the axes of size 0 out, too.
    sizes = {
        entry.item.name: math.prod(max(size, 1) for size in shapes[entry.item.name]) * max(entry.item.dtype.itemsize, 1)
        for entry in inputs
    }
    if not sizes:
        return
    largest = max(sizes, key=lambda name: (len(shapes[name]) > MAX_RANK, sizes[name]))
    if len(shapes[largest]) > MAX_RANK or sizes[largest] > MAX_BYTES:
        raise InvalidData(f"input {largest!r} of shape {shapes[largest]} is too large to be made up; give data")
    if (total := sum(sizes.values())) > MAX_BYTES:
        raise InvalidData(
            f"the inputs, the largest of which is {largest!r} of shape {shapes[largest]}, need {total >> 20} MiB, "
            f"which is too large to be made up (limit {MAX_BYTES >> 20} MiB); give data"
        )


def _doubt(found: Fitted[OpenDim]) -> str:
    """Why the sizes do not fit, and what was tried."""
    tried = [f"{dim}: {', '.join(map(str, sizes[:8]))}" for dim, sizes in found.tried.items() if len(sizes) > 3]
    return f"{found.misfit}" + (f"; tried {'; '.join(tried[:4])}" if tried else "")


__all__ = ["PADDING", "PAST_LENGTH", "SHAPES", "Draft", "draft_of", "draft_samples", "edge_samples", "generate_samples"]
