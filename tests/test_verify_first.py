"""A model that failed, could not run or was interrupted is never at the output's path, and what was there stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import small_models
from test_cli import Run, run

from onnx_attnq.errors import InvalidData
from onnx_attnq.job import compress
from onnx_attnq.verification import Limit, Limits, VerifySettings

__all__ = ["run"]  # the fixture of test_cli

TOO_TIGHT = VerifySettings(limits=Limits((Limit("max_abs", 0.0),)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_models.write(small_models.attention(), tmp_path / "a.onnx")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "b.onnx").write_text("what was there")
    return tmp_path / "b.onnx"


def test_a_model_that_failed_is_not_there(model: Path, old: Path) -> None:
    result = compress(model, old, verification=TOO_TIGHT)
    assert result.failed
    assert result.output is None
    assert old.read_text() == "what was there"
    assert {path.name for path in old.parent.iterdir()} == {"a.onnx", "b.onnx"}


def test_a_model_that_failed_may_be_kept_under_another_name(model: Path, old: Path, run: Run) -> None:
    code, out, _ = run(model, "-o", old, "--max-deviation", "max_abs=0", "--keep-failed")
    assert code == 1
    assert f"Wrote {old.with_name('b.failed.onnx')}" in out
    assert old.read_text() == "what was there"


def test_a_model_that_could_not_run_is_not_there(model: Path, old: Path) -> None:
    wrong = ({"x": np.zeros((1, 2, 3, 4), np.float32)},)
    with pytest.raises(InvalidData):
        compress(model, old, verification=VerifySettings(wrong))
    assert old.read_text() == "what was there"
    assert {path.name for path in old.parent.iterdir()} == {"a.onnx", "b.onnx"}


@pytest.mark.parametrize("external_data", ["copy", "keep"])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, old: Path, external_data) -> None:  # type: ignore[no-untyped-def]
    model = small_models.write_external(small_models.attention(), tmp_path / "a.onnx")

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, old, external_data=external_data, progress=interrupt)
    assert old.read_text() == "what was there"
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "b.onnx", "weights.bin"}


@pytest.mark.parametrize("external_data", ["copy", "keep"])
def test_a_model_that_passed_takes_its_place(tmp_path: Path, old: Path, external_data) -> None:  # type: ignore[no-untyped-def]
    model = small_models.write_external(small_models.attention(), tmp_path / "a.onnx")
    result = compress(model, old, external_data=external_data)
    assert result.output == old
    assert old.read_bytes() != b"what was there"
    assert old.with_name("b.onnx.data").exists() == (external_data == "copy")


def test_a_folder_with_a_part_that_failed_is_not_there(model: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    shutil.copy(model, folder / "a.onnx")
    assert run(folder, "--max-deviation", "max_abs=0")[0] == 1
    assert not (tmp_path / "parts.attnq").exists()
    assert run(folder, "--max-deviation", "max_abs=0", "--keep-failed")[0] == 1
    assert not (tmp_path / "parts.attnq").exists()
    assert (tmp_path / "parts.attnq.failed").is_dir()
