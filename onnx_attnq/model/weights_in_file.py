"""Weights that stay in the model file that they came from: read without them, and written past protobuf.

protobuf needs a file of several hundred megabytes twice to read it and twice to write it. Its wire format is simple
enough to leave out the large `raw_data` of the main graph's initializers when a file is read, and to put them in when
one is written; what is written has the bytes that protobuf would give.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel

LARGE_FILE: Final = 2**24
"""Bytes from which on a model file is read without its weights."""

LARGE_TENSOR: Final = 2**12
"""Bytes of a weight that is left out."""

BLOCK: Final = 2**22
"""Bytes that are copied at a time."""

_TYPES: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8}
    | {ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.INT64}
)
"""Types whose `raw_data` is a numpy array as it is."""

_GRAPH, _INITIALIZER, _DATA_TYPE, _RAW_DATA, _DATA_LOCATION = 7, 5, 2, 9, 14
"""Numbers of fields in ModelProto, GraphProto and TensorProto."""

_PLAIN: Final = frozenset({1, 2, 8, 9, 12, 16})
"""What else a tensor with `raw_data` has: dims, data type, name, doc string, metadata."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types."""


_Content: TypeAlias = mmap.mmap | bytes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor are.

    Attributes:
        file: A model file.
        offset: Of the first byte.
        nbytes: How many.
        stamp: Size and time of the last change of the file when it was looked at.
    """

    file: Path
    offset: int
    nbytes: int
    stamp: tuple[int, int]

    def blocks(self) -> Iterator[bytes]:
        """The bytes, some megabytes at a time.

        Raises:
            InvalidModel: The file is not what it was.
        """
        try:
            with open(self.file, "rb") as file:
                if stamp_of(os.fstat(file.fileno())) != self.stamp:
                    raise InvalidModel(f"{self.file} has changed since the model was loaded")
                file.seek(self.offset)
                left = self.nbytes
                while left:
                    block = file.read(min(left, BLOCK))
                    if not block:
                        raise InvalidModel(f"{self.file} has become shorter since the model was loaded")
                    left -= len(block)
                    yield block
        except OSError as error:
            raise InvalidModel(f"{self.file} cannot be read any more: {error.strerror}") from None


def place_of(tensor: ir.TensorProtocol | None) -> Place | None:
    """Where the bytes of a tensor are; None for one in memory."""
    if isinstance(tensor, WeightInFile):
        return tensor.place
    if isinstance(tensor, ir.ExternalTensor):
        file = Path(tensor.path)
        return Place(file, tensor.offset or 0, tensor.nbytes, stamp_of(file.stat()))
    return None


class WeightInFile(ir.LazyTensor):
    """An initializer whose bytes are read from the model file each time they are asked for."""

    __slots__ = ("place",)

    def __init__(self, proto: onnx.TensorProto, place: Place) -> None:
        super().__init__(
            self._read,
            ir.DataType(proto.data_type),
            ir.Shape(proto.dims),
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props={entry.key: entry.value for entry in proto.metadata_props},
        )
        self.place = place

    def _read(self) -> ir.TensorProtocol:
        content = np.empty(self.place.nbytes, np.uint8)
        at = 0
        for block in self.place.blocks():
            content[at : at + len(block)] = np.frombuffer(block, np.uint8)
            at += len(block)
        array = content.view(self.dtype.numpy()).reshape(self.shape.numpy())
        return ir.Tensor(array, self.dtype, shape=self.shape, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes to a file, some megabytes at a time."""
        for block in self.place.blocks():
            file.write(block)


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """What tells whether a file has changed."""
    return status.st_size, status.st_mtime_ns


def sharing_weights(model: ir.Model, original: ir.Model) -> ir.Model:
    """A copy of a model that has the weights of another one, wherever their bytes are the same.

    What runs both of them maps these bytes once.

    Args:
        model: Not changed.
        original: The model that it was made from.

    Raises:
        InvalidModel: A file is not what it was when the models were loaded.
    """
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        before, after = original.graph.initializers.get(name), value.const_value
        if before is None or before.const_value is None or after is None or after.nbytes < LARGE_TENSOR:
            continue
        if (before.const_value.dtype, before.const_value.shape) != (after.dtype, after.shape):
            continue
        places = place_of(before.const_value), place_of(after)
        if places[0] is not None and places[1] is not None and same_bytes(before.const_value, after):
            value.const_value = before.const_value
    return copy


def same_bytes(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether two tensors of one type and shape are equal; those in files are read some megabytes at a time.

    Raises:
        InvalidModel: A file is not what it was when the models were loaded.
    """
    x, y = place_of(a), place_of(b)
    if x is not None and y is not None:
        return x == y or all(one == other for one, other in zip(x.blocks(), y.blocks(), strict=True))
    if a.dtype == ir.DataType.STRING:
        return bool((a.numpy() == b.numpy()).all())
    return a.tobytes() == b.tobytes()


def without_weights(file: Path) -> tuple[bytes, dict[int, Place]] | None:
    """A serialized model without large weights, and where they are, by the number of the initializer.

    What is left out says that it is external, and not where.

    Returns:
        None where nothing is left out, or the file is not as expected: whatever reads all of it says why.
    """
    with open(file, "rb") as opened:
        stamp = stamp_of(os.fstat(opened.fileno()))
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _split(content, file, stamp)
            except (_Unexpected, IndexError):
                return None


class _Unexpected(Exception):
    """The bytes are no plain protobuf."""


def _split(content: _Content, file: Path, stamp: tuple[int, int]) -> tuple[bytes, dict[int, Place]] | None:
    graphs = [span for number, wire, *span in _fields(content, 0, len(content)) if (number, wire) == (_GRAPH, _BYTES)]
    if len(graphs) != 1:
        return None
    ((before_graph, graph_start, graph_end),) = graphs
    places: dict[int, Place] = {}
    pieces: list[bytes] = []
    copied, count = graph_start, 0
    for number, wire, begin, start, end in _fields(content, graph_start, graph_end):
        if (number, wire) != (_INITIALIZER, _BYTES):
            continue
        raw = _large_raw_data(content, start, end)
        if raw is not None:
            raw_begin, raw_start, raw_end = raw
            places[count] = Place(file, raw_start, raw_end - raw_start, stamp)
            rest = content[start:raw_begin] + content[raw_end:end] + _head(_DATA_LOCATION, _VARINT, 1)
            pieces += [content[copied:begin], _head(_INITIALIZER, _BYTES, len(rest)), rest]
            copied = end
        count += 1
    if not places:
        return None
    pieces.append(content[copied:graph_end])
    graph = b"".join(pieces)
    return b"".join(
        [content[:before_graph], _head(_GRAPH, _BYTES, len(graph)), graph, content[graph_end : len(content)]]
    ), places


def _large_raw_data(content: _Content, start: int, end: int) -> tuple[int, int, int] | None:
    """Where the field begins, its bytes begin, and they end; None for a tensor that stays as it is."""
    found, data_type = None, 0
    for number, wire, begin, at, stop in _fields(content, start, end):
        if number == _RAW_DATA and wire == _BYTES:
            if found is not None:
                raise _Unexpected
            found = begin, at, stop
        elif number == _DATA_TYPE and wire == _VARINT:
            data_type = _varint(content, at, stop)[0]
        elif number not in _PLAIN:
            return None
    if found is None or found[2] - found[1] < LARGE_TENSOR or data_type not in _TYPES:
        return None
    return found


def _fields(content: _Content, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number and wire type of each field of a message, where it begins, and where its value begins and ends."""
    at = start
    while at < end:
        begin = at
        tag, at = _varint(content, at, end)
        wire = tag & 7
        if wire == _VARINT:
            stop = _varint(content, at, end)[1]
        elif wire == _BYTES:
            size, at = _varint(content, at, end)
            stop = at + size
        elif wire in (_FIXED32, _FIXED64):
            stop = at + (4 if wire == _FIXED32 else 8)
        else:
            raise _Unexpected
        if stop > end or tag >> 3 == 0:
            raise _Unexpected
        yield tag >> 3, wire, begin, at, stop
        at = stop


def _varint(content: _Content, at: int, end: int) -> tuple[int, int]:
    """A number, and where what follows begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _Unexpected
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Unexpected


def _head(number: int, wire: int, value: int) -> bytes:
    """A field's tag and number: its value, or how many bytes follow."""
    return _as_varint(number << 3 | wire) + _as_varint(value)


def _as_varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def bare_proto(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, WeightInFile]]:
    """A model as protobuf without the weights that are in its file, and these by name."""
    held = {
        name: (value, value.const_value)
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, WeightInFile)
    }
    try:
        for name, (value, tensor) in held.items():
            value.const_value = ir.ExternalTensor(
                "", None, None, tensor.dtype, shape=tensor.shape, name=name, doc_string=tensor.doc_string
            )
            value.const_value.metadata_props.update(tensor.metadata_props)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in held.values():
            value.const_value = tensor
    mark_left_out(proto, held, external=False)
    return proto, {name: tensor for name, (_, tensor) in held.items()}


def mark_left_out(proto: onnx.ModelProto, names: Collection[str], *, external: bool) -> None:
    """Let the initializers that were left out say that they are external, and not where; or that they are not."""
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL if external else onnx.TensorProto.DEFAULT


def write_proto(proto: onnx.ModelProto, held: Mapping[str, WeightInFile], file: BinaryIO) -> int:
    """Write what protobuf would write if the weights were in the message.

    Args:
        proto: As `bare_proto` gives it; its graph is gone afterwards.
        held: The weights.
        file: Opened for writing.

    Returns:
        The number of bytes.

    Raises:
        EncodeError, ValueError: The message is too large.
    """
    if not held:
        content = proto.SerializeToString(deterministic=True)
        file.write(content)
        return len(content)
    graph = proto.graph
    initializers = [_Initializer(tensor, held.get(tensor.name)) for tensor in graph.initializer]
    graph.ClearField("initializer")
    size = sum(item.size for item in initializers)
    before, after = _around(graph, _INITIALIZER)
    graph_size = len(before) + size + len(after)
    proto.ClearField("graph")
    head, tail = _around(proto, _GRAPH)
    start = head + _head(_GRAPH, _BYTES, graph_size) + before
    file.write(start)
    for item in initializers:
        item.write(file)
    file.write(after + tail)
    return len(start) + size + len(after) + len(tail)


class _Initializer:
    """A field of a graph, to be written."""

    def __init__(self, proto: onnx.TensorProto, weight: WeightInFile | None) -> None:
        self._weight = weight
        if weight is None:
            self._head, self._tail = proto.SerializeToString(deterministic=True), b""
            inside = len(self._head)
        else:
            proto.ClearField("data_location")  # which says that it is not external
            before, self._tail = _around(proto, _RAW_DATA)
            self._head = before + _head(_RAW_DATA, _BYTES, weight.place.nbytes)
            inside = len(self._head) + weight.place.nbytes + len(self._tail)
        self._head = _head(_INITIALIZER, _BYTES, inside) + self._head
        self.size = len(self._head) + len(self._tail) + (0 if weight is None else weight.place.nbytes)

    def write(self, file: BinaryIO) -> None:
        file.write(self._head)
        if self._weight is not None:
            self._weight.tofile(file)
        file.write(self._tail)


def _around(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto, number: int) -> tuple[bytes, bytes]:
    """A message without the field of this number, cut where the field would be: protobuf writes fields in order."""
    whole = message.SerializeToString(deterministic=True)
    cut = 0
    for field, _, _, _, stop in _fields(whole, 0, len(whole)):
        if field > number:
            break
        cut = stop
    return whole[:cut], whole[cut:]


__all__ = [
    "LARGE_FILE",
    "LARGE_TENSOR",
    "Place",
    "WeightInFile",
    "bare_proto",
    "mark_left_out",
    "place_of",
    "same_bytes",
    "sharing_weights",
    "stamp_of",
    "without_weights",
    "write_proto",
]
