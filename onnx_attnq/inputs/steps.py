"""What a decoder with a cache is fed while it generates: a prompt, then one token after another.

A cache either grows, an output that is longer than the input, or is a buffer that is filled bit by bit. Those that
onnxruntime-genai runs are of the second kind, with past and present in one buffer that has room for the longest text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.graph import known_op, signature_of
from onnx_attnq.inputs.given_shapes import NO_SHAPES, InputShapes
from onnx_attnq.inputs.made_up import draft_of
from onnx_attnq.inputs.open_dims import KnownInput, Lengths, known_inputs
from onnx_attnq.inputs.roles import Role
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.inputs.signature import Sample

ROOM: Final = 4
"""Length of a buffer with room to spare, as a multiple of what is in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One run of a model.

    Attributes:
        tokens: Tokens of each row.
        past: Tokens before these, whose keys and values are cached.
        capacity: Places of the buffer that is both past and present; None where the cache grows, or there is none.
        shape: Of the largest input, where the model takes no ids of tokens but an image or a signal.
    """

    tokens: int
    past: int = 0
    capacity: int | None = None
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        """As in tables.

        >>> print(Step(512), Step(1, 512), Step(1, 512, 2048), Step(3, shape=(1, 3, 224, 224)), sep="; ")
        512 tokens; 1 token after 512; 1 token after 512, room for 2048; 1x3x224x224
        """
        if self.shape:
            return "x".join(map(str, self.shape))
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens} tokens"
        after = f" after {self.past}" if self.past else ""
        return tokens + after + (f", room for {self.capacity}" if self.capacity is not None else "")


def steps_of(
    model: ir.Model, lengths: Sequence[int], batch: int = 1, input_shapes: InputShapes = NO_SHAPES
) -> tuple[Step, ...]:
    """The runs that show how fast a model is: of texts of some lengths, and for a decoder of one token after each.

    Where past and present may be one buffer, it has room for `ROOM` times the text, and for a single token also for no
    more than that. Where the model or the shapes that are given fix lengths, the steps have these.

    Args:
        model: The original.
        lengths: In tokens.
        batch: Rows.
        input_shapes: The whole shape of some inputs, by name.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: An input is not there, or has no such shape.
    """
    inputs = known_inputs(model, input_shapes)
    caches = _caches(inputs)
    if not caches:
        if all(entry.role is not Role.TOKENS for entry in inputs):
            made = [draft_of(model, inputs, _fitted(inputs, Step(length), batch)).shapes() for length in lengths]
            shapes = dict(zip(map(_largest, made), lengths, strict=True))
            return tuple(Step(length, shape=shape) for shape, length in shapes.items())
        ends = (lengths[0], lengths[-1] + 1)
        first, other = (draft_of(model, inputs, _fitted(inputs, Step(end), batch)).shapes() for end in ends)
        if first == other:
            return (Step(max((shape[1] for shape in first.values() if len(shape) > 1), default=1)),)
        return tuple(Step(length) for length in lengths)
    # Where a length is said to be that of the past and more, a buffer has no room to spare.
    computed = any(entry.is_computed for entry in inputs)
    roomy = bool(shared_buffers(model)) and all(entry.is_buffer for entry in caches) and not computed
    steps: list[Step] = []
    for length in lengths:
        wanted = [Step(length), Step(1, length)]
        if roomy:
            wanted = [Step(length, 0, ROOM * length), Step(1, length, length + 1), Step(1, length, ROOM * length)]
        for step in wanted:
            fitted = _fitted(inputs, step, batch)
            capacity = None if step.capacity is None else fitted.past + fitted.spare
            steps.append(Step(fitted.tokens, fitted.past, capacity))
    # A model that takes one token at a time has no prompt; one token without a past is not timed.
    kept = [step for step in steps if step.tokens > 1 or step.past > 0]
    return tuple(dict.fromkeys(kept or steps))


def step_of(model: ir.Model, sample: Sample) -> Step:
    """What a given sample is."""
    inputs = known_inputs(model)
    tokens = [sample[e.item.name].shape[-1] for e in inputs if e.role is Role.TOKENS and sample[e.item.name].ndim > 1]
    pasts = [sample[e.item.name].shape[e.past_axis] for e in _caches(inputs)]
    if not tokens:
        shape = _largest({name: array.shape for name, array in sample.items()})
        return Step(shape[1] if len(shape) > 1 else 1, shape=shape)
    return Step(int(tokens[0]), int(max(pasts, default=0)))


def step_sample(model: ir.Model, step: Step, batch: int = 1, input_shapes: InputShapes = NO_SHAPES) -> Sample:
    """Made-up inputs for a run.

    Args:
        model: The original.
        step: One of `steps_of`.
        batch: Rows.
        input_shapes: The whole shape of some inputs, by name.

    Raises:
        InvalidModel: An input is not a tensor.
        InvalidData: The inputs are too large to be made up, or what the model computes from them is too large to be
            computed.
    """
    inputs = known_inputs(model, input_shapes)
    draft = draft_of(model, inputs, _fitted(inputs, step, batch))
    draft.check_memory(ShapeCheck(model))
    return draft.sample()


def shared_buffers(model: ir.Model) -> dict[str, str]:
    """For each input that is a past, the output that is its present, where both may be one buffer."""
    found: dict[str, str] = {}
    for node in model.graph:
        for past, present in _buffers(node):
            value = node.inputs[past] if past < len(node.inputs) else None
            output = node.outputs[present] if present < len(node.outputs) else None
            if value is None or output is None or not value.is_graph_input() or not output.is_graph_output():
                continue
            found[str(value.name)] = str(output.name)
    return found


def _buffers(node: ir.Node) -> tuple[tuple[int, int], ...]:
    """Places of past and present in an op that takes one buffer for both."""
    if known_op(node) == "TensorScatter":
        return ((0, 0),)
    signature = signature_of(node)
    return () if signature is None else signature.buffers


def with_defined_rows(model: ir.Model, sample: Sample, outputs: Mapping[str, npt.NDArray[Any]]) -> Sample:
    """A sample whose buffers hold zeros wherever the model ignores what they hold.

    Behind the last key GroupQueryAttention gives what it likes: onnxruntime's zeros, others what was there, such as
    tokens that were taken back. With zeros all give the same.

    Args:
        model: The original.
        sample: What it was run on.
        outputs: What it gave.
    """
    changed = {}
    for past, present in shared_buffers(model).items():
        before, after = sample.get(past), outputs.get(present)
        if before is None or after is None or before.shape != after.shape:
            continue
        filled = np.asarray(after.any(axis=-1, keepdims=True))
        changed[past] = np.where(filled, before, np.zeros((), before.dtype))
    return {**sample, **changed} if changed else sample


def _caches(inputs: Sequence[KnownInput]) -> list[KnownInput]:
    """Keys and values of earlier tokens of the same text."""
    return [
        entry
        for entry in inputs
        if entry.role is Role.PAST and len(entry.dims) > 2 and "encoder" not in entry.item.name.lower()
    ]


def _largest(shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The shape with most elements."""
    return tuple(map(int, max(shapes.values(), key=math.prod, default=())))


def _fitted(inputs: Sequence[KnownInput], step: Step, batch: int) -> Lengths:
    """The lengths of a step, but for what the signature fixes."""
    spare = 0 if step.capacity is None else step.capacity - step.past
    lengths = Lengths(batch, step.tokens, step.past, max(step.tokens, step.past), spare)
    return lengths.fitted_to(inputs, {entry.item.name: entry.dims for entry in inputs})


__all__ = ["Step", "shared_buffers", "step_of", "step_sample", "steps_of", "with_defined_rows"]
