"""Shapes of values inside of a model, in terms of the sizes that its inputs leave open.

Inputs of several sizes are made up, and the shapes that follow are compared: an axis that is the same for all is a
number, one that is as large as an open size, a sum of two or a multiple of one is named after these. The shapes come
from shape inference; where that cannot tell, the model is run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from onnx_attnq.errors import InvalidData
from onnx_attnq.graph import Dataflow, probe
from onnx_attnq.inputs.given_shapes import NO_SHAPES, InputShapes
from onnx_attnq.inputs.made_up import Draft, draft_samples
from onnx_attnq.inputs.roles import Role
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.inputs.signature import Dim
from onnx_attnq.run import RunSettings, Session

SIZES: Final = ((2, 16), (3, 9), (4, 11), (5, 7))
"""Rows and tokens of the inputs: no two alike, so that one open size is not taken for another."""

LARGEST_FACTOR: Final = 512
"""The largest multiple of an open size that an axis is called: heads in one axis with the batch."""


def inner_shapes(
    original: ir.Model,
    model: ir.Model,
    values: Sequence[ir.Value],
    *,
    input_shapes: InputShapes = NO_SHAPES,
    run: RunSettings | None = RunSettings(),
) -> dict[ir.Value, tuple[Dim, ...]]:
    """The shapes of values, as far as they can be told.

    Args:
        original: The model as it is in the file: its ops tell what the inputs are for.
        model: The same, perhaps with its fused ops decomposed.
        values: Of the graph or subgraphs of ``model``.
        input_shapes: The whole shape of some inputs, by name.
        run: How to run the model for what shape inference cannot tell; None to leave it.

    Returns:
        For each value that has one a shape: numbers, sizes that the inputs leave open such as ``batch`` or
        ``past + sequence``, and None for axes that are neither.

    Raises:
        InvalidModel: An input is not a tensor, or onnxruntime does not take the model.
        InvalidData: The model does not run on inputs that can be made up, or an input has no such shape.
    """
    drafts = draft_samples(original, len(SIZES), 0, SIZES, input_shapes)
    check = ShapeCheck(model)
    found: dict[ir.Value, dict[int, tuple[int, ...]]] = {value: {} for value in values}
    for index, draft in enumerate(drafts):
        known = draft.inner_shapes(check)
        for value in values:
            if value in known:
                found[value][index] = known[value]
    missing = [value for value in values if not found[value]]
    if missing and run is not None:
        _observe(model, missing, drafts, run, found)
    names = [_named_sizes(draft) for draft in drafts]
    return {value: _described(shapes, names) for value, shapes in found.items() if shapes}


def _observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    drafts: Sequence[Draft],
    run: RunSettings,
    found: Mapping[ir.Value, dict[int, tuple[int, ...]]],
) -> None:
    """Add the shapes that values have in runs."""
    flow = Dataflow(model)
    max(drafts, key=lambda draft: draft.nbytes).check_memory(ShapeCheck(model))

    def scope_of(value: ir.Value) -> str:
        assert isinstance(value.graph, ir.Graph)
        return flow.scope(value.graph)

    for scope, group in itertools.groupby(values, key=scope_of):
        members = list(group)
        session = Session(probe(model, [str(value.name) for value in members], scope), run)
        refused = []
        for index, draft in enumerate(drafts):
            try:
                arrays = session.run(draft.sample())
            except InvalidData as error:
                refused.append(error)
                continue
            for value, name in zip(members, session.outputs, strict=True):
                shape = arrays[name].shape[flow.loops_around(value) :]
                if arrays[name].size:  # else a branch that was not taken
                    found[value][index] = shape
        if len(refused) == len(drafts):
            raise refused[-1]


def _named_sizes(draft: Draft) -> dict[str, int]:
    """What the inputs leave open, and lengths that are given as a number, by name."""
    sizes: dict[str, int] = {}
    for dim, size in draft.sizes.items():
        if dim.name:
            sizes.setdefault(dim.name, size)
    lengths = (entry.item.name for entry in draft.inputs if entry.role is Role.TOTAL_LENGTH)
    return sizes | dict.fromkeys(lengths, draft.lengths.total)


def _described(shapes: Mapping[int, tuple[int, ...]], names: Sequence[Mapping[str, int]]) -> tuple[Dim, ...]:
    """A shape of which each axis is a number, or named after the size that it follows."""
    if len({len(shape) for shape in shapes.values()}) > 1:
        return ()
    open_sizes = {
        name: tuple(names[index][name] for index in shapes)
        for name in names[0]
        if all(name in names[index] for index in shapes)
    }
    return tuple(_axis(sizes, open_sizes) for sizes in zip(*shapes.values(), strict=True))


def _axis(sizes: tuple[int, ...], open_sizes: Mapping[str, tuple[int, ...]]) -> Dim:
    """A number where all sizes are alike, a name where there is one.

    >>> _axis((8, 12), {"batch": (2, 3), "tokens": (16, 9), "past": (6, 0)})
    '4 * batch'
    >>> _axis((22, 9), {"batch": (2, 3), "tokens": (16, 9), "past": (6, 0)})
    'tokens + past'
    """
    if len(set(sizes)) == 1 and (len(sizes) > 1 or not any(sizes == other for other in open_sizes.values())):
        return sizes[0]
    named = next((name for name, other in _candidates(open_sizes) if other == sizes), None)
    return named or next((text for text in _longer(sizes, open_sizes)), None)


def _candidates(open_sizes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _sums(open_sizes)
    for factor in range(2, LARGEST_FACTOR + 1):
        for name, sizes in open_sizes.items():
            yield f"{factor} * {name}", tuple(factor * size for size in sizes)


def _sums(open_sizes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from open_sizes.items()
    for (a, of_a), (b, of_b) in itertools.combinations(open_sizes.items(), 2):
        yield f"{a} + {b}", tuple(x + y for x, y in zip(of_a, of_b, strict=True))


def _longer(sizes: tuple[int, ...], open_sizes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Names of axes that are longer by a number, such as that of a sink."""
    for name, other in _sums(open_sizes):
        more = {a - b for a, b in zip(sizes, other, strict=True)}
        if len(more) == 1 and len(sizes) > 1 and (number := more.pop()) > 0:
            yield f"{name} + {number}"


__all__ = ["SIZES", "inner_shapes"]
