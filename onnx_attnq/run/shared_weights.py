"""A model as onnxruntime gets it: its large weights stay in their file, or are handed over as arrays."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.model import WeightInFile, files, place_of

_SHARED_SIZE: Final = 1024
"""Bytes from which a weight does not pass through protobuf."""

_INTEGERS: Final = frozenset({ir.DataType.INT32, ir.DataType.INT64})
"""The types of axes and shapes, which onnxruntime's shape inference has to find in the model itself."""

_SHARED_TYPES: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8}
)
"""The types that numpy and onnxruntime have in common."""


@dataclasses.dataclass(frozen=True)
class BareModel:
    """A model without its large weights.

    Attributes:
        content: The serialized model.
        folder: Where onnxruntime has to look for files; None if there are none.
        arrays: Weights that onnxruntime gets by name; they have to live as long as the session does.
    """

    content: bytes
    folder: Path | None
    arrays: dict[str, npt.NDArray[Any]]


def without_large_weights(model: ir.Model) -> BareModel:
    """The model without its large weights, which onnxruntime maps from the file that they are in, or gets as arrays.

    Serializing them would make two copies for each session, and take longer than a run. onnxruntime looks for all files
    in one folder, that of most of the weights; what is in another one, and all that shape inference may read, is in the
    model that it gets.

    Args:
        model: Not changed.
    """
    bare = model.clone()
    folder = _folder_of_most(files.tensors(bare))
    for root in (bare.graph, *(function.graph for function in bare.functions.values())):
        for graph in (root, *root.subgraphs()):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = _found_in(folder, value.const_value)
        for node in root.all_nodes():
            _take_in(node.attributes)
    for function in bare.functions.values():
        _take_in(function.attributes)
    inputs = set(bare.graph.inputs)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in bare.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or value in inputs or isinstance(tensor, ir.ExternalTensor):
            continue
        if not _is_large(tensor) or tensor.dtype not in _SHARED_TYPES:
            continue
        arrays[name] = np.ascontiguousarray(tensor.numpy())
        shape = ir.Shape(arrays[name].shape)
        value.const_value = ir.ExternalTensor("shared", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    return BareModel(ir.to_proto(bare).SerializeToString(), folder, arrays)


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor should not pass through protobuf, and may be where shape inference does not see it."""
    return tensor.nbytes >= _SHARED_SIZE and tensor.dtype not in _INTEGERS


def _folder_of_most(tensors: Iterable[ir.TensorProtocol]) -> Path | None:
    """The folder with most of the bytes that are in files."""
    sizes: Counter[Path] = Counter()
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            sizes[_real(tensor.base_dir)] += tensor.nbytes
        elif isinstance(tensor, WeightInFile):
            sizes[_real(tensor.place.file).parent] += tensor.nbytes
    return max(sizes, key=sizes.__getitem__, default=None)


def _real(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _found_in(folder: Path | None, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """An initializer that onnxruntime finds: by its path in the folder, or in the model."""
    place = place_of(tensor) if _is_large(tensor) else None
    if folder is None or place is None or not _real(place.file).is_relative_to(folder):
        return _in_memory(tensor)
    return ir.ExternalTensor(
        _real(place.file).relative_to(folder),
        place.offset,
        place.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        base_dir=folder,
    )


def _take_in(attributes: MutableMapping[str, ir.Attr]) -> None:
    """Put tensors of attributes, for which no folder is looked into, in the model."""
    for name, attribute in attributes.items():
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
            attributes[name] = ir.AttrTensor(name, _in_memory(attribute.value))
        elif attribute.type == ir.AttributeType.TENSORS:
            attributes[name] = ir.AttrTensors(name, [_in_memory(tensor) for tensor in attribute.value])


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(tensor.numpy(), tensor.dtype, shape=tensor.shape, name=tensor.name)


__all__ = ["BareModel", "without_large_weights"]
