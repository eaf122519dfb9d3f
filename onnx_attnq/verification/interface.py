"""Whether two models can be compared: the same inputs and outputs."""

from __future__ import annotations

import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.inputs import Dim, model_inputs


def check_interface(a: ir.Model, b: ir.Model) -> None:
    """Raise InvalidModel unless both models have the same inputs and outputs."""
    inputs_a, inputs_b = ({item.name: item for item in model_inputs(model)} for model in (a, b))
    for kind, names_a, names_b in (
        ("input", set(inputs_a), set(inputs_b)),
        ("output", {v.name for v in a.graph.outputs}, {v.name for v in b.graph.outputs}),
    ):
        for name in sorted(map(str, names_a ^ names_b)):
            raise InvalidModel(
                f"only {'A' if name in names_a else 'B'} has the {kind} {name!r}; both must have the same"
            )
    for name, item in inputs_a.items():
        other = inputs_b[name]
        if item.dtype != other.dtype or not _fit(item.shape, other.shape):
            raise InvalidModel(f"input {name!r} is {item} in A and {other} in B")


def _fit(a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


__all__ = ["check_interface"]
