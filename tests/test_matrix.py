"""Each command, each kind of bad input, each writing option: one line, the input untouched, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
import text_models
from _pytest.mark.structures import ParameterSet

from onnx_attnq.cli import main
from onnx_attnq.inputs import generate_samples
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


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def socket_file(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most a hundred characters
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(100_000))


def archive(path: Path) -> None:
    """An .npz of something that has to be unpickled."""
    with path.open("wb") as file:
        np.savez(file, x=np.array([{"a": 1}], dtype=object), allow_pickle=True)


def deep_json(path: Path) -> None:
    path.write_text("[" * 100_000)


def endless_json(path: Path) -> None:
    path.write_text('{"version": 1e999, "model": -Infinity, "sites": NaN}')


BAD: tuple[Callable[[Path], None], ...] = (
    empty, text, truncated, missing, empty_folder, os.mkfifo, device, socket_file, loop, dangling, zeros, archive, deep_json,
    endless_json, no_attention, wrong_attribute, missing_data, forged_record,
)  # fmt: skip

TASK = ("--task", "sentence-similarity", "--tokenizer", "WORDS", "--resamples", "100")

COMMANDS = {
    "compress": ("compress BAD", ("-o OUT/m.onnx", "--write-plan OUT/plan.json")),
    "compress with weights": ("compress BAD --weights int8", ("-o OUT/m.onnx",)),
    "compress what fails": ("compress BAD --max-deviation max_abs=0 --keep-failed", ("-o OUT/m.onnx",)),
    "compress with a bad plan": ("compress GOOD --plan BAD", ("-o OUT/m.onnx", "--write-plan OUT/plan.json")),
    "compress with bad data": ("compress GOOD --data BAD", ("-o OUT/m.onnx", "--write-plan OUT/plan.json")),
    "compress with a bad library": ("compress GOOD --custom-ops BAD", ("-o OUT/m.onnx",)),
    "compress with bad options": ("compress GOOD --config BAD", ("-o OUT/m.onnx",)),
    "inspect": ("inspect BAD", ()),
    "analyze": ("analyze BAD --no-report", ("-o OUT/study",)),
    "analyze bad data": ("analyze GOOD --no-report --data BAD", ("-o OUT/study",)),
    "analyze a bad study": ("analyze --combine BAD --no-report", ("-o OUT/study",)),
    "bench": ("bench BAD --tokens 4 --repeats 1 --no-memory", ()),
    "bench a bad rewrite": ("bench GOOD BAD --tokens 4 --repeats 1 --no-memory", ()),
    "evaluate": (f"evaluate BAD {' '.join(TASK)} --data TEXTS", ()),
    "evaluate a bad rewrite": (f"evaluate TEXT --compressed BAD {' '.join(TASK)} --data TEXTS", ()),
    "evaluate bad data": (f"evaluate TEXT {' '.join(TASK)} --data BAD", ()),
    "evaluate with a bad tokenizer": (f"evaluate TEXT {' '.join(TASK)} --data TEXTS", ()),
    "tune": ("tune BAD --data SAMPLES --jobs 1 --samples 1", ("-o OUT/plan.json",)),
    "tune bad data": ("tune GOOD --data BAD --jobs 1 --samples 1", ("-o OUT/plan.json",)),
    "compress within a loss": (
        "compress BAD --data SAMPLES --max-loss 5% --jobs 1",
        ("-o OUT/m.onnx", "--write-plan OUT/plan.json"),
    ),
    "sweep": ("sweep BAD --data SAMPLES --jobs 1 --scheme boolean --no-report --repeats 0", ("-o OUT/sweep",)),
    "sweep bad data": ("sweep GOOD --data BAD --jobs 1 --scheme boolean --no-report", ("-o OUT/sweep",)),
    "export": ("export BAD --offline", ("-o OUT/exported",)),
    "verify": ("verify GOOD BAD --samples 1", ()),
    "verify bad data": ("verify GOOD GOOD --data BAD", ()),
    "bisect": ("bisect GOOD BAD --samples 1", ()),
    "revert": ("revert BAD", ("-o OUT/m.onnx",)),
    "diff": ("diff BAD GOOD", ()),
    "canonical": ("canonical BAD", ("-o OUT/m.txt",)),
    "fingerprint": ("fingerprint BAD", ()),
}
NEEDED = {"analyze a bad study": "-o", "export": "-o", "revert": "-o"}
"""Options without which a command does not run."""


def calls() -> Iterator[ParameterSet]:
    """Each command without a writing option, with all of them, and, where time is no matter, with each alone."""
    for name, (_, options) in COMMANDS.items():
        every = (*options, "--json OUT/result.json")
        for some in sorted({(), every, *((option,) for option in every)}):
            if name not in NEEDED or any(option.startswith(NEEDED[name]) for option in some):
                quick = some in ((), every) or (name in NEEDED and len(some) == len(every))
                yield pytest.param(name, some, marks=[] if quick else [pytest.mark.slow], id=f"{name} {' '.join(some)}")


PLACES = {
    "GOOD": "in/good.onnx", "BAD": "in/bad.onnx", "TEXT": "in/attention.onnx", "WORDS": "in/words", "TEXTS": "in/texts.csv",
    "SAMPLES": "in/samples",
}  # fmt: skip
DEFAULTS = (
    "in/good.attnq.",
    "in/bad.attnq.",
    "in/good.analysis",
    "in/bad.analysis",
    "in/good.plan",
    "in/bad.plan",
    "in/good.sweep",
    "in/bad.sweep",
)
"""Where commands write that are not told where."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    small_models.write(small_models.attention(), folder / "good.onnx")
    text_models.attention(folder)
    text_models.tokenizer().save_pretrained(folder / "words")
    (folder / "texts.csv").write_text("sentence1,sentence2,score\nred,green,1\nblue car,red,2\nbig tree,house,3\n")
    (folder / "samples").mkdir()
    for number, sample in enumerate(generate_samples(load(folder / "good.onnx"), 4)):
        np.savez(folder / "samples" / f"{number}.npz", **sample)
    return folder


def contents(folder: Path) -> dict[str, object]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else os.lstat(path).st_mode
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
@pytest.mark.parametrize(("name", "options"), list(calls()))
def test_a_bad_input(
    name: str,
    options: tuple[str, ...],
    bad: Callable[[Path], None],
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("out", "here"):
        (tmp_path / folder).mkdir()
    shutil.copytree(inputs, tmp_path / "in")
    place = tmp_path / "in" / ("words/tokenizer.json" if "tokenizer" in name else "bad.onnx")
    place.unlink(missing_ok=True)
    bad(place)
    monkeypatch.chdir(tmp_path / "here")  # where nothing is to be written
    before = contents(tmp_path)
    words = " ".join((COMMANDS[name][0], *options)).split()
    call = [str(tmp_path / PLACES[w]) if w in PLACES else w.replace("OUT", str(tmp_path / "out")) for w in words]
    with pytest.raises(SystemExit) as stop:
        main(call)
    err = capsys.readouterr().err
    assert stop.value.code in (None, 0, 1, 2, 3), err
    assert "Traceback" not in err
    after = contents(tmp_path)
    made = {path for path in after if path not in before}
    assert {path: after.get(path) for path in before} == before
    assert all(path.startswith(("out/", *DEFAULTS)) for path in made), made
    assert not [path for path in made if Path(path).name.startswith(".")]
    if stop.value.code in (2, 3):
        assert not made
        assert err.startswith("onnx-attnq: error: ")
        assert len(err.splitlines()) == 1, err
    for path in made:
        if path.endswith(".json"):
            json.loads((tmp_path / path).read_text())
        elif path.endswith(".onnx"):
            load(tmp_path / path)
