"""Exports of small random models, by optimum and by torch.onnx: equal to PyTorch, and found by the rewriter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("optimum.onnxruntime", reason="needs the extra 'export'", exc_type=ImportError)

import torch
import transformers
from random_models import source
from text_models import WORDS, tokenizer

from onnx_attnq.cli import main
from onnx_attnq.errors import CannotWrite, ExportFailed, InvalidModel
from onnx_attnq.evaluate import TextModel, load_tokenizer
from onnx_attnq.export import AttentionImplementation, Exporter, export
from onnx_attnq.job import compress
from onnx_attnq.run import RunSettings, Session

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("default"),  # transformers, torch and optimum warn about one another
]

ROOT = Path(__file__).parent.parent
ATOL = 1e-4
"""Float32 rounding of a model with two layers."""


@pytest.mark.parametrize("attention", list(AttentionImplementation))
@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("ForQuestionAnswering", "question-answering"),
        pytest.param("ForMaskedLM", "fill-mask", marks=pytest.mark.slow),
        pytest.param("Model", "feature-extraction", marks=pytest.mark.slow),
    ],
)
def test_optimum_exports_what_it_knows(
    tmp_path: Path, head: str, task: str, attention: AttentionImplementation
) -> None:
    made = export(source(tmp_path / "bert", "Bert", head), tmp_path / "onnx", attention=attention)
    assert (made.task, made.exporter, made.files) == (task, Exporter.OPTIMUM, ("model.onnx",))
    assert load_tokenizer(made.folder)("red").input_ids == [2, WORDS.index("red"), 3]
    assert len(compress(made.folder / "model.onnx").sites.sites) == 2


def test_a_decoder_gets_a_past(tmp_path: Path) -> None:
    folder = source(tmp_path / "llama", "Llama", "ForCausalLM", num_key_value_heads=2)
    made = export(folder, tmp_path / "onnx")
    assert made.task == "text-generation-with-past"
    result = compress(made.folder / "model.onnx")
    assert result.verification is not None
    assert result.verification.passed
    ids = [[5, 6, 7, 8]]
    model = TextModel.load(made.folder / "model.onnx", tokenizer(), run=RunSettings(1))
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(ids)).logits.detach().numpy()
    np.testing.assert_allclose(model.logits({"input_ids": ids}), expected, atol=ATOL)


@pytest.mark.slow
def test_torch_exports_what_optimum_does_not_know(tmp_path: Path) -> None:
    folder = source(tmp_path / "ernie", "Ernie", "ForMaskedLM")
    made = export(folder, tmp_path / "onnx")
    assert (made.task, made.exporter) == ("fill-mask", Exporter.TORCH)
    model = TextModel.load(made.folder / "model.onnx", load_tokenizer(made.folder), run=RunSettings(1))
    tokens = model.tokenizer(["red house big car tree"])
    reference = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    expected = reference(**{name: torch.tensor(value) for name, value in tokens.items()}).logits.detach().numpy()
    np.testing.assert_allclose(model.logits(tokens), expected, atol=ATOL)
    assert len(compress(made.folder / "model.onnx").sites.sites) == 2


@pytest.mark.parametrize(("architecture", "opset"), [("Bert", 16), pytest.param("Ernie", 20, marks=pytest.mark.slow)])
def test_either_exporter_writes_the_opset_that_is_asked_for(tmp_path: Path, architecture: str, opset: int) -> None:
    made = export(source(tmp_path / "model", architecture, "ForMaskedLM"), tmp_path / "onnx", opset=opset)
    (found,) = (entry.version for entry in onnx.load(made.folder / "model.onnx").opset_import if entry.domain == "")
    assert found == opset


def test_torch_exports_images(tmp_path: Path) -> None:
    folder = source(tmp_path / "ijepa", "IJepa", "ForImageClassification", image_size=32, patch_size=8)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    made = export(folder, tmp_path / "onnx")
    assert (made.task, made.exporter) == ("image-classification", Exporter.TORCH)
    assert transformers.AutoImageProcessor.from_pretrained(made.folder).size == {"height": 32, "width": 32}
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    found = Session(made.folder / "model.onnx").run({"pixel_values": images})["logits"]
    reference = transformers.AutoModelForImageClassification.from_pretrained(folder)
    np.testing.assert_allclose(found, reference(torch.tensor(images)).logits.detach().numpy(), atol=ATOL)
    assert len(compress(made.folder / "model.onnx").sites.sites) == 2


def test_what_neither_exporter_takes_is_one_line(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    folder = source(tmp_path / "umt5", "UMT5", "ForConditionalGeneration", **sizes)
    with pytest.raises(ExportFailed, match=r"does not know the architecture 'umt5', and by torch.onnx only") as caught:
        export(folder, tmp_path / "onnx")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["umt5"]


def test_the_command_exports_and_compresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = source(tmp_path / "bert", "Bert", "ForSequenceClassification")
    with pytest.raises(SystemExit) as caught:
        main(["export", str(folder), "-o", str(tmp_path / "onnx"), "--attn", "eager", "--compress", "--json", "-"])
    assert not caught.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "text-classification"
    assert [Path(path).name for path in report["compressed"]] == ["model.attnq.onnx"]
    assert (tmp_path / "onnx" / "model.attnq.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", [(), ("--task", "fill-mask")])  # whether optimum is imported early or late
def test_notes_of_the_exporter_are_not_shown(tmp_path: Path, task: tuple[str, ...]) -> None:
    """optimum has one about tied weights. In a process of its own: loggers are set up once."""
    folder = source(tmp_path / "bert", "Bert", "ForMaskedLM")
    command = [sys.executable, "-m", "onnx_attnq", "export", str(folder), "-o", str(tmp_path / "onnx"), *task]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "tied weights" not in done.stderr
    assert "fill-mask, by optimum" in done.stdout


@pytest.mark.parametrize(
    ("exporter", "architecture"), [("by_optimum", "Bert"), pytest.param("by_torch", "Ernie", marks=pytest.mark.slow)]
)
def test_an_export_that_differs_from_pytorch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str, architecture: str
) -> None:
    """No exporter is wrong on demand; with no room for rounding, a right one differs too."""
    monkeypatch.setattr(f"onnx_attnq.export.{exporter}.ATOL", 1e-12)
    folder = source(tmp_path / "model", architecture, "ForMaskedLM")
    with pytest.raises(ExportFailed, match=r"differs from PyTorch|deviates from PyTorch") as caught:
        export(folder, tmp_path / "onnx")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unknown_task_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = source(tmp_path / "bert", "Bert", "ForMaskedLM")
    with pytest.raises(ExportFailed, match="no-such-task") as caught:
        export(folder, tmp_path / "onnx", task="no-such-task")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert"]


def test_a_folder_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    folder = source(tmp_path / "bert", "Bert", "ForMaskedLM")
    with pytest.raises(CannotWrite, match="not empty"):
        export(folder, folder)
    assert (folder / "model.safetensors").exists()


def test_a_model_class_without_a_task(tmp_path: Path) -> None:
    folder = source(tmp_path / "bert", "Bert", "ForMaskedLM")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(InvalidModel, match=r"NoSuchModel.*--task"):
        export(folder, tmp_path / "onnx")


def test_no_such_folder_offline(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="not a model folder"):
        export(tmp_path / "none", tmp_path / "onnx", local_only=True)
