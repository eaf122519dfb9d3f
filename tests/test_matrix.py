"""Each command, each kind of bad input, each writing option: one line, the input untouched, nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import small_models

from onnx_attnq.cli import main
from onnx_attnq.model import load


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no model")


def truncated(path: Path) -> None:
    path.write_bytes(small_models.attention().SerializeToString()[:-40])


def missing(path: Path) -> None:
    pass


def empty_folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def no_attention(path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    onnx.save(proto, path)


def wrong_attribute(path: Path) -> None:
    proto = small_models.attention()
    proto.graph.node[3].attribute[0].i = 22
    onnx.save(proto, path)


def missing_data(path: Path) -> None:
    small_models.write_external(small_models.attention(), path, "data.bin")
    path.with_name("data.bin").unlink()


def forged_record(path: Path) -> None:
    proto = small_models.attention()
    proto.metadata_props.add(key="onnx_attnq", value="[" * 10_000)
    onnx.save(proto, path)


BAD: tuple[Callable[[Path], None], ...] = (
    empty, text, truncated, missing, empty_folder, os.mkfifo, loop, dangling, no_attention, wrong_attribute, missing_data,
    forged_record,
)  # fmt: skip

COMMANDS = {
    "compress": (["compress", "BAD"], ["-o", "OUT/m.onnx", "--write-plan", "OUT/plan.json"]),
    "compress with a bad plan": (["compress", "GOOD", "--plan", "BAD"], ["-o", "OUT/m.onnx"]),
    "compress with bad data": (["compress", "GOOD", "--data", "BAD"], ["-o", "OUT/m.onnx"]),
    "inspect": (["inspect", "BAD"], []),
    "analyze": (["analyze", "BAD", "--no-report"], ["-o", "OUT/study"]),
    "analyze a bad study": (["analyze", "--combine", "BAD", "--no-report"], ["-o", "OUT/study"]),
    "bench": (["bench", "BAD", "--tokens", "4", "--repeats", "1", "--no-memory"], []),
    "verify": (["verify", "GOOD", "BAD", "--samples", "1"], []),
    "bisect": (["bisect", "GOOD", "BAD", "--samples", "1"], []),
    "revert": (["revert", "BAD"], ["-o", "OUT/m.onnx"]),
    "diff": (["diff", "BAD", "GOOD"], []),
    "canonical": (["canonical", "BAD"], ["-o", "OUT/m.txt"]),
    "fingerprint": (["fingerprint", "BAD"], []),
}


def contents(folder: Path) -> dict[str, object]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else os.lstat(path).st_mode
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_input(
    name: str,
    bad: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("in", "out", "here"):
        (tmp_path / folder).mkdir()
    small_models.write(small_models.attention(), tmp_path / "in" / "good.onnx")
    bad(tmp_path / "in" / "bad.onnx")
    monkeypatch.chdir(tmp_path / "here")  # where nothing is to be written
    before = contents(tmp_path)
    arguments, options = COMMANDS[name]
    places = {"GOOD": "in/good.onnx", "BAD": "in/bad.onnx"}
    call = [
        str(tmp_path / places[a]) if a in places else a.replace("OUT", str(tmp_path / "out"))
        for a in arguments + options
    ]
    with pytest.raises(SystemExit) as stop:
        main([*call, "--json", str(tmp_path / "out" / "result.json")])
    err = capsys.readouterr().err
    assert stop.value.code in (None, 0, 1, 2, 3), err
    assert "Traceback" not in err
    after = contents(tmp_path)
    made = {path for path in after if path not in before}
    assert {path: after.get(path) for path in before} == before
    assert all(path.startswith("out/") for path in made)
    assert not [path for path in made if Path(path).name.startswith(".")]
    if stop.value.code in (2, 3):
        assert not made
        assert err.startswith("onnx-attnq: error: ") or "Usage:" in err
        assert "Usage:" in err or len(err.splitlines()) == 1, err
    for path in made:
        if path.endswith(".json"):
            json.loads((tmp_path / path).read_text())
        elif path.endswith(".onnx"):
            load(tmp_path / path)
