"""Files of samples, studies, texts and vocabularies from anywhere: refused in one line, in bounded time and memory."""

from __future__ import annotations

import gzip
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models

from onnx_attnq.cli import main
from onnx_attnq.errors import AttnqError, InvalidData, InvalidPlan
from onnx_attnq.evaluate.data import read_questions, read_texts
from onnx_attnq.inputs import load_samples
from onnx_attnq.model import load
from onnx_attnq.reading import unpacked_limit
from onnx_attnq.report.tables import _text
from onnx_attnq.rewriting import load_plan
from onnx_attnq.study import Study, load_token_labels
from onnx_attnq.tune.journal import Journal, Purpose


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load(small_models.write(small_models.attention(), tmp_path / "model.onnx"))


READERS: dict[str, Callable[[Path], object]] = {
    "texts.txt": read_texts,
    "squad.json": read_questions,
    "plan.json": load_plan,
    "study.npz": Study.load,
    "vocab.json": load_token_labels,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(AttnqError, match=r"\A[^\n]*not a regular file[^\n]*\Z"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["0.npz", "0.npy", "input_0.pb"])
def test_a_pipe_in_a_folder_of_samples_is_not_waited_for(name: str, model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / name)
    with pytest.raises(InvalidData, match="not a regular file"):
        load_samples(folder, model)


@pytest.mark.parametrize("name", ["squad.json", "plan.json", "vocab.json"])
def test_json_that_is_nested_too_deeply(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"data": ' + "[" * 100_000)
    with pytest.raises((InvalidData, InvalidPlan), match=r"\A[^\n]{,300}\Z"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" + "0" * 400, "9" * 5000])
def test_numbers_that_are_none_in_a_plan(number: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(
        '{"format": 2, "structure_hash": "a", "schemes": {"x": {"threshold": ' + number + '}}, "sites": []}'
    )
    with pytest.raises(InvalidPlan, match=r"the number [^\n]{,30} is out of range"):
        load_plan(path)


def test_arrays_of_the_other_order_of_bytes(model: Any, tmp_path: Path) -> None:
    x = np.linspace(0, 1, 32, dtype=np.float32).reshape(1, 4, 8)
    np.savez(tmp_path / "big.npz", x=x.astype(">f4"))
    (sample,) = load_samples(tmp_path / "big.npz", model)
    assert sample["x"].dtype == np.float32
    assert sample["x"].dtype.isnative
    np.testing.assert_array_equal(sample["x"], x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.npz", "study.npz"])
def test_an_archive_that_claims_to_hold_far_more_than_its_size(name: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**29 // 4, 1)})
        for _ in range(34):
            file.write(bytes(2**25))
    with pytest.raises(InvalidData, match="too large for the size of the file"):
        Study.load(path) if name == "study.npz" else load_samples(path, model)


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_text_that_unpacks_to_far_more_than_its_size(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"texts.txt{suffix}"
    path.write_bytes(pack(b"a\n" * 10_000))
    assert len(read_texts(path)) == 10_000
    assert unpacked_limit(path) == 2**30
    monkeypatch.setattr("onnx_attnq.evaluate.data.unpacked_limit", lambda path: 1000)
    with pytest.raises(InvalidData, match="too large for the size of the file"):
        read_texts(path)


def test_no_name_is_a_formula_in_a_spreadsheet() -> None:
    assert [_text(name) for name in ("=1+1", "+a", "-a", "@a", "\ta", "layer.0")] == [
        "'=1+1",
        "'+a",
        "'-a",
        "'@a",
        "'\ta",
        "layer.0",
    ]


@pytest.mark.parametrize("kind", ["pipe", "deep", "deep line", "number"])
def test_a_journal_from_elsewhere_is_no_journal(kind: str, tmp_path: Path) -> None:
    path, purpose = tmp_path / "plan.json.journal", Purpose("a", "b", "c")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        Journal(path, purpose)
        header = path.read_text()
        path.write_text({"deep": "[" * 100_000 + "\n", "deep line": header + "[" * 100_000 + "\n"}.get(kind, "1e999\n"))
    with pytest.raises(InvalidData, match=r"\A[^\n]*(not a journal|of another model)[^\n]*\Z"):
        Journal(path, purpose, resume=True)


def test_options_that_are_nested_deeply_are_no_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "attnq.toml").write_text("[compress]\nsamples = " + "[" * 100_000)
    with pytest.raises(SystemExit) as stop:
        main(["compress", "m.onnx", "--config", str(tmp_path / "attnq.toml")])
    assert stop.value.code == 2
    assert "not a TOML file" in capsys.readouterr().err
