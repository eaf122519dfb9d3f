"""onnxruntime's transformer optimizer, with most of a model's weights left in their file."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import warnings
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir

from onnx_attnq.errors import AttnqError, InvalidModel, first_line
from onnx_attnq.model import WeightInFile, bare_proto, load, save, set_reference
from onnx_attnq.run.quiet import without_warnings

_READ: Final = 2**20
"""Bytes below which the optimizer may read a weight, which it does with biases and masks."""


def optimize_transformer(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """What onnxruntime's transformer optimizer makes of a model: the best that it offers for the original.

    Of the weights of a large file it gets those that it merges, the ones of query, key and value; with all of them it
    needs six times the file. Where it asks for others, it gets all.

    Raises:
        InvalidModel: The optimizer does not take the model, or finds no attention to fuse.
    """
    with warnings.catch_warnings():
        # Where it fails its temporary folder is removed by the garbage collector, which warns of it.
        warnings.simplefilter("ignore", ResourceWarning)
        if _without_most_weights(Path(source), Path(output)):
            return
        failure = _optimized(os.fspath(source), os.fspath(output))
    if failure is not None:
        raise InvalidModel(f"onnxruntime's transformer optimizer {failure}")


def _optimized(source: str | onnx.ModelProto, output: str | None) -> str | onnx.ModelProto | None:
    """Run the optimizer; returns what went wrong, or the model where it is not to be saved."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), without_warnings():
            optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
            optimized = optimizer.optimize_model(source, model_type="bert", opt_level=0)
            counts = optimized.get_fused_operator_statistics()
            if not counts.get("Attention") and not counts.get("MultiHeadAttention"):
                return "finds no attention to fuse"
            if output is None:
                return optimized.model  # type: ignore[no-any-return]
            optimized.save_model_to_file(output)
    except Exception as error:  # any exception of the optimizer becomes one line for the user
        return f"fails: {first_line(error)}"
    return None


def _without_most_weights(source: Path, output: Path) -> bool:
    """Whether that succeeded."""
    try:
        model = load(source)
    except AttnqError:
        return False
    proto, held = bare_proto(model)
    left: dict[str, WeightInFile] = {}
    merged = _merged(model)
    for tensor in proto.graph.initializer:
        weight = held.get(tensor.name)
        if weight is None:
            continue
        if weight.nbytes < _READ or tensor.name in merged:
            tensor.raw_data = weight.tobytes()
        else:
            left[tensor.name] = weight
            set_reference(tensor, (tensor.name, 0, weight.nbytes))
    if not left:
        return False
    found = _optimized(proto, None)
    if not isinstance(found, onnx.ModelProto):
        return False
    optimized = ir.from_proto(found)
    for name, value in optimized.graph.initializers.items():
        if isinstance(value.const_value, ir.ExternalTensor):
            if name not in left:  # under another name it may be another one
                return False
            value.const_value = left[name]
    save(optimized, output)
    return True


def _merged(model: ir.Model) -> set[str]:
    """Weights of the products whose results meet in products of two values: query, key and value."""
    names: set[str] = set()
    seen: set[ir.Value] = set()
    pending = [value for node in model.graph if _is_product(node) and not _weights(node) for value in node.inputs]
    while pending:
        value = pending.pop()
        node = None if value is None or value in seen else value.producer()
        if value is None or node is None:
            continue
        seen.add(value)
        if _is_product(node):
            names.update(_weights(node))
        else:
            pending.extend(node.inputs)
    return names


def _is_product(node: ir.Node) -> bool:
    return node.op_type in ("MatMul", "Gemm")


def _weights(node: ir.Node) -> list[str]:
    return [
        str(value.name) for value in node.inputs if value is not None and isinstance(value.const_value, WeightInFile)
    ]


__all__ = ["optimize_transformer"]
