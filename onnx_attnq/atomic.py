"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

Every file that the package writes goes through here, so this is also where it is decided what may be replaced: a
regular file or a link to one, never a folder, a device, a pipe or a socket.

A temporary name is ``.NAME.XXXXXXXX.tmp`` beside the file, and is locked as long as its writer lives. Who writes the
same name next removes those that are locked no more: their writers were killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from onnx_attnq.errors import CannotWrite

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

_ASIDE: Final = ".aside"
"""Folder within a staged one, for the files that were there before."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends, and vanishes when the block fails.

    The temporary file lies in the same folder, because a rename is only atomic within one file
    system. A symbolic link at ``path`` is replaced and never written through.

    Raises:
        CannotWrite: The folder does not exist or is not writable, the disk is full, or ``path`` is a folder, a device,
            a pipe or a socket.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/a.txt") as file:
    ...         _ = file.write(b"whole")
    ...     os.listdir(folder)
    ['a.txt']
    """
    target = Path(path)
    check_replaceable(target)
    with write_errors(target):
        temporary = _temporary(target)
        # Not tempfile: its files are private (0600), and a model is as readable as the umask says.
        file = open(temporary, "xb")  # noqa: SIM115 -- closed below, where errors mean something else
    try:
        with write_errors(target), _locked(file.fileno()):
            with file:
                yield file
            os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):  # when it was renamed
            temporary.unlink()


@contextlib.contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder beside ``path``, whose files take their places beside ``path`` when the block ends: all or none.

    For files that refer to each other: a model that is written to ``folder / path.name`` and has its data beside it
    works in the folder as it will outside, so that it can be tried first. When the block fails, the folder vanishes and
    what was there stays. The file that is called like ``path`` comes last and its predecessor goes first, so that at no
    time, and also after a crash, a new data file lies beside an old model.

    Raises:
        CannotWrite: As for `replacing`, for ``path`` or another file of the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with staged(f"{folder}/a.onnx") as made:
    ...         _ = (made / "a.onnx.data").write_text("weights")
    ...         _ = (made / "a.onnx").write_text("model")
    ...     sorted(os.listdir(folder))
    ['a.onnx', 'a.onnx.data']
    """
    target = Path(path)
    check_replaceable(target)
    with write_errors(target):
        temporary = _temporary(target)
        temporary.mkdir()
    try:
        with _locked(temporary):
            yield temporary
            names = sorted((entry.name for entry in temporary.iterdir()), key=lambda name: (name == target.name, name))
            for name in names:
                check_replaceable(target.with_name(name))
            with write_errors(target):
                _put_in_place(temporary, target, names)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    with write_errors(path):
        if target.is_dir() and any(target.iterdir()):
            raise CannotWrite(f"{path} is not empty; give a new folder")
        if target.exists() and not target.is_dir():
            raise CannotWrite(f"{path} is a file, not a folder")
        temporary = _temporary(target)
        temporary.mkdir()
    try:
        with _locked(temporary):
            yield temporary
            with write_errors(path):
                if target.is_dir():  # an empty one; not every system renames over it
                    target.rmdir()
                temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Make sure that a file can take the name without harm; whether the folder is writable shows later.

    Raises:
        CannotWrite: There is a folder, a device, a pipe or a socket, or a link to one.

    >>> check_replaceable("/dev/null")
    Traceback (most recent call last):
    onnx_attnq.errors.CannotWrite: cannot write /dev/null: it is a device, which is never replaced
    """
    target = Path(path)
    with write_errors(target):
        parts = Path(os.path.realpath(target.parent)).parts
        if parts[:2] in _SYSTEM and parts[:3] != ("/", "dev", "shm"):
            raise CannotWrite(f"cannot write {target}: it is a device, {_NEVER}")
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:  # also a link that leads nowhere
            return
    if not stat.S_ISREG(mode):
        raise CannotWrite(f"cannot write {target}: it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, {_NEVER}")


_NEVER: Final = "which is never replaced"

_SYSTEM: Final = (("/", "dev"), ("/", "proc"), ("/", "sys"))
"""Folders of devices, where nothing belongs: /dev/stdout links to a regular file when output is redirected to one."""

_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _put_in_place(temporary: Path, target: Path, names: Sequence[str]) -> None:
    """Rename the files of a staged folder, the last name last; what was there is moved aside first, and back on error.

    The first to go is the predecessor of the last: between the renames, ``target`` does not exist.
    """
    aside = temporary / _ASIDE
    aside.mkdir()
    placed: list[str] = []
    try:
        for name in reversed(names):
            if os.path.lexists(target.with_name(name)):
                os.replace(target.with_name(name), aside / name)
        for name in names:
            os.replace(temporary / name, target.with_name(name))
            placed.append(name)
    except BaseException:  # also when interrupted
        for name in reversed(placed):
            os.replace(target.with_name(name), temporary / name)
        _put_back(aside, target)
        raise


def _put_back(aside: Path, target: Path) -> None:
    for file in sorted(aside.iterdir(), key=lambda file: file.name == target.name):
        os.replace(file, target.with_name(file.name))


def _temporary(target: Path) -> Path:
    """A free temporary name for ``target``; removes what writers that were killed have left of theirs."""
    for left in target.parent.glob(f".{_literal(target.name)}.{'[0-9a-f]' * 8}.tmp"):
        if not _is_alive(left):
            if not os.path.lexists(target) and (left / _ASIDE).is_dir():  # killed between two renames
                _put_back(left / _ASIDE, target)
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _literal(name: str) -> str:
    """The name as a pattern that matches nothing else."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _is_alive(left: Path) -> bool:
    """Whether the writer of a temporary file or folder is still there, or may be."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _locked(opened: Path | int) -> Iterator[None]:
    """Lock a folder or an open file until the block ends or the process does, also when the file is closed before."""
    if fcntl is None:
        yield
        return
    descriptor = os.dup(opened) if isinstance(opened, int) else os.open(opened, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: there, nothing is swept
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make errors of the system in the block one line that names the file.

    Raises:
        CannotWrite: In place of an OSError, or of a ValueError about a null character in the path.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null character in the path
        if "\0" not in str(path):
            raise
        raise CannotWrite(f"cannot write {path}: {error}") from error


__all__ = ["check_replaceable", "new_folder", "replacing", "staged", "write_errors"]
