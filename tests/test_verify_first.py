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
from onnx_attnq.model import load
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


def test_the_data_file_of_an_earlier_output_goes_with_it(tmp_path: Path) -> None:
    model = small_models.write_external(small_models.attention(), tmp_path / "a.onnx")
    output, data = tmp_path / "b.onnx", tmp_path / "b.onnx.data"
    compress(model, output, external_data="copy")
    assert data.exists()
    assert compress(model, output, external_data="keep", verification=TOO_TIGHT).failed
    assert data.exists()  # what was there stays, all of it
    compress(model, output, external_data="keep")
    assert not data.exists()
    load(output)


@pytest.mark.parametrize("external_data", ["copy", "keep"])
def test_a_file_of_the_same_name_that_no_earlier_output_had_stays(tmp_path: Path, external_data) -> None:  # type: ignore[no-untyped-def]
    model = small_models.write(small_models.attention(), tmp_path / "a.onnx")
    data = tmp_path / "b.onnx.data"
    data.write_text("of somebody else")
    for _ in range(2):
        compress(model, tmp_path / "b.onnx", external_data=external_data, verification=None)
    assert data.read_text() == "of somebody else"
