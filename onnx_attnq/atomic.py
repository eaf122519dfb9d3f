"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onnx_attnq.errors import CannotWrite


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends, and vanishes when the block fails.

    The temporary file lies in the same folder, because a rename is only atomic within one file
    system. What ``path`` was before, also a symbolic link, is replaced and never written through.

    Raises:
        CannotWrite: The folder does not exist or is not writable, the disk is full, or ``path`` is a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a.txt") as file:
    ...         _ = file.write(b"whole")
    ...     os.listdir(folder)
    ['a.txt']
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: its files are private (0600), and a model is as readable as the umask says.
        file = open(temporary, "xb")  # noqa: SIM115 -- closed below, where errors mean something else
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise CannotWrite(f"cannot write {target}: {getattr(error, 'strerror', error)}") from error
    try:
        with file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise CannotWrite(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # when it was renamed
            temporary.unlink()


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which takes the name ``path`` when the block ends, and vanishes when the block fails.

    Raises:
        CannotWrite: ``path`` is a file or a folder with something in it, or its own folder is not there or not
            writable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with new_folder(f"{folder}/a") as made:
    ...         _ = (made / "b.txt").write_text("whole")
    ...     os.listdir(folder), os.listdir(f"{folder}/a")
    (['a'], ['b.txt'])
    """
    target = Path(os.path.abspath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if target.is_dir() and any(target.iterdir()):
            raise CannotWrite(f"{path} is not empty; give a new folder")
        if target.exists() and not target.is_dir():
            raise CannotWrite(f"{path} is a file, not a folder")
        temporary.mkdir()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise CannotWrite(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error
    try:
        yield temporary
        try:
            if target.is_dir():  # an empty one; not every system renames over it
                target.rmdir()
            temporary.rename(target)
        except OSError as error:
            raise CannotWrite(f"cannot write {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


__all__ = ["new_folder", "replacing"]
