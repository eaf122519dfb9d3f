"""`onnx-attnq FOLDER`: all parts of a model at once, into a folder that is used as the original was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_forms import FORMS
from small_graphs import parse
from small_transformers import bert_like, gpt2_like
from test_cli import Run, one_line, run

from onnx_attnq.cli import main
from onnx_attnq.job import compress_folder
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import read_record

__all__ = ["run"]  # the fixture of test_cli

NO_ATTENTION = "(float[B,4] x) => (float[B,4] y) { y = Relu(x) }"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As of an export with parts: an encoder, a decoder in a subfolder, a part without attention, and files beside."""
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    save(bert_like(17, layers=1), folder / "encoder_model.onnx")
    save(gpt2_like(17, layers=1), folder / "onnx" / "decoder_model.onnx")
    save(parse(NO_ATTENTION), folder / "head.onnx")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "onnx" / "notes.txt").write_text("beside a part")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_external_data(path: Path, data: str) -> None:
    """Give a model weights in a data file; it computes what it did."""
    proto = onnx.load(path)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "w"))
    onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)


def test_every_part_is_compressed_under_its_name(folder: Path, run: Run) -> None:
    before = contents(folder)
    code, out, err = run(folder)
    assert (code, err) == (0, "")
    assert contents(folder) == before
    after = contents(folder.with_name("model.attnq"))
    assert set(after) == {name for name in before if not name.startswith(".cache")}
    assert {name for name in after if after[name] != before[name]} == {"encoder_model.onnx", "onnx/decoder_model.onnx"}
    for name in ("encoder_model.onnx", "onnx/decoder_model.onnx"):
        assert read_record(load(folder.with_name("model.attnq") / name)) is not None
    assert out.count("1 of 1 sites") == 2
    assert out.count("\nVerified\n") == 2
    assert "head.onnx: copied: no attention found" in out
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "model.attnq"]


def test_json_has_a_model_for_each_part(folder: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run(folder, "-o", tmp_path / "new", "--bits", 2, "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert (report["folder"], report["output"]) == (str(folder), str(tmp_path / "new"))
    assert [Path(part["output"]["path"]).name for part in report["models"]] == [
        "encoder_model.onnx",
        "decoder_model.onnx",
    ]
    assert all(part["verification"]["passed"] and part["scheme"]["bits"] == 2 for part in report["models"])
    assert [Path(part["path"]).name for part in report["untouched"]] == ["head.onnx"]


def test_external_data_goes_with_its_part_and_no_other_copy_is_made(folder: Path) -> None:
    with_external_data(folder / "encoder_model.onnx", "encoder_model.onnx_data")
    with_external_data(folder / "head.onnx", "head.onnx_data")
    output = compress_folder(folder, verification=None).output
    assert output is not None
    assert {path.name for path in output.glob("*data")} == {"encoder_model.onnx.data", "head.onnx.data"}
    assert len(load(output / "head.onnx").graph.initializers) == 1
    onnx.checker.check_model(output / "head.onnx")


def test_a_folder_of_links_becomes_one_of_files(folder: Path, tmp_path: Path) -> None:
    """As the cache of the hub has them: every name is a link to a blob."""
    with_external_data(folder / "encoder_model.onnx", "encoder_model.onnx_data")
    links, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    links.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.glob("*.*"):
        if path.is_file():
            shutil.copy(path, blobs / f"of-{path.name}".replace(".", "-"))
            (links / path.name).symlink_to("../../blobs/" + f"of-{path.name}".replace(".", "-"))
    output = compress_folder(links, verification=None).output
    assert output is not None
    assert not any(path.is_symlink() for path in output.iterdir())
    assert (output / "config.json").exists()
    assert not (output / "encoder_model.onnx_data").exists()


def test_a_dry_run_writes_nothing(folder: Path, run: Run) -> None:
    code, out, _ = run(folder, "--dry-run")
    assert code == 0
    assert out.count("Nothing was written") == 2
    assert list(folder.parent.iterdir()) == [folder]


def test_an_empty_output_folder_may_be_there(folder: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert run(folder, "-o", tmp_path / "new", "--no-verify")[0] == 0
    assert (tmp_path / "new" / "encoder_model.onnx").exists()


def test_the_current_folder(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run(".", "--no-verify")[0] == 0
    assert (folder.parent / "model.attnq" / "encoder_model.onnx").exists()


def test_too_much_deviation_in_one_part_fails(folder: Path, run: Run) -> None:
    save(parse(FORMS["plain"].text), folder / "plain.onnx")
    code, out, _ = run(folder, "--max-deviation", "max_abs=1e-9")
    assert code == 1
    assert "failed:" in out
    assert not folder.with_name("model.attnq").exists()


def test_nothing_to_rewrite_in_any_part(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save(parse(NO_ATTENTION), folder / "a.onnx")
    save(parse(NO_ATTENTION), folder / "b.onnx")
    code, out, err = run(folder)
    assert (code, out) == (3, "")
    assert "a.onnx: no attention found" in one_line(err)
    assert "b.onnx: no attention found" in one_line(err)
    assert list(tmp_path.iterdir()) == [folder]


def no_onnx_file(folder: Path) -> None:
    for path in folder.rglob("*.onnx"):
        path.unlink()


def damaged_part(folder: Path) -> None:
    (folder / "zz.onnx").write_bytes((folder / "encoder_model.onnx").read_bytes()[:200])


def rewritten_part(folder: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(folder / "encoder_model.onnx"), "--no-verify"])


def output_is_a_file(folder: Path) -> None:
    folder.with_name("model.attnq").write_text("")


def output_is_not_empty(folder: Path) -> None:
    folder.with_name("model.attnq").mkdir()
    (folder.with_name("model.attnq") / "mine.txt").write_text("")


MISTAKES = [
    (no_onnx_file, [], "model: no ONNX file in this folder"),
    (damaged_part, [], "zz.onnx is not an ONNX file"),
    (rewritten_part, [], "encoder_model.attnq.onnx: the model is rewritten already"),
    (output_is_a_file, [], "model.attnq is a file, not a folder"),
    (output_is_not_empty, [], "model.attnq is not empty; give a new folder"),
    (None, ["-o", "{folder}"], "give another folder"),
    (None, ["-o", "{folder}/out"], "give another folder"),
    (
        None,
        ["-o", "/nonexistent/out"],
        "--output /nonexistent/out: the folder /nonexistent does not exist; make it first",
    ),
    (None, ["--data", "x.npz"], "x.npz does not exist"),
    (None, ["--plan", "plan.json"], "is a folder; it does not go with --plan"),
    (None, ["--write-plan", "plan.json"], "is a folder; it does not go with --write-plan"),
    (None, ["--external-data", "keep"], "is a folder; it does not go with --external-data keep"),
    (None, ["--exclude", "nowhere*"], "--exclude 'nowhere*' matches no site"),
]


@pytest.mark.parametrize(("spoil", "options", "message"), MISTAKES, ids=lambda v: getattr(v, "__name__", None))
def test_a_mistake_is_one_line_and_changes_nothing(
    spoil: object, options: list[str], message: str, folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if callable(spoil):
        spoil(folder)
        capsys.readouterr()
    before = contents(folder.parent)
    code, out, err = run(folder, *(option.format(folder=folder) for option in options))
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert contents(folder.parent) == before


def test_links_out_of_the_folder_and_special_files_are_not_copied(folder: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    shutil.copy(folder / "head.onnx", tmp_path / "elsewhere.onnx")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.onnx")
    links = {
        "out.txt": "../secret",
        "out.onnx": "../elsewhere.onnx",
        "absolute.json": str(tmp_path / "secret"),
        "parent": "..",
        "onnx/out.txt": "../../secret",
        "loop": "loop",
        "dangling": "nowhere",
        "within.json": "config.json",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    code, out, err = run(folder, "--no-verify")
    assert (code, err) == (0, "")
    copied = contents(folder.with_name("model.attnq"))
    assert copied["within.json"] == copied["config.json"]
    assert not (set(links) - {"within.json"} | {"pipe", "pipe.onnx"}) & copied.keys()
    for name in ("out.txt", "out.onnx", "absolute.json", "parent", "onnx/out.txt"):
        assert f"{folder / name}: skipped: it is a symbolic link that leads out of the folder\n" in out
    for name in ("pipe", "pipe.onnx", "loop", "dangling"):
        assert f"{folder / name}: skipped: it is not a regular file\n" in out
    code, out, err = run(folder, "--dry-run", "--json", "-")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["skipped"]) == 9


def test_a_folder_with_only_links_out_of_it(tmp_path: Path, run: Run) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.onnx").symlink_to("/etc/passwd")
    code, _, err = run(tmp_path / "model")
    assert code == 2
    assert one_line(err).endswith("a.onnx: it is a symbolic link that leads out of the folder")
