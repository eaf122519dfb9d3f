"""Tensors whose bytes lie beside the model file: where they may lie, and that they are there.

A path in a model file comes from whoever made the file. It must not make this program read, or its
output point to, anything outside of the model's folder: CVE-2026-27489 and the reports before it
(onnx#3991, #6959, #7717) are about absolute paths, "..", symbolic links and hard links.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final, TypeAlias

import onnx

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model.wellformed import tensor_protos, tensor_size

DataPlace: TypeAlias = tuple[str, int, int]
"""A piece of a data file: location relative to the model's folder, offset and length in bytes."""


_CONTENTS: Final = (
    "raw_data",
    "float_data",
    "double_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "external_data",
)


def resolve_references(proto: onnx.ModelProto, path: Path) -> Path:
    """Check every reference of a model file to a data file, and make it canonical.

    Afterwards a reference is location, offset and length, and the location has no symbolic links and
    is relative to the folder that is returned. That is the folder of ``path``, or of the file that
    ``path`` links to: the cache of the Hugging Face hub has links to a model and its data side by side.

    A data file with more than one hard link is refused, as onnx and onnx_ir refuse it: the second
    name may be a secret outside of the folder.

    Raises:
        InvalidModel: With the reason, without the model's name.
    """
    external = [tensor for tensor in tensor_protos(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    references = [_declared(tensor) for tensor in external]
    parent = Path(os.path.realpath(path.parent))
    # Once for each file, not for each tensor: a model has hundreds of tensors in one.
    locations = dict.fromkeys(location for location, _, _ in references)
    files = {location: Path(os.path.realpath(parent / location)) for location in locations}
    folder = parent
    for location, file in files.items():
        if not file.is_relative_to(folder):
            folder = Path(os.path.realpath(path)).parent
            if not file.is_relative_to(folder):
                raise InvalidModel(f"external data {location!r} is a symbolic link out of the model's folder")
    sizes = {location: _size(location, file) for location, file in files.items()}
    canonical = {
        location: file.relative_to(folder).as_posix() for location, file in files.items() if file.is_relative_to(folder)
    }
    for tensor, (location, offset, length) in zip(external, references, strict=True):
        if offset + length > sizes[location]:
            raise InvalidModel(
                f"external data {location!r} is too short: tensor {tensor.name!r} needs bytes {offset} to "
                f"{offset + length}, the file has {sizes[location]}"
            )
        if location not in canonical:
            raise InvalidModel("external data lies partly behind symbolic links and partly not")
        set_reference(tensor, (canonical[location], offset, length))
    return folder


def set_reference(tensor: onnx.TensorProto, reference: DataPlace) -> None:
    """Make the tensor external, at the reference; its own data is removed."""
    for field in _CONTENTS:
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in zip(("location", "offset", "length"), reference, strict=True):
        tensor.external_data.add(key=key, value=str(value))


def get_reference(tensor: onnx.TensorProto) -> DataPlace:
    """Where the data of an external tensor is, of a model whose references were checked."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries.get("length", tensor_size(tensor)))


def _declared(tensor: onnx.TensorProto) -> DataPlace:
    """The reference in a file that has not been checked."""
    name = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or "\0" in location:
        raise InvalidModel(f"{name} says that its data is external, but not where")
    if _leads_out(location):
        raise InvalidModel(f"{name} has external data outside of the model's folder: {location!r}")
    size = tensor_size(tensor)
    offset, length = (
        _natural(entries.get(key, default), f"{name}: {key} of the external data")
        for key, default in (("offset", "0"), ("length", str(size)))
    )
    if length != size:
        raise InvalidModel(f"{name} of shape {list(tensor.dims)} needs {size} bytes, but refers to {length}")
    return location, offset, length


@functools.lru_cache(maxsize=16)  # a model has hundreds of tensors in one file
def _leads_out(location: str) -> bool:
    """Both kinds of path on every system: what is refused must not depend on where the model is read."""
    return any(
        flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts
        for flavour in (PurePosixPath(location), PureWindowsPath(location))
    )


def _natural(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModel(f"{what} is not a whole number: {text[:20]!r}")
    return int(text)


def _size(location: str, file: Path) -> int:
    try:
        status = file.stat()
    except OSError as error:
        raise InvalidModel(f"external data {location!r} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel(f"external data {location!r} is not a file")
    if status.st_nlink > 1:
        raise InvalidModel(
            f"external data {location!r} has a second hard link, which may lie outside of the model's folder; "
            "if it is yours, replace it by a copy"
        )
    return status.st_size


__all__ = ["DataPlace", "get_reference", "resolve_references", "set_reference"]
