"""Every command that README and pages show: run on a small model under the names that the page uses, or parsed.

What cannot run in a test is in the table below with the reason; its options are parsed all the same.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import onnx
import pytest
import text_models
from onnx import helper
from small_transformers import bert_like

from onnx_attnq.cli import main
from onnx_attnq.cli.group import COMMANDS, DEFAULT, cli
from onnx_attnq.job import compress
from onnx_attnq.model import save

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
EXAMPLES = sorted(ROOT.glob("examples/*/README.md"))

NOT_RUN = {
    r"^onnx-attnq export ": "exports with torch, of models that are not here; `make test-pipeline` exports others",
    r"^onnx-attnq \S+/all-MiniLM-L6-v2": "a model on the hub",
    r"^onnx-attnq examples/decoder/model": "exports with torch; tests/test_pipeline.py does it",
    r"--dataset ": "a data set on the hub",
    r"my-genai-folder": "needs a model of onnxruntime-genai; tests/test_genai.py makes one",
    r"--backend dask": "needs a scheduler of its own; tests/test_tune.py starts one",
}
"""Commands that are only parsed, and why."""

SHORTER = {
    "bench": "--repeats 1 --no-memory",
    "analyze": "--no-report",
    "tune": "--jobs 1",
    "sweep": "--bits 2 --threshold 0.1 --pruned zero --repeats 1 --no-report --limit 4 --max-length 32 --jobs 1",
    "evaluate": "--resamples 5 --max-length 32",
}
"""What is added so that a command takes less time; the pictures of `analyze` and `sweep` have tests of their own."""


class Shown(NamedTuple):
    """A command on a page."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def commands(pages: list[Path]) -> list[Shown]:
    """Every line of an indented or shell block, and every line behind a $, that begins with a program's name."""
    found = {}
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(
            r"^```shell\n(.*?)^```", lambda found: re.sub("^", "    ", found[1], flags=re.M), text, flags=re.M | re.S
        )
        for line in re.findall(r"^(?: {4}|\$ )((?:onnx-attnq|make|pip|python|pytest|dask) .*)$", text, re.M):
            for one in re.split(r" && ", re.split(r"\s+#\s|\s{3,}(?=[A-Za-z])(?!.*\s-)", line)[0]):
                shown = Shown(page, tuple(shlex.split(one)))
                found.setdefault(shown.words, shown)
    return list(found.values())


SHOWN = commands(PAGES)
OURS = [shown for shown in SHOWN if shown.words[0] == "onnx-attnq"]


def reason(shown: Shown) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, " ".join(shown.words))), None)


def quick(shown: list[Shown]) -> list[Any]:
    """Of commands that run a model many times the first of each kind, and all others; the rest are slow."""
    seen, marked = set[str](), []
    for one in shown:
        again = one.words[1] in ("bench", "bisect", "evaluate", "sweep", "tune") and one.words[1] in seen
        marked.append(pytest.param(one, id=str(one), marks=pytest.mark.slow if again else ()))
        seen.add(one.words[1])
    return marked


def test_commands_are_found() -> None:
    assert len(OURS) > 35
    assert all(any(re.search(pattern, " ".join(s.words)) for s in OURS) for pattern in NOT_RUN)


@pytest.mark.parametrize("shown", [*OURS, *(s for s in commands(EXAMPLES) if s.words[0] == "onnx-attnq")], ids=str)
def test_a_command_is_parsed(shown: Shown) -> None:
    name, words = (shown.words[1], shown.words[2:]) if shown.words[1] in COMMANDS else (DEFAULT, shown.words[1:])
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, list(words))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands find where they run."""
    folder = tmp_path_factory.mktemp("files")
    proto = onnx.ModelProto.FromString(model_bytes(folder))
    for name in (
        "model.onnx",
        "a.onnx",
        "roberta/model.onnx",
        "decoder/model.onnx",
        "llama/model.onnx",
        "bart/model.onnx",
        "folder/part.onnx",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        onnx.save(proto, folder / name)
    onnx.save(proto, folder / "A")
    words = np.array([[2, 5, 6, 3], [2, 7, 8, 3]])
    for name in ("samples", "sentences"):
        (folder / name).mkdir()
        for i in range(4):
            sample = {"input_ids": np.roll(words, i, 0), "attention_mask": np.ones_like(words)}
            np.savez(folder / name / f"{i}.npz", **sample)
    for place in (folder, folder / "roberta", folder / "decoder"):
        text_models.tokenizer().save_pretrained(place)
    for name in ("dev-v1.1.json", "xquad.en.json"):
        (folder / name).write_text(QUESTIONS, encoding="utf-8")
    (folder / "examples" / "decoder").mkdir(parents=True)
    (folder / "examples" / "decoder" / "held_out.txt").write_text(
        ("red house big tree " * 20 + "\n") * 8, encoding="utf-8"
    )
    for name in (
        "model.attnq.onnx",
        "b.onnx",
        "two.onnx",
        "B",
        "MODEL",
        "decoder/model.attnq.onnx",
        "llama/model.attnq.onnx",
    ):
        source = folder / "decoder/model.onnx" if "/" in name else folder / "A"
        compress(source, folder / name, verification=None)
    for plan in ("plan.json", "model.plan.json"):
        assert main_exit(["model.onnx", "--dry-run", "--write-plan", plan], folder) == 0
    return folder


PARAGRAPHS = (("the big red house", "big", 4), ("green tree", "tree", 6), ("small blue car", "blue", 6))
QUESTIONS = json.dumps(
    {"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": text, "qas": [{"id": f"{answer}{i}", "question": f"{answer} {['red', 'car', 'green', 'tree'][i]}",
                                   "answers": [{"text": answer, "answer_start": start}]} for i in range(4)]}
        for text, answer, start in PARAGRAPHS]}]}
)  # fmt: skip


def model_bytes(folder: Path) -> bytes:
    """Two layers with the names of sites, inputs and outputs that the pages use."""
    save(bert_like(17), folder / "made.onnx")
    proto = onnx.load(folder / "made.onnx")
    (folder / "made.onnx").unlink()
    softmaxes = [node for node in proto.graph.node if node.op_type == "Softmax"]
    for node, number in zip(softmaxes, (95, 162), strict=True):
        node.name = f"node_Softmax_{number}"
    for i, name in enumerate(("start_logits", "end_logits")):
        proto.graph.initializer.append(helper.make_tensor(f"column_{i}", onnx.TensorProto.INT64, [], [i]))
        proto.graph.node.append(helper.make_node("Gather", ["logits", f"column_{i}"], [name], axis=2))
        proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", "L"]))
    proto.graph.node.append(helper.make_node("Identity", ["logits"], ["last_hidden_state"]))
    proto.graph.output.append(
        helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, ["B", "L", 20])
    )
    return proto.SerializeToString()


def main_exit(arguments: list[str], folder: Path) -> int:
    with contextlib.chdir(folder), pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("shown", quick([shown for shown in OURS if reason(shown) is None]))
def test_a_command_runs(shown: Shown, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "here"
    shutil.copytree(files, folder)
    words = [*shown.words[1:], *SHORTER.get(shown.words[1], "").split()]
    if shown.words[1] not in COMMANDS:
        words += ["--samples", "1"]
    code = main_exit(words, folder)
    says = capsys.readouterr()
    differs = shown.words[1] in ("diff", "verify", "tune") or "--max-deviation" in words
    assert code in ((0, 1) if differs else (0,)), (says.out[-500:], says.err[-500:])
    assert "Traceback" not in says.err


@pytest.mark.parametrize(
    "shown", [s for s in [*SHOWN, *commands(EXAMPLES)] if s.words[0] in ("make", "pip", "python")], ids=str
)
def test_other_programs_find_what_they_are_given(shown: Shown) -> None:
    """Targets of make, extras of pip, and scripts with their options."""
    program, *words = shown.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(words) <= set(targets)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        for word in words:
            assert not word.startswith("onnx-attnq"), f"{word} is on no package index yet: install the checkout"
            named = re.match(r"(?:\.|\.\./\.\.)\[([\w,]+)\]", word)
            assert named is None or set(named[1].split(",")) <= set(extras), word
    elif words[0] != "-m":
        script = next(path for path in (ROOT / words[0], shown.page.parent / words[0]) if path.exists())
        text = script.read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in text, option
