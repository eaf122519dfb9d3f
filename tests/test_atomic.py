"""Files that appear whole or not at all, whatever happens between the first byte and the last rename."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_attnq.atomic import check_replaceable, new_folder, replacing, staged
from onnx_attnq.errors import CannotWrite


def listing(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def stage(target: Path, version: str) -> None:
    with staged(target) as folder:
        (folder / f"{target.name}.data").write_text(f"data {version}")
        (folder / target.name).write_text(f"model {version}")


# What may be replaced


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def link_to_a_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


SPECIAL = {
    Path.mkdir: "a folder",
    make_pipe: "a pipe",
    make_socket: "a socket",
    link_to_a_device: "a device",
    link_to_a_folder: "a folder",
}


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
@pytest.mark.parametrize("write", [replacing, staged])
def test_what_is_no_regular_file_stays(
    write: Callable[..., contextlib.AbstractContextManager[object]], make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "x")
    before = os.lstat(tmp_path / "x")
    with pytest.raises(CannotWrite, match=rf"cannot write .*/x: it is {SPECIAL[make]}"), write(tmp_path / "x"):
        pytest.fail("the block must not be entered")
    assert os.lstat(tmp_path / "x") == before


def test_what_is_no_regular_file_stays_also_beside_the_name_that_was_asked_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.data")
    (tmp_path / "m").write_text("model 1")
    with pytest.raises(CannotWrite, match=r"m\.data: it is a pipe"):
        stage(tmp_path / "m", "2")
    assert (tmp_path / "m").read_text() == "model 1"
    assert sorted(os.listdir(tmp_path)) == ["m", "m.data"]


@pytest.mark.parametrize(
    "path", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", "/dev/new", "/sys/new", "/dev/../dev/new"]
)
def test_nothing_is_written_among_the_devices(path: str) -> None:
    # Only asked, not tried: to whom may write there, /dev/stdout is a link to a file when the output is redirected.
    with pytest.raises(CannotWrite, match="it is a device, which is never replaced"):
        check_replaceable(path)


def test_a_regular_file_a_link_to_one_and_nothing_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling", "new"):
        check_replaceable(tmp_path / name)
        with replacing(tmp_path / name) as file:
            file.write(b"new")
    assert listing(tmp_path) == {"file": "old", "link": "new", "dangling": "new", "new": "new"}


# All or nothing


def test_the_previous_file_stays_until_the_block_ends_and_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            file.flush()
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert listing(tmp_path) == {"a": "old"}


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    # A temporary name that is not random would be taken, or swept, by the second.
    with replacing(tmp_path / "a") as first:
        first.write(b"first")
        with replacing(tmp_path / "a") as second:
            second.write(b"second")
        assert (tmp_path / "a").read_text() == "second"
    assert listing(tmp_path) == {"a": "first"}
    with staged(tmp_path / "b") as outer:
        stage(tmp_path / "b", "1")
        (outer / "b").write_text("model 2")
        (outer / "b.data").write_text("data 2")
    assert listing(tmp_path) == {"a": "first", "b": "model 2", "b.data": "data 2"}


def test_the_temporary_name_is_in_the_same_folder(tmp_path: Path) -> None:
    with replacing(tmp_path / "a"):
        (left,) = os.listdir(tmp_path)
        assert left.startswith(".a.")
    with staged(tmp_path / "b") as folder:
        assert folder.parent == tmp_path
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("old", [{}, {"m": "model 1"}, {"m": "model 1", "m.data": "data 1"}], ids=str)
@pytest.mark.parametrize("failing", range(5))
def test_a_new_data_file_never_lies_beside_an_old_model(
    failing: int, old: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in old.items():
        (tmp_path / name).write_text(content)
    rename, count = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        """Fail once, at the given rename; look after each."""
        nonlocal count
        count += 1
        if count == failing + 1:
            raise OSError(5, "Input/output error")
        rename(source, target)
        seen = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
        if "m" in seen and "m.data" in seen:
            assert seen["m"].split()[1] == seen["m.data"].split()[1]

    monkeypatch.setattr(os, "replace", replace)
    renames = len(old) + 2
    if failing < renames:
        with pytest.raises(CannotWrite, match="Input/output error"):
            stage(tmp_path / "m", "2")
        assert listing(tmp_path) == old
    else:
        stage(tmp_path / "m", "2")
        assert listing(tmp_path) == {"m": "model 2", "m.data": "data 2"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Killed


KILLED = """
import os, signal, sys
from onnx_attnq import atomic
what, path, renames = sys.argv[1], sys.argv[2], int(sys.argv[3])
rename, count = os.replace, 0
def replace(source, target):
    global count
    if count == renames:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    rename(source, target)
os.replace = replace
with getattr(atomic, what)(path) as made:
    if what == "replacing":
        made.write(b"half")
        made.flush()
    else:
        (made / "m.data").write_text("data 2")
        (made / "m").write_text("model 2")
    if renames < 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def kill(what: str, path: Path, renames: int = -1) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, what, str(path), str(renames)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    for what in ("replacing", "staged"):
        kill(what, tmp_path / "m")
        assert len(os.listdir(tmp_path)) == 1
        stage(tmp_path / "m", "3")
        assert listing(tmp_path) == {"m": "model 3", "m.data": "data 3"}
        for path in tmp_path.iterdir():
            path.unlink()
    kill("new_folder", tmp_path / "f")
    with new_folder(tmp_path / "f") as made:
        (made / "x").write_text("whole")
    assert listing(tmp_path) == {"f/x": "whole"}


@pytest.mark.parametrize("renames", range(4))
def test_killed_between_two_renames(renames: int, tmp_path: Path) -> None:
    stage(tmp_path / "m", "1")
    kill("staged", tmp_path / "m", renames)
    seen = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert seen.get("m") in (None, "model 1")
    assert seen.get("m") is None or seen["m.data"] == "data 1"
    # The next writer finds the old files, and leaves them when it fails itself.
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "m"):
        raise KeyboardInterrupt
    assert listing(tmp_path) == {"m": "model 1", "m.data": "data 1"}


def test_other_names_are_not_swept(tmp_path: Path) -> None:
    for name in (".a.0123.tmp", ".a.onnx.01234567.tmp", ".ab.01234567.tmp", ".a.0123456x.tmp", "a.01234567.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".a.89abcdef.tmp").symlink_to("a.01234567.tmp")
    before = set(os.listdir(tmp_path))
    with replacing(tmp_path / "a"):
        pass
    with replacing(tmp_path / "[ab]"):
        pass
    assert set(os.listdir(tmp_path)) == before | {"a", "[ab]"}
