"""Files that are read, and JSON in them: regular files only, and JSON only as its standard has it.

A pipe or a device in place of a file would block or never end, and a file from elsewhere may be damaged or hostile.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, NoReturn

_INT64_LIMIT = 2**63


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes.

    Raises:
        OSError: It is not there, not readable, or no regular file; ``strerror`` says it in a few words.

    >>> open_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    # Not O_RDONLY alone: opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; errors as of `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_unpacked(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> None:
    """Make sure that what is packed in a file is not out of all proportion to its size.

    Raises:
        ValueError: It is more than `unpacked_limit`.
    """
    if sum(item.file_size for item in archive.infolist()) > unpacked_limit(path):
        raise ValueError("what is packed in it is too large for the size of the file")


def unpacked_limit(path: str | os.PathLike[str]) -> int:
    """The most bytes that a compressed file may become: a gigabyte, or a hundred times its own size."""
    return max(2**30, 100 * os.path.getsize(path))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which may come from anywhere.

    Raises:
        ValueError: It is no JSON; a key is listed twice; a number is not finite, or a whole number has more than 64
            bits; or it is nested too deeply to be meant.

    >>> parse_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse_json("[1e999]")
    Traceback (most recent call last):
    ValueError: the number 1e999 is out of range
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_float=_finite,
            parse_int=_int64,
            parse_constant=_out_of_range,
        )
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def check_fields(data: object, what: str, fields: Mapping[str, type], optional: Collection[str] = ()) -> None:
    """Make sure that a JSON object has the fields, each of its type, and no others.

    Args:
        data: What was read.
        what: What it should be, for messages.
        fields: The types by name; ``object`` for any, ``float`` for any number.
        optional: Fields that may be there, of any type.

    Raises:
        ValueError: With the name of the field that is missing, unknown or of another type.

    >>> check_fields({"format": True}, "the plan", {"format": int})
    Traceback (most recent call last):
    ValueError: 'format' of the plan must be of type int
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a JSON object")
    for name, kind in fields.items():
        if name not in data:
            raise ValueError(f"{what} lacks {name!r}")
        kinds = (int, float) if kind is float else (kind,)
        if kind is not object and type(data[name]) not in kinds:  # not isinstance: a bool is an int to it
            raise ValueError(f"{name!r} of {what} must be of type {kind.__name__}")
    if unknown := sorted(map(str, set(data) - set(fields) - set(optional))):
        raise ValueError(f"{what} has an unknown key {unknown[0]!r}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is listed twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _out_of_range(text)


def _int64(text: str) -> int:
    value = int(text) if len(text) <= 20 else _INT64_LIMIT
    return value if -_INT64_LIMIT <= value < _INT64_LIMIT else _out_of_range(text)


def _out_of_range(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:20]} is out of range")


__all__ = ["check_fields", "check_unpacked", "open_regular", "parse_json", "read_regular", "unpacked_limit"]
