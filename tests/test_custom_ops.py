"""Models that need the user's own library: every command that runs them takes it, and a custom op named Mul is not taken for the standard one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from onnx_attnq.cli import main
from onnx_attnq.find import Form
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import preset

MODEL = Path(__file__).parent / "cases" / "custom_domain_mul.onnx"
HERE = Path(__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "libtheirs.so"
    headers = HERE.parent / "custom_ops"
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", f"-I{headers}"]
    subprocess.run([str(COMPILER), *options, str(HERE / "their_ops.cpp"), "-o", str(made)], check=True)
    return made


def attnq(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("scheme", ["identity", "row-log"])
def test_a_model_with_the_users_ops_is_verified(library: Path, scheme: str, tmp_path: Path) -> None:
    run = RunSettings(1, (library,))
    result = compress(MODEL, tmp_path / "o.onnx", scheme=preset(scheme), run=run)
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    assert result.verification.standard.codes.codes > 0
    assert result.verification.rewrite is not None
    (site,) = result.sites.sites
    # Not followed by the search: what the op gives is the query, and no scale is read from it.
    assert site.attention is None or (site.attention.scale, site.attention.query.value.name) == (1.0, "q2")
    assert site.form in (Form.SOFTMAX, Form.ATTENTION)
    random = np.random.default_rng(0)
    sample = {name: random.normal(size=(1, 2, 5, 4)).astype(np.float32) for name in "qkv"}
    expected, actual = (Session(load(p), run).run(sample)["y"] for p in (MODEL, tmp_path / "o.onnx"))
    if scheme == "identity":
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_every_command_that_runs_a_model_takes_the_library(library: Path, tmp_path: Path) -> None:
    given = ("--custom-ops", library)
    out = tmp_path / "o.onnx"
    assert attnq(MODEL, "-o", out, "--samples", 2, *given) == 0
    assert attnq("verify", MODEL, out, "--samples", 2, *given) == 0
    assert attnq("bisect", MODEL, out, "--samples", 2, *given) == 0
    assert attnq("analyze", MODEL, "-o", tmp_path / "study", "--samples", 2, "--no-report", *given) == 0
    assert attnq("revert", out, "-o", tmp_path / "back.onnx") == 0
    assert attnq("diff", MODEL, tmp_path / "back.onnx") == 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_tune_takes_it_into_its_processes(library: Path, jobs: int, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        arrays = {name: random.normal(size=(1, 2, 5, 4)).astype(np.float32) for name in "qkv"}
        np.savez(tmp_path / "data" / f"{number}.npz", **arrays)
    arguments = ("--data", tmp_path / "data", "--samples", 2, "--jobs", jobs, "--max-loss", "20%")
    plan = tmp_path / "plan.json"
    assert attnq("tune", MODEL, "-o", plan, *arguments, "--custom-ops", library) == 0
    assert json.loads(plan.read_text())["sites"]


def test_bench_measures_the_memory_too(library: Path, tmp_path: Path) -> None:
    arguments = ("--tokens", 8, "--repeats", 1, "--json", tmp_path / "t.json", "--custom-ops", library)
    assert attnq("bench", MODEL, *arguments) == 0
    timings = json.loads((tmp_path / "t.json").read_text())["timings"]
    assert timings
    assert all(timing["peak_mb"] > 1.0 for timing in timings)


def test_without_the_library_the_line_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnq(MODEL, "-o", tmp_path / "o.onnx") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "my.dom:Mul" in line
    assert "--custom-ops" in line
    assert not (tmp_path / "o.onnx").exists()


def test_a_library_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.so").write_text("no library")
    for library in (tmp_path / "text.so", tmp_path / "missing.so", tmp_path):
        assert attnq(MODEL, "-o", tmp_path / "o.onnx", "--custom-ops", library) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err
