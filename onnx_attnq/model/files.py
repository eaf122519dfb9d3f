"""Models in memory and on disk: load, save, and what identifies a file.

onnx_ir reads external data only when it is asked for, so a model of several gigabytes loads in
milliseconds. A loaded model refers to the files that it came from; nothing here writes to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeAlias, cast

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from onnx_attnq.atomic import check_replaceable, staged, write_errors
from onnx_attnq.errors import CannotWrite, InvalidModel, first_line
from onnx_attnq.model.external_data import DataPlace, get_reference, resolve_references, set_reference
from onnx_attnq.model.old_opsets import converted, is_old
from onnx_attnq.model.weights_in_file import (
    LARGE_FILE,
    Place,
    WeightInFile,
    bare_proto,
    mark_left_out,
    without_weights,
    write_proto,
)
from onnx_attnq.model.wellformed import check_model, check_raw_size, graph_protos, tensor_protos, tensor_size

ExternalData: TypeAlias = Literal["copy", "keep"]
"""``copy``: the output has its own data file. ``keep``: it refers to the data files of the input."""

PROTOBUF_LIMIT: Final = 2**31 - 1
"""Bytes that one protobuf file can have."""

INLINE_LIMIT: Final = PROTOBUF_LIMIT - 2**27
"""Bytes of tensors that a model file may hold; the rest is for nodes, names and functions."""

SPILL_SIZE: Final = 1024
"""Initializers of at least so many bytes leave a model file that has become too large."""

ALIGNMENT: Final = 64
"""Of tensors in a data file: a cache line, more than any element needs when the file is mapped."""

_LOG: Final = logging.getLogger(__name__)

_SOURCE: Final = "onnx_attnq.source"


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model file; external data, and the weights of a large file, stay on disk until they are used.

    Nodes are put in topological order if they are not; nothing else changes.

    Raises:
        InvalidModel: The file is missing, not an ONNX model, truncated, too deep, of an unsupported opset, or its
            external data is missing, too short, or outside of its folder. One line that begins with the path.
    """
    file = Path(path)
    proto, places = _parse(file)
    try:
        check_model(proto)
        if places and is_old(proto):  # which onnx's converter takes with its weights only
            proto, places = _parse_whole(file), {}
        _check_places(proto, places)
        mark_left_out(proto, places, external=False)
        proto = converted(proto)
        folder = resolve_references(proto, file)
    except InvalidModel as error:
        raise InvalidModel(f"{file}: {error}") from None
    try:
        model = ir.from_proto(proto)
        for name, place in places.items():
            weight = model.graph.initializers[name]
            assert isinstance(weight.const_value, ir.serde.TensorProtoTensor)
            weight.const_value = WeightInFile(weight.const_value.raw, place)
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except Exception as error:  # onnx_ir raises exceptions of any type for a damaged file
        raise InvalidModel(f"{file}: onnx_ir cannot read it: {_innermost(error)}") from error
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = str(folder)
    model.graph.meta[_SOURCE] = file.resolve()  # a clone keeps what is on the graph, and drops what is on the model
    _LOG.info("read %s: opset %d, %d nodes", file, opset(model), len(model.graph))
    return model


def recheck(model: ir.Model) -> None:
    """Make sure that a model which was changed in memory could be saved and loaded again, with the same data files.

    Raises:
        InvalidModel: As by `load`, without the file's name; or the nodes are not in topological order.
    """
    proto, held = _to_proto(model)
    mark_left_out(proto, held, external=True)
    check_model(proto)
    mark_left_out(proto, held, external=False)
    folders = {os.fspath(tensor.base_dir) for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    if len(folders) > 1:
        raise InvalidModel("its external data is not in the folder of the model")
    for folder in folders:
        resolve_references(proto, Path(folder) / "model")
    try:
        again = ir.from_proto(proto)
        again.graph.sort()
    except Exception as error:
        raise InvalidModel(f"onnx_ir cannot read it: {_innermost(error)}") from error
    if [_outputs(node) for node in again.graph] != [_outputs(node) for node in model.graph]:
        raise InvalidModel("its nodes are not in topological order")


def save(model: ir.Model, path: str | os.PathLike[str], external_data: ExternalData = "copy") -> None:
    """Write a model; the model in memory, and the files that it was loaded from, stay as they are.

    Tensors that are in memory stay in the model file as long as it can hold them. External tensors
    are copied, a few megabytes at a time, to ``path`` + ".data"; or, with ``keep``, the output refers to
    the files where they are, for which it must be in their folder. There are no hard links: onnx
    refuses a data file that has one, so a link would spoil the input, too.

    Equal models give equal bytes. All files appear when they are complete.

    Raises:
        CannotWrite: ``path`` is a file of the input; the folder is missing, full or not writable; or ``keep`` is
            asked for in another folder.
        InvalidModel: The model cannot be serialized.
    """
    target = Path(path)
    check_output(model, target)
    data = data_path(target)
    every = tuple(tensors(model))
    external = {_reference(tensor): tensor for tensor in every if isinstance(tensor, ir.ExternalTensor)}
    inline_size = sum(tensor.nbytes for tensor in every if _is_inline(tensor))
    if external_data == "keep":
        _require_folder(external.values(), target)
        external = {}
    proto, held = _to_proto(model)
    with without_old_data(target), staged(target) as folder:
        if external or inline_size > INLINE_LIMIT:
            with write_errors(data), open(folder / data.name, "xb") as data_file:
                _move_external(proto, external, data_file, data.name)
                if inline_size > INLINE_LIMIT:
                    _move_inline(proto, held, data_file, data.name)
        try:
            with write_errors(target), open(folder / target.name, "xb") as file:
                size = write_proto(proto, held, file)
        except (EncodeError, ValueError) as error:
            raise InvalidModel(f"{target}: the model is too large for one protobuf file: {error}") from None
    _LOG.info("wrote %s, %d bytes%s", target, size, f", and {data.name}" if external else "")


def check_output(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Make sure that `save` may write there, before any work is done for it.

    Raises:
        CannotWrite: ``path``, or the data file beside it, is a file of the input or something that is no file.
    """
    target = Path(path)
    if not target.name:
        raise CannotWrite(f"{str(path)!r} is not the name of a file")
    existing = [file for file in input_files(model) if file.exists()]
    for output in (target, data_path(target)):
        check_replaceable(output)
        if output.exists() and any(output.samefile(file) for file in existing):
            raise CannotWrite(f"{output} is a file of the input model, which is never overwritten; name another output")


def data_path(path: Path) -> Path:
    """Where `save` puts external data that it copies."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def without_old_data(target: Path) -> Iterator[None]:
    """Removes the data file that `save` wrote beside an earlier model, if the one that the block puts there has none.

    What lies under that name and is not the earlier model's stays.
    """
    had = _has_own_data(target)
    yield
    if had and not _has_own_data(target):
        with write_errors(data_path(target)):
            data_path(target).unlink()


def _has_own_data(path: Path) -> bool:
    """Whether there is a model with a data file of the name that `save` gives it."""
    data = data_path(path)
    if not (path.is_file() and data.is_file()):
        return False
    try:
        proto, _ = _parse(path)
    except InvalidModel:
        return False
    external = (tensor for tensor in tensor_protos(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    return any(entry.key == "location" and entry.value == data.name for t in external for entry in t.external_data)


def input_files(model: ir.Model) -> set[Path]:
    """The file that a model was loaded from, and the data files that it refers to."""
    data = {Path(tensor.path) for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    return data if (source := source_of(model)) is None else {source, *data}


def source_of(model: ir.Model) -> Path | None:
    """The file that a model, or what it was copied from, was loaded from; None for one that was made in memory."""
    return cast("Path | None", model.graph.meta.get(_SOURCE))


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers and attributes, in subgraphs and functions, too."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in (root, *root.subgraphs()):
            yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in root.all_nodes():
            yield from _attribute_tensors(node.attributes.values())
    for function in model.functions.values():
        yield from _attribute_tensors(function.attributes.values())


def size_on_disk(model: ir.Model) -> int:
    """Bytes of the file that a model was loaded from, and of the data files that it refers to."""
    return sum(file.stat().st_size for file in input_files(model))


def opset(model: ir.Model) -> int:
    """The version of the ai.onnx operator set that the main graph uses."""
    imports = model.graph.opset_imports
    return imports[""] if "" in imports else imports["ai.onnx"]


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in 64 hexadecimal digits; external data is not part of it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(file: Path) -> tuple[onnx.ModelProto, dict[str, Place]]:
    """A model, and where the weights are that were not read; these say that they are external."""
    try:
        large = file.is_file() and LARGE_FILE <= file.stat().st_size <= PROTOBUF_LIMIT
        left_out = without_weights(file) if large else None
    except (OSError, ValueError):  # which reading all of it says better
        left_out = None
    if left_out is None:
        return _parse_whole(file), {}
    try:
        proto = onnx.ModelProto.FromString(left_out[0])
    except (DecodeError, RecursionError):
        return _parse_whole(file), {}
    return proto, {proto.graph.initializer[index].name: place for index, place in left_out[1].items()}


def _check_places(proto: onnx.ModelProto, places: Mapping[str, Place]) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name in places:
            check_raw_size(tensor, places[tensor.name].nbytes)


def _parse_whole(file: Path) -> onnx.ModelProto:
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModel(f"{file} is a folder, not a model file")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModel(f"{file} is not a regular file")
        if status.st_size > PROTOBUF_LIMIT:
            raise InvalidModel(
                f"{file} is larger than 2 GiB, which no ONNX file can be: weights belong in external data"
            )
        content = file.read_bytes()
    except FileNotFoundError:
        raise InvalidModel(f"{file} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InvalidModel(f"{file} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not content:
        raise InvalidModel(f"{file} is empty")
    if content.startswith(b"version https://git-lfs"):
        raise InvalidModel(f"{file} is a Git LFS pointer, not the model itself: fetch it with `git lfs pull`")
    try:
        return onnx.ModelProto.FromString(content)
    except (DecodeError, RecursionError):
        raise InvalidModel(f"{file} is not an ONNX file, or is truncated or nested too deeply") from None


def _outputs(node: ir.Node) -> list[str | None]:
    return [value.name or None for value in node.outputs]


def _to_proto(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, WeightInFile]]:
    """A model without the weights that are in its file, and these by name."""
    try:
        return bare_proto(model)
    except ir.serde.SerdeError as error:
        raise InvalidModel(f"onnx_ir cannot serialize the model: {_innermost(error)}") from error


def _innermost(error: BaseException) -> str:
    """The first line of the cause; onnx_ir repeats whole nodes in the messages around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _attribute_tensors(attributes: Iterable[ir.Attr]) -> Iterator[ir.TensorProtocol]:
    for attribute in attributes:
        if attribute.is_ref() or attribute.value is None:
            continue
        # Not as_tensor: its check against a protocol takes longer than all the rest in a graph of many constants.
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.value
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from attribute.value


def _reference(tensor: ir.ExternalTensor) -> DataPlace:
    return (os.fspath(tensor.location), tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length)


def _is_inline(tensor: ir.TensorProtocol) -> bool:
    return not isinstance(tensor, ir.ExternalTensor | ir.StringTensor)


def _require_folder(external: Iterable[ir.ExternalTensor], target: Path) -> None:
    folder = os.path.realpath(target.parent)
    for data_folder in {os.path.realpath(tensor.base_dir) for tensor in external}:
        if data_folder != folder:
            raise CannotWrite(
                f"{target}: external data can only be kept where it is, in {data_folder}; "
                "write the model there, or copy the data"
            )


def _move_external(
    proto: onnx.ModelProto, external: Mapping[DataPlace, ir.ExternalTensor], file: BinaryIO, location: str
) -> None:
    """Copy external tensors to a data file; tensors that shared their bytes still do."""
    placed: dict[DataPlace, tuple[int, int]] = {}
    for tensor in tensor_protos(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL or not external:
            continue
        reference = get_reference(tensor)
        if reference not in placed:
            placed[reference] = _append(external[reference], file)
        set_reference(tensor, (location, *placed[reference]))


def _move_inline(proto: onnx.ModelProto, held: dict[str, WeightInFile], file: BinaryIO, location: str) -> None:
    for tensor in proto.graph.initializer:
        if tensor.name in held:
            set_reference(tensor, (location, *_append(held.pop(tensor.name), file)))
    for graph in graph_protos(proto):
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
                continue
            if tensor_size(tensor) >= SPILL_SIZE:
                set_reference(tensor, (location, *_append(ir.from_proto(tensor), file)))


def _append(tensor: ir.TensorProtocol, file: BinaryIO) -> tuple[int, int]:
    """Write a tensor at the next aligned offset; offset and length in bytes."""
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    file.seek(offset)
    try:
        if isinstance(tensor, ir.ExternalTensor | WeightInFile):
            tensor.tofile(file)  # a few megabytes at a time
        else:
            file.write(tensor.tobytes())
    except FileNotFoundError as error:
        raise InvalidModel(f"external data {error.filename!r} has vanished since the model was loaded") from None
    except ValueError as error:  # onnx_ir looks again whether the file is still inside of the folder
        raise InvalidModel(f"external data of tensor {tensor.name!r}: {error}") from None
    if file.tell() != offset + tensor.nbytes:
        raise InvalidModel(f"external data of tensor {tensor.name!r} has become shorter since the model was loaded")
    return offset, tensor.nbytes


__all__ = [
    "ExternalData",
    "check_output",
    "data_path",
    "input_files",
    "load",
    "opset",
    "recheck",
    "save",
    "sha256",
    "size_on_disk",
    "source_of",
    "tensors",
    "without_old_data",
]
