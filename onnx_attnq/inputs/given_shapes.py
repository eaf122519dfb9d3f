"""Shapes that a user gives to inputs whose samples are made up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs.signature import Dim, ModelInput, evaluate_dim

InputShapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""A shape for each input that is named; what follows from these has to be equal, the rest is chosen."""

NO_SHAPES: Final[InputShapes] = MappingProxyType({})


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read NAME=1,128; a scalar is NAME=.

    Raises:
        InvalidData: It is something else.

    >>> parse_input_shape("input_ids=1,128")
    ('input_ids', (1, 128))
    """
    name, equals, sizes = text.rpartition("=")
    if not name or not equals or not re.fullmatch(r"(\d{1,12}([,x]\d{1,12})*)?", sizes):
        raise InvalidData(f"{text!r} is not an input with its shape; write NAME=1,128")
    return name, tuple(int(size) for size in re.split("[,x]", sizes) if size)


def with_shapes(inputs: Sequence[ModelInput], given: InputShapes) -> tuple[ModelInput, ...]:
    """The inputs with the shapes that are given, and with what these say about the symbols of other inputs.

    Args:
        inputs: As the model declares them.
        given: Shapes of some of them.

    Raises:
        InvalidData: There is no such input, or it does not have such a shape.

    >>> import numpy as np
    >>> ids, mask = (ModelInput(name, np.dtype("int64"), ("rows", dim)) for name, dim in
    ...              (("ids", "tokens"), ("mask", "past + tokens")))
    >>> [entry.shape for entry in with_shapes((ids, mask), {"ids": (1, 128)})]
    [(1, 128), (1, 'past + 128')]
    """
    names = [entry.name for entry in inputs]
    if unknown := [name for name in given if name not in names]:
        raise InvalidData(f"{unknown[0]!r} is not an input of the model; its inputs are {', '.join(map(repr, names))}")
    symbols: dict[str, int] = {}
    for entry in inputs:
        if entry.name in given and entry.shape is not None:
            _bind(entry, given[entry.name], symbols)
    return tuple(dataclasses.replace(entry, shape=_shape(entry, given, symbols)) for entry in inputs)


def _bind(entry: ModelInput, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    """Note what a given shape says about symbols."""
    declared = entry.shape or ()
    if len(declared) != len(shape):
        raise InvalidData(_misfit(entry, shape))
    for dim, size in zip(declared, shape, strict=True):
        if isinstance(dim, int) and dim != size:
            raise InvalidData(_misfit(entry, shape))
        if isinstance(dim, str) and symbols.setdefault(dim, size) != size:
            raise InvalidData(f"{_misfit(entry, shape)}: {dim!r} is {symbols[dim]} elsewhere")


def _shape(entry: ModelInput, given: InputShapes, symbols: Mapping[str, int]) -> tuple[Dim, ...] | None:
    if entry.shape is None:
        return tuple(given[entry.name]) if entry.name in given else None
    dims = tuple(_known(dim, symbols) for dim in entry.shape)
    shape = tuple(given.get(entry.name, dims))
    for dim, found, size in zip(entry.shape, dims, shape, strict=True):
        computed = evaluate_dim(dim, {k: v for k, v in symbols.items() if k != dim}) if isinstance(dim, str) else found
        if isinstance(size, int) and computed not in (None, size):
            raise InvalidData(f"{_misfit(entry, shape)}: {dim!r} is {computed}")
    return shape


def _known(dim: Dim, symbols: Mapping[str, int]) -> Dim:
    """A dim with the sizes of symbols in their place: a number where all are known."""
    if not isinstance(dim, str):
        return dim
    size = evaluate_dim(dim, symbols)
    if size is not None and size >= 0:
        return size
    return re.sub(r"[A-Za-z_]\w*", lambda word: str(symbols.get(word[0], word[0])), dim)


def _misfit(entry: ModelInput, shape: Sequence[Dim]) -> str:
    return f"input {entry.name!r} is {entry} and cannot have the shape {','.join(map(str, shape))}"


__all__ = ["NO_SHAPES", "InputShapes", "parse_input_shape", "with_shapes"]
