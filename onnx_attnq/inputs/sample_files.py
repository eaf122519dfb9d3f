"""Sample inputs: read from files and checked against the model's signature, or made up (`made_up`)."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_attnq.errors import InvalidData, InvalidModel, first_line
from onnx_attnq.inputs.needed_memory import check_samples_memory
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.inputs.signature import ModelInput, Sample, evaluate_dim, model_inputs
from onnx_attnq.model import check_tensor
from onnx_attnq.reading import check_unpacked, open_regular, read_regular

MASK_NAMES: Final = ("attention_mask", "input_mask", "padding_mask", "mask", "encoder_attention_mask")
"""Names that exporters give to the input which is 1 for tokens and 0 for padding, the best first."""


def load_samples(path: str | os.PathLike[str], model: ir.Model) -> tuple[Sample, ...]:
    """Read samples for a model.

    ``path`` is one of

    * X.npz: one sample, an array for each input by name;
    * X.npy: one sample of a model with one input;
    * a folder with such files: a sample each, by name (2 before 10);
    * a folder with input_0.pb, input_1.pb, …: one sample, serialized TensorProtos in the order of the
      model's inputs, or with their names;
    * a folder with folders test_data_set_0, test_data_set_1, … of these.

    Samples may have different lengths where the model's dims are symbolic. Whole numbers of another
    type are converted if every value fits; nothing else is. Pickled objects are refused. An input with an initializer
    may be missing.

    Raises:
        InvalidData: Nothing there, not readable, or not what the model takes. The line names file and input.
            Or a value that the model computes from one does not fit into memory; the line names the node.
    """
    inputs = _Inputs(model_inputs(model, with_defaults=True), ShapeCheck(model))
    samples = _load(Path(path), inputs)
    check_samples_memory(inputs.graph, samples)
    return samples


def _load(place: Path, inputs: _Inputs) -> tuple[Sample, ...]:
    if not place.exists():
        raise InvalidData(f"{place} does not exist")
    if not place.is_dir():
        return (_load_file(place, inputs),)
    folders = _sorted(entry for entry in place.glob("test_data_set_*") if entry.is_dir())
    if not folders and any(place.glob("input_*.pb")):
        folders = [place]
    if folders:
        return tuple(_load_folder(folder, inputs) for folder in folders)
    files = _sorted(entry for entry in place.iterdir() if entry.suffix in (".npz", ".npy"))
    if not files:
        raise InvalidData(f"{place} has no .npz, .npy or input_*.pb files, and no test_data_set_* folders")
    return tuple(_load_file(file, inputs) for file in files)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What samples are checked against."""

    items: tuple[ModelInput, ...]
    graph: ShapeCheck

    @property
    def required(self) -> tuple[str, ...]:
        """The names that must be there."""
        return tuple(item.name for item in self.items if not item.has_default)


def check_sample(sample: Sample, inputs: Iterable[ModelInput], source: str, graph: ShapeCheck | None = None) -> Sample:
    """The sample in the model's order and types.

    Args:
        sample: Arrays by input name.
        inputs: What the model takes.
        source: Where the sample comes from, for messages.
        graph: Is asked where a symbol has two sizes: some exporters use one name for two things, and what the graph
            takes is right. None refuses such a sample.

    Raises:
        InvalidData: A name, type, rank, static dim, or symbolic dim does not fit.
    """
    inputs = tuple(inputs)
    expected = [item.name for item in inputs]
    if missing := [item.name for item in inputs if item.name not in sample and not item.has_default]:
        raise InvalidData(f"{source}: input {missing[0]!r} is missing; the file has {_names(sample)}")
    if extra := [name for name in sample if name not in expected]:
        raise InvalidData(f"{source}: {extra[0]!r} is not an input of the model; its inputs are {_names(expected)}")
    inputs = tuple(item for item in inputs if item.name in sample)
    checked = {item.name: _convert(sample[item.name], item, source) for item in inputs}
    if (problem := _symbol_problem(checked, inputs)) is not None and (graph is None or _misfit(checked, graph)):
        raise InvalidData(f"{source}: {problem}")
    return checked


def attention_mask_of(sample: Sample) -> npt.NDArray[np.bool_] | None:
    """Which positions of a sample hold tokens, going by the names that exporters use.

    Returns:
        bool (batch, length), true for tokens; None when no input is such a mask.

    >>> attention_mask_of({"attention_mask": np.array([[1, 1, 0]])}).tolist()
    [[True, True, False]]
    """
    for name in MASK_NAMES:
        mask = sample.get(name)
        # A mask of more axes is not about positions, and one with other values is added to the scores.
        if mask is not None and mask.ndim == 2 and np.isin(mask.astype(np.float64), (0, 1)).all():
            return mask.astype(np.bool_)
    return None


def _misfit(sample: Sample, graph: ShapeCheck) -> bool:
    shapes = {name: (array.dtype, array.shape) for name, array in sample.items()}
    return graph.misfit(shapes, sample) is not None


def _load_file(file: Path, inputs: _Inputs) -> Sample:
    if file.suffix not in (".npz", ".npy"):
        raise InvalidData(f"{file} is neither .npz nor .npy nor a folder")
    loaded = _read(file, _read_numpy)
    if isinstance(loaded, np.ndarray):
        if len(inputs.required) != 1:
            raise InvalidData(f"{file} holds one array, but the model has the inputs {_names(inputs.required)}")
        loaded = {inputs.required[0]: loaded}
    return check_sample(loaded, inputs.items, str(file), inputs.graph)


def _load_folder(folder: Path, inputs: _Inputs) -> Sample:
    files = _sorted(folder.glob("input_*.pb"))
    required, everything = inputs.required, tuple(item.name for item in inputs.items)
    named = [_read(file, _read_tensor) for file in files]
    names = tuple(name for name, _ in named)
    if len(set(names)) < len(names) or not set(required) <= set(names) <= set(everything):
        if len(files) not in (len(required), len(everything)):
            raise InvalidData(
                f"{folder} has {len(files)} files input_*.pb, but the model has the inputs {_names(required)}"
            )
        names = required if len(files) == len(required) else everything
    arrays = (array for _, array in named)
    return check_sample(dict(zip(names, arrays, strict=True)), inputs.items, str(folder), inputs.graph)


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except InvalidModel as error:
        raise InvalidData(f"{file}: {error}") from None
    except Exception as error:  # zip, numpy and protobuf each have their own for a damaged file
        raise InvalidData(f"{file} cannot be read: {first_line(error)}") from error


def _read_numpy(file: Path) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
    with open_regular(file) as opened:  # np.load would leave a damaged file open
        if not opened.read(6).startswith((b"PK", b"\x93NUMPY")):  # numpy would speak of pickled data
            raise ValueError("it is neither .npz nor .npy, whatever its name says; numpy.savez writes such files")
        opened.seek(0)
        loaded = np.load(opened, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        check_unpacked(loaded.zip, file)
        return {name: loaded[name] for name in loaded.files}


def _read_tensor(file: Path) -> tuple[str, npt.NDArray[Any]]:
    proto = onnx.TensorProto.FromString(read_regular(file))
    check_tensor(proto)
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise InvalidModel("a sample must not refer to external data")
    return proto.name, ir.from_proto(proto).numpy()


def _convert(array: npt.NDArray[Any], item: ModelInput, source: str) -> npt.NDArray[Any]:
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # a file may have the other order of bytes
    found = f"{array.dtype.name}{list(array.shape)}"
    if array.dtype.kind == "V" and array.dtype.itemsize == item.dtype.itemsize:
        array = array.view(item.dtype)  # numpy writes bfloat16 as two bytes of no type
    if array.dtype != item.dtype:
        whole = array.dtype.kind in "biu" and item.dtype.kind in "biu"
        converted = array.astype(item.dtype) if whole else array
        if not whole or not np.array_equal(converted, array):
            raise InvalidData(f"{source}: input {item.name!r} has the wrong type: expected {item}, got {found}")
        array = converted
    if item.shape is not None:
        fits = len(item.shape) == array.ndim and all(
            size == dim for size, dim in zip(array.shape, item.shape, strict=True) if isinstance(dim, int)
        )
        if not fits:
            raise InvalidData(f"{source}: input {item.name!r} has the wrong shape: expected {item}, got {found}")
    return array


def _symbol_problem(sample: Sample, inputs: tuple[ModelInput, ...]) -> str | None:
    """Equal symbols stand for equal sizes, and sums for the sum; one line if they do not."""
    sizes: dict[str, tuple[int, str]] = {}
    dims = [
        (item.name, dim, size)
        for item in inputs
        for dim, size in zip(item.shape or (), sample[item.name].shape, strict=item.shape is not None)
        if isinstance(dim, str)
    ]
    for name, dim, size in dims:
        known, first = sizes.setdefault(dim, (size, name))
        if known != size:
            return f"{dim!r} is {known} in input {first!r}, but {size} in input {name!r}; they must be equal"
    values = {dim: size for dim, (size, _) in sizes.items()}
    for name, dim, size in dims:
        plain = {symbol: value for symbol, value in values.items() if symbol != dim}
        computed = evaluate_dim(dim, plain)
        if computed is not None and computed >= 0 and computed != size:
            return f"{dim!r} must be {computed} in input {name!r}, but is {size}"
    return None


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """By name, with numbers in their order: input_2 before input_10."""
    return sorted(paths, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.name)])


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


__all__ = ["MASK_NAMES", "Sample", "attention_mask_of", "check_sample", "load_samples"]
