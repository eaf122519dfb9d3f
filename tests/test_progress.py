"""What long jobs say of themselves: how many runs are done, of how many, and the time left."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import parse
from test_rewrite_proof import TWO

from onnx_attnq.cli import main
from onnx_attnq.inputs import generate_samples, made_up_samples
from onnx_attnq.job import TimingSettings, bench, compress, compress_folder
from onnx_attnq.model import load, save
from onnx_attnq.progress import Examples, Parts
from onnx_attnq.run import Session
from onnx_attnq.study import analyze
from onnx_attnq.verification import Limit, Limits, VerifySettings, bisect, verify


class Seen:
    """The calls of a callback, and how often whole models were run."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.runs = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(parse(TWO), tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    right = Session.run

    def counted(session: Session, *arguments: object) -> object:
        found.runs += "x" in session.inputs  # an attention op alone is no run of the model
        return right(session, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", counted)
    return found


def jobs(model: Path, seen: Seen) -> dict[str, Callable[[], object]]:
    out = model.with_name("b.onnx")
    samples = generate_samples(load(model), 3)
    return {
        "compress": lambda: compress(model, out, progress=seen),
        "compress with data": lambda: compress(model, out, verification=VerifySettings(samples), progress=seen),
        "verify": lambda: verify(load(model), load(out), samples, progress=seen),
        "bench": lambda: bench(model, [out], settings=TimingSettings((4, 8), repeats=2, memory=False), progress=seen),
        "analyze": lambda: analyze(model, samples, "data", progress=seen),
        "made up": lambda: made_up_samples(load(model), 3, progress=seen),
    }


@pytest.mark.parametrize("name", ["compress", "compress with data", "verify", "bench", "analyze", "made up"])
def test_progress_counts_every_run(name: str, model: Path, seen: Seen) -> None:
    compress(model, model.with_name("b.onnx"), verification=None)
    job = jobs(model, seen)[name]
    job()
    done = [done for _, done, _ in seen.steps]
    assert done == sorted(set(done))
    assert seen.steps[-1][1:] == (seen.runs, seen.runs)
    assert all(done <= total for _, done, total in seen.steps)


def test_the_first_step_of_compress_knows_all_runs(model: Path, seen: Seen) -> None:
    compress(model, model.with_name("b.onnx"), progress=seen)
    assert {total for _, _, total in seen.steps} == {seen.runs}


def test_samples_that_were_made_up_run_once_in_each_variant(
    model: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original, the identity scheme, standard ops, and native kernels: a session of each, and a run on each sample."""
    sessions: list[bool] = []
    right = Session.__init__

    def counted(session: Session, *arguments: object, **options: object) -> None:
        right(session, *arguments, **options)  # type: ignore[arg-type]
        sessions.append("x" in session.inputs)

    monkeypatch.setattr(Session, "__init__", counted)
    result = compress(model, model.with_name("b.onnx"), verification=VerifySettings(count=5))
    assert result.verification is not None
    variants = 2 + len(result.verification.runs)
    assert len(result.verification.standard.sites) == 2
    assert sum(sessions) == variants
    assert seen.runs == 5 * variants
    folder = model.parent / "parts"
    folder.mkdir()
    shutil.copy(model, folder)
    seen.runs = 0
    compress_folder(folder, verification=VerifySettings(count=5))
    assert seen.runs == 5 * variants


def test_the_command_verify_runs_made_up_samples_once(
    model: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    compress(model, model.with_name("b.onnx"), verification=None)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(model), str(model.with_name("b.onnx")), "--samples", "3", "--json", "-"])
    assert not stopped.value.code
    found = json.loads(capsys.readouterr().out)
    assert seen.runs == found["samples"] * (2 + len(found["runs"]))


def test_bisect_does_not_run_the_original_where_it_was_run(model: Path, seen: Seen) -> None:
    out = model.with_name("b.onnx")
    compress(model, out, verification=None)
    made = made_up_samples(load(model), 3)
    seen.runs = 0
    bisect(model, out, made.samples)
    whole, seen.runs = seen.runs, 0
    bisect(model, out, made.samples, expected=made.outputs)
    assert seen.runs == whole - 3


@pytest.mark.slow
def test_bench_counts_the_processes_that_memory_takes(model: Path) -> None:
    seen = Seen()
    compress(model, model.with_name("b.onnx"), verification=None)
    timings, _ = bench(model, [model.with_name("b.onnx")], settings=TimingSettings((4,), repeats=1), progress=seen)
    assert sum(what.startswith("memory of") for what, _, _ in seen.steps) == len(timings)
    assert seen.steps[-1][1] == seen.steps[-1][2] == seen.steps[0][2]


@pytest.mark.parametrize("bound", [None, 0.0])
def test_bisect_counts_to_its_end(bound: float | None, model: Path) -> None:
    seen = Seen()
    out = model.with_name("b.onnx")
    compress(model, out, verification=None)
    limits = Limits() if bound is None else Limits((Limit("max_abs", bound),))
    bisect(model, out, generate_samples(load(model), 2), limits=limits, progress=seen)
    done = [done for _, done, _ in seen.steps]
    assert done == sorted(set(done))
    assert seen.steps[-1][1] == seen.steps[-1][2]


def test_a_folder_has_one_count(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a.onnx", "b.onnx", "c.onnx"):
        shutil.copy(model, folder / name)
    seen = Seen()
    compress_folder(folder, progress=seen)
    assert len({total for _, _, total in seen.steps}) == 1
    assert seen.steps[-1][1] == seen.steps[-1][2]
    assert [name for name, _ in itertools.groupby(what.partition(":")[0] for what, _, _ in seen.steps)] == [
        "a.onnx",
        "b.onnx",
        "c.onnx",
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_parts_add_up(sizes: list[int]) -> None:
    seen = Seen()
    parts = Parts(seen)
    for index, size in enumerate(sizes):
        left = sum(sizes[index + 1 :])
        part = parts.next(after=lambda _, left=left: left)
        for step in range(size):
            part("", step + 1, size)
    assert seen.steps == [("", done + 1, sum(sizes)) for done in range(sum(sizes))]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_examples_end_at_the_number_of_their_runs(runs: list[int]) -> None:
    seen = Seen()
    examples = Examples(len(runs), seen)
    for count in runs:
        examples.advance("", count)
    assert seen.steps[-1] == ("", sum(runs), sum(runs))
    assert all(done <= total for _, done, total in seen.steps)


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_a_terminal_shows_runs_and_the_time_left(model: Path) -> None:
    import pty

    host, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "150", "TERM": "xterm"}
    command = [sys.executable, "-m", "onnx_attnq", str(model), "--samples", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(host, 4096):
                shown += chunk
        except OSError:  # how Linux says that the other end was closed
            pass
        process.communicate()
    os.close(host)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"Verifying .* \d+/\d+ runs, [-\d:]+ left: \w+", plain), plain[-500:]
