"""No option of any command overwrites an input, another output, or what is no regular file."""

from __future__ import annotations

import os
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import small_models

from onnx_attnq.cli import main
from onnx_attnq.cli.group import COMMANDS, cli
from onnx_attnq.cli.guard import WRITTEN


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in COMMANDS}
    return {name: command for name, command in found.items() if command is not None}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def contents(folder: Path) -> dict[str, bytes | str]:
    def of(path: Path) -> bytes | str:
        return path.read_bytes() if path.is_file() else "folder" if path.is_dir() else "special"

    return {path.relative_to(folder).as_posix(): of(path) for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its data in a file, samples, a plan, settings, and things that are no files."""
    folder = tmp_path / "in"
    folder.mkdir()
    small_models.write_external(small_models.attention(), folder / "model.onnx")
    np.savez(folder / "samples.npz", x=np.zeros((1, 4, 8), np.float32))
    (folder / "data").mkdir()
    np.savez(folder / "data" / "0.npz", x=np.zeros((1, 4, 8), np.float32))
    assert run("compress", folder / "model.onnx", "--dry-run", "--write-plan", folder / "plan.json") == 0
    assert run("compress", folder / "model.onnx", "-o", folder / "small.onnx", "--no-verify") == 0
    (folder / "attnq.toml").write_text("[compress]\nsamples = 1\n")
    (folder / "link.onnx").symlink_to("model.onnx")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    return folder


def test_every_path_of_every_command_is_read_or_written() -> None:
    written = {
        (name, parameter.opts[-1])
        for name, command in commands().items()
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and parameter.name in WRITTEN
    }
    assert written == {(name, "--json") for name in COMMANDS} | {
        *((name, "--output") for name in ("compress", "analyze", "tune", "sweep", "export", "revert", "canonical")),
        ("compress", "--write-plan"),
        ("analyze", "--write-plan"),
    }
    read = {
        parameter.opts[-1]
        for command in commands().values()
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and parameter.name not in WRITTEN
    }
    assert not [name for name in read if any(word in name for word in ("write", "save", "out"))]


MODEL, SMALL, PLAN, SAMPLES = "IN/model.onnx", "IN/small.onnx", "IN/plan.json", "IN/samples.npz"

INPUTS = {
    "compress": (["compress", MODEL, "--plan", PLAN, "--data", SAMPLES, "-o", "IN/new.onnx"], [MODEL, PLAN, SAMPLES]),
    "compress a folder": (["compress", "IN/", "-o", "NEW"], [MODEL, PLAN]),
    "inspect": (["inspect", MODEL], [MODEL]),
    "analyze": (["analyze", MODEL, "--data", SAMPLES, "--no-report", "-o", "NEW"], [MODEL, SAMPLES]),
    "bench": (["bench", MODEL, SMALL, "--data", SAMPLES], [MODEL, SMALL, SAMPLES]),
    "evaluate": (
        ["evaluate", MODEL, "--compressed", SMALL, "--task", "text-generation", "--data", PLAN],
        [MODEL, SMALL, PLAN, SAMPLES],
    ),
    "export": (["export", "IN/folder", "-o", "NEW"], []),
    "verify": (["verify", MODEL, SMALL, "--data", "IN/data"], [MODEL, SMALL, "IN/data/0.npz"]),
    "bisect": (["bisect", MODEL, SMALL, "--data", SAMPLES], [MODEL, SMALL, SAMPLES]),
    "revert": (["revert", SMALL, "-o", "IN/new.onnx"], [SMALL, "IN/small.onnx.data"]),
    "diff": (["diff", MODEL, SMALL], [MODEL, SMALL]),
    "canonical": (["canonical", MODEL], [MODEL]),
    "fingerprint": (["fingerprint", MODEL], [MODEL]),
}
"""For each command a call, and inputs of it that --json must not overwrite. IN is the folder, NEW is not there."""

NEVER = ["IN/link.onnx", "IN/weights.bin", "IN/pipe", "IN/folder", "/dev/null"]
"""What no output may replace: a link to the model, its data, and what is no file."""


def place(argument: str, folder: Path) -> str:
    return argument.replace("IN/", f"{folder}/").replace("NEW", str(folder.parent / "new"))


def refused(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder.parent)
    capsys.readouterr()
    code = run(*(place(argument, folder) for argument in arguments))
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1), (arguments, out, err)
    assert "never overwritten" in err or "never replaced" in err or "writes there, too" in err, err
    assert contents(folder.parent) == before, arguments


@pytest.mark.parametrize("name", INPUTS)
def test_json_replaces_no_input_and_nothing_special(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, inputs = INPUTS[name]
    special = NEVER if MODEL in inputs else NEVER[2:]
    for path in (*inputs, *special):
        refused([*arguments, "--json", path], folder, capsys)


@pytest.mark.parametrize("path", [MODEL, PLAN, SAMPLES, "IN/attnq.toml", *NEVER])
def test_a_plan_replaces_no_input_and_nothing_special(
    path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*INPUTS["compress"][0], "--config", "IN/attnq.toml"]
    refused([*arguments, "--write-plan", path], folder, capsys)


@pytest.mark.parametrize("path", [MODEL, *NEVER])
def test_an_output_replaces_no_input_and_nothing_special(
    path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["compress", MODEL, "-o", path], folder, capsys)
    refused(["canonical", MODEL, "-o", path], folder, capsys)
    mine = {MODEL: SMALL, "IN/link.onnx": SMALL, "IN/weights.bin": "IN/small.onnx.data"}  # what revert reads here
    refused(["revert", SMALL, "-o", mine.get(path, path)], folder, capsys)


def test_the_data_file_of_an_output_replaces_nothing_special(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "new.onnx.data")
    refused(["compress", MODEL, "-o", "IN/new.onnx"], folder, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", MODEL, "-o", "IN/new.onnx", "--json", "IN/new.onnx"],
        ["compress", MODEL, "-o", "IN/new.onnx", "--json", "IN/new.onnx.data"],
        ["compress", MODEL, "--json", "IN/model.attnq.onnx"],
        ["compress", MODEL, "--json", "IN/./x.json", "--write-plan", "IN/x.json"],
        ["compress", "IN/", "-o", "NEW", "--json", "NEW/model.onnx"],
        ["analyze", MODEL, "--no-report", "-o", "NEW", "--json", "NEW/numbers.json"],
        ["analyze", MODEL, "--no-report", "--json", "IN/model.analysis/numbers.json"],
        ["canonical", MODEL, "-o", "IN/x", "--json", "IN/x"],
        ["revert", SMALL, "-o", "IN/new.onnx", "--json", "IN/new.onnx.data"],
    ],
    ids=" ".join,
)
def test_no_output_replaces_another(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(arguments, folder, capsys)


WRITING = [
    *(([*call, "--json", "IN/no/x.json"], "--json") for call, _ in INPUTS.values()),
    (["compress", MODEL, "--write-plan", "IN/no/x.json"], "--write-plan"),
    (["analyze", MODEL, "--no-report", "--write-plan", "IN/no/x.json"], "--write-plan"),
    (["analyze", MODEL, "--no-report", "-o", "IN/no", "--write-plan", "IN/no/x.json"], "--write-plan"),
    (["compress", MODEL, "-o", "IN/no/x.onnx"], "--output"),
    (["compress", "IN/", "-o", "NEW/no/x"], "--output"),
    (["tune", MODEL, "--data", SAMPLES, "-o", "IN/no/x.json"], "--output"),
    (["revert", SMALL, "-o", "IN/no/x.onnx"], "--output"),
    (["canonical", MODEL, "-o", "IN/no/x.txt"], "--output"),
    (["sweep", MODEL, "--data", SAMPLES, "-o", "NEW", "--json", "IN/no/x.json"], "--json"),
]


@pytest.mark.parametrize(("arguments", "option"), WRITING, ids=lambda value: str(value[0]))
def test_the_folder_of_an_output_is_there_before_any_work(
    arguments: list[str], option: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = commands()[arguments[0]]
    monkeypatch.setattr(command, "callback", lambda **_: pytest.fail("the command ran"))
    before = contents(folder.parent)
    capsys.readouterr()
    assert run(*(place(argument, folder) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), err
    assert f"error: {option} " in err
    assert "/no does not exist; make it first" in err
    assert contents(folder.parent) == before


def test_a_command_makes_the_folder_of_its_output(folder: Path) -> None:
    study = folder / "new" / "study"
    arguments = ["analyze", folder / "model.onnx", "--no-report", "-o", study, "--json", study / "x.json"]
    assert run(*arguments) == 0
    assert (study / "x.json").exists()


def test_a_study_is_not_merged_into_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = folder.parent / "study"
    assert run("analyze", folder / "model.onnx", "--no-report", "-o", study) == 0
    refused(["analyze", "--combine", f"{study}/study.npz", "--no-report", "-o", str(study)], folder, capsys)


@pytest.mark.parametrize("arguments", [*(call for call, _ in INPUTS.values())], ids=lambda call: call[0])
def test_an_input_that_is_no_regular_file(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        i for i, argument in enumerate(arguments) if i and arguments[i - 1] != "-o" and argument.startswith("IN/")
    ]
    for option in options:
        for special in ("IN/pipe", "/dev/zero"):
            call = [*arguments[:option], special, *arguments[option + 1 :]]
            before = contents(folder.parent)
            capsys.readouterr()
            assert run(*(place(argument, folder) for argument in call)) == 2
            assert capsys.readouterr().err.endswith(
                f"{place(special, folder)} is not a regular file; name one that is\n"
            )
            assert contents(folder.parent) == before


def test_outputs_of_an_earlier_run_are_replaced(folder: Path) -> None:
    calls = (
        ["compress", MODEL, "-o", "IN/new.onnx", "--json", "IN/x.json", "--write-plan", "IN/y.json", "--no-verify"],
        ["canonical", MODEL, "-o", "IN/x.txt", "--json", "IN/x.json"],
        ["inspect", MODEL, "--json", "IN/x.json"],
        ["fingerprint", MODEL, "--json", "IN/x.json"],
    )
    for call in calls:
        for _ in range(2):
            assert run(*(place(argument, folder) for argument in call)) == 0
    onnx.checker.check_model(str(folder / "new.onnx"))


def test_what_failed_is_not_kept_in_the_place_of_its_input(folder: Path) -> None:
    source = folder / "a.failed.onnx"
    small_models.write(small_models.attention(), source)
    before = contents(folder)
    assert run("compress", source, "-o", folder / "a.onnx", "--keep-failed", "--max-deviation", "max_abs=0") == 2
    assert contents(folder) == before


@pytest.mark.parametrize("option", [[], ["-o", "IN/model.plan.json"]])
def test_the_journal_of_a_tuning_run_is_an_output_too(option: list[str], folder: Path) -> None:
    data = folder / "model.plan.json.journal"
    data.mkdir()
    np.savez(data / "0.npz", x=np.zeros((1, 4, 8), np.float32))
    before = contents(folder)
    words = [word.replace("IN", str(folder)) for word in option]
    assert run("tune", folder / "model.onnx", "--data", data, "--resume", *words) == 2
    assert contents(folder) == before


@pytest.mark.parametrize("option", [[], ["-o", "IN/model.onnx"], ["--write-plan", "IN/model.plan.json"]])
def test_plan_and_journal_of_tuning_in_one_go_are_outputs_too(option: list[str], folder: Path) -> None:
    data = folder / "model.plan.json.journal"
    data.mkdir()
    np.savez(data / "0.npz", x=np.zeros((1, 4, 8), np.float32))
    before = contents(folder)
    words = [word.replace("IN", str(folder)) for word in option]
    assert run("compress", folder / "model.onnx", "--data", data, "--max-loss", "1%", "--resume", *words) == 2
    assert contents(folder) == before
