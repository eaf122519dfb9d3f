"""What a model is fed: names, types and shapes of its inputs."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel

Sample: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""What one run of a model is fed: an array for each input."""

Dim: TypeAlias = int | str | None
"""A size, a symbol or expression such as ``past_sequence_length + 1``, or nothing known."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: The name to feed it by.
        dtype: Its numpy type; bfloat16 and the 8-bit floats come from ml_dtypes.
        shape: Its dims, or None when not even the rank is known.
        has_default: Whether an initializer of the same name is what it holds unless it is fed.
    """

    name: str
    dtype: np.dtype
    shape: tuple[Dim, ...] | None
    has_default: bool = False

    def __str__(self) -> str:
        """As in an error message: int64[batch, 12]."""
        dims = "..." if self.shape is None else ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype.name}[{dims}]"


def model_inputs(model: ir.Model, *, with_defaults: bool = False) -> tuple[ModelInput, ...]:
    """The inputs that must be fed, in the model's order.

    Args:
        model: The model.
        with_defaults: Also those that may be fed: from IR version 4 on, an input with an initializer is optional.

    Raises:
        InvalidModel: An input is a sequence, an optional, or has no type.
    """
    found = []
    for value in model.graph.inputs:
        has_default = value.name in model.graph.initializers
        if has_default and not (with_defaults and model.ir_version >= 4):
            continue
        if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.UNDEFINED):
            raise InvalidModel(f"input {value.name!r} is not a tensor of known type: it is {value.type}")
        shape = None if value.shape is None else tuple(map(_dim, value.shape))
        found.append(ModelInput(str(value.name), np.dtype(value.type.dtype.numpy()), shape, has_default))
    return tuple(found)


def evaluate_dim(dim: str, sizes: Mapping[str, int]) -> int | None:
    """The size that a symbol or an expression of symbols stands for; None when it cannot be known.

    >>> evaluate_dim("past_sequence_length + sequence_length", {"past_sequence_length": 6, "sequence_length": 10})
    16
    """
    if dim in sizes:
        return sizes[dim]
    try:
        return _evaluate(ast.parse(dim.strip(), mode="eval").body, sizes)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def is_expression(dim: str) -> bool:
    """True for what is computed from other symbols, false for a symbol with any name."""
    try:
        return isinstance(ast.parse(dim.strip(), mode="eval").body, ast.BinOp)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _evaluate(left, sizes), _evaluate(right, sizes)
            match operator:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv() | ast.Div():
                    return a // b
    raise ValueError


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value or None


__all__ = ["Dim", "ModelInput", "Sample", "evaluate_dim", "is_expression", "model_inputs"]
