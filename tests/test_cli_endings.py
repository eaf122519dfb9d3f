"""How the command line ends when something is wrong with the program, its output, or the names that it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import onnx
import pytest
import small_models

from onnx_attnq.cli import main
from onnx_attnq.version import ISSUES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_models.write(small_models.attention(), tmp_path / "model.onnx")


def command(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | options.pop("env", {})  # type: ignore[arg-type]
    call = [sys.executable, "-m", "onnx_attnq", *map(str, arguments)]
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False, "env": environment}
    return subprocess.run(call, **(defaults | options))


# Faults of the program


def fail(error: BaseException) -> object:
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ZeroDivisionError("a\nb"), 70, f"this is a fault of the program: ZeroDivisionError: a\\nb; please report it with what --debug prints at {ISSUES}"),
        (RecursionError(), 70, f"this is a fault of the program: RecursionError: ; please report it with what --debug prints at {ISSUES}"),
        (MemoryError(), 2, "error: there is not enough memory"),
        (PermissionError(13, "Permission denied", "some/file"), 2, "error: some/file: Permission denied"),
    ],
)  # fmt: skip
def test_what_nobody_expected_is_one_line(
    error: BaseException,
    code: int,
    line: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("onnx_attnq.model.load", fail(error))
    monkeypatch.setattr("onnx_attnq.cli.fingerprint.load", fail(error), raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["fingerprint", str(model)])
    assert stop.value.code == code
    assert capsys.readouterr().err == f"onnx-attnq: {line}\n"


def test_debug_prints_where(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("onnx_attnq.model.load", fail(ZeroDivisionError("here")))
    with pytest.raises(SystemExit) as stop:
        main(["fingerprint", "--debug", str(model)])
    assert stop.value.code == 70
    *traceback, line = capsys.readouterr().err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert "ZeroDivisionError: here" in traceback
    assert line == f"onnx-attnq: this is a fault of the program: ZeroDivisionError: here; please report it at {ISSUES}"


def test_the_address_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Issues"] == ISSUES


# Output that fails


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has none")
@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json", "-"]], ids=" ".join)
def test_a_full_disk_behind_standard_output(arguments: list[str], model: Path) -> None:
    with open("/dev/full", "w") as full:
        done = command(arguments[0], model, *arguments[1:], stdout=full)
        assert (done.returncode, done.stderr) == (2, "onnx-attnq: error: standard output: No space left on device\n")
        done = command("inspect", model.with_name("missing"), stdout=full, stderr=full)
        assert done.returncode == 2


def test_nobody_reads_the_output(model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for arguments in (["inspect", model], ["canonical", model], ["verify", model, model]):
            done = command(*arguments, stdout=writing)
            assert (done.returncode, done.stderr) == (141, "")
    finally:
        os.close(writing)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, model: Path, tmp_path: Path) -> None:
    """No file that is opened later takes the place of a stream: nothing but the model is in the model."""
    words = [sys.executable, "-m", "onnx_attnq", str(model), "-vv", "-o", str(tmp_path / "out.onnx")]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fault" not in done.stderr
    onnx.checker.check_model(tmp_path / "out.onnx")


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    proto = small_models.attention()
    proto.graph.node[3].name = "\u03b1ttention"
    onnx.save(proto, tmp_path / "mödel.onnx")
    done = command("inspect", tmp_path / "mödel.onnx", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03b1ttention" in done.stdout
    assert "m\\xf6del.onnx" in done.stdout


# Names


FAKE = "x\nVerified\r\n\x1b[32mVerified\x1b[0m\u202e\x9b2K"


def faked(tmp_path: Path, *, attention: bool = True) -> Path:
    """A model whose every name pretends to be an output of the program."""
    proto = small_models.attention()
    if not attention:
        proto.graph.node[3].op_type = "Sigmoid"
        del proto.graph.node[3].attribute[:]
        proto.graph.node.append(onnx.helper.make_node("Softmax", ["x"], ["unused"]))
    names = {name: f"{name}{FAKE}" for node in proto.graph.node for name in (*node.input, *node.output)}
    for node in proto.graph.node:
        node.name = f"{node.op_type}{FAKE}"
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = names[value.name]
    proto.graph.name = FAKE
    return small_models.write(proto, tmp_path / "m.onnx")


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["compress", "--dry-run"],
        ["compress", "--no-verify"],
        ["compress", "--max-deviation", "max_abs=0"],
        ["canonical"],
        ["fingerprint"],
        ["diff", "DIFFERENT"],
        ["verify", "DIFFERENT"],
        ["analyze", "--no-report"],
    ],
    ids=" ".join,
)
def test_no_name_becomes_a_line_or_moves_the_cursor(
    arguments: list[str], attention: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = faked(tmp_path, attention=attention)
    other = onnx.load(path)
    other.graph.initializer[1].raw_data = bytes(len(other.graph.initializer[1].raw_data))
    onnx.save(other, tmp_path / "other.onnx")
    options = [str(tmp_path / "other.onnx") if option == "DIFFERENT" else option for option in arguments[1:]]
    with pytest.raises(SystemExit) as stop:
        main([arguments[0], str(path), *options])
    assert stop.value.code != 70
    printed = "".join(capsys.readouterr())
    assert not [line for line in printed.split("\n") if line.strip().startswith("Verified")]
    assert all(character.isprintable() or character == "\n" for character in printed), printed


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing_behind(number: int, model: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    code = (
        "import sys, time, onnx_attnq.model.files as files\n"
        "from onnx_attnq.cli import main\n"
        "def wait(*_):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "files._move_external = wait\n"
        "files.INLINE_LIMIT = 0\n"
        "main(sys.argv[1:])\n"
    )
    call = [sys.executable, "-c", code, "compress", str(model), "--no-verify"]
    # A shell lets the jobs that it starts in the background, and their children, ignore signals.
    with subprocess.Popen(
        call,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "waiting\n"
        assert sorted(os.listdir(tmp_path)) != before  # the temporary file is there
        running.send_signal(number)
        started = time.monotonic()
        assert running.wait(30) == 128 + number
        assert time.monotonic() - started < 20
        word = "interrupted" if number == signal.SIGINT else "terminated"
        assert running.stderr.read().strip("\n") == f"onnx-attnq: {word}"  # click begins a new line after ^C
    assert sorted(os.listdir(tmp_path)) == before
