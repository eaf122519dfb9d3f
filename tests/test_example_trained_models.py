"""examples/trained_models: what its script does with a model, once it is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import small_models

SCRIPT = Path(__file__).parent.parent / "examples" / "trained_models" / "run.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trained_models", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_that_is_there_is_compressed_and_becomes_a_row(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    (tmp_path / "small").mkdir()
    small_models.write(small_models.attention(), tmp_path / "small" / "model.onnx")
    trained = script.Trained("small", "a test", "nothing==1", "somewhere/model.onnx")
    row = script.row(trained, script.compress(script.fetch(trained)))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["small", "a test", "`nothing==1`", "1 of 1"]
    assert cells[5] == "0"
    assert cells[-1] == "yes"
    assert (tmp_path / "small" / "model.attnq.onnx").exists()


def test_an_unknown_name_and_a_model_that_fails_end_the_script(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no model nothing; there are piper"):
        script.run(["nothing"])
    (tmp_path / "m.onnx").write_text("no model")
    with pytest.raises(SystemExit, match="failed with exit code 2"):
        script.compress(tmp_path / "m.onnx")


def test_every_package_is_pinned_and_every_file_is_a_model(script: ModuleType) -> None:
    for trained in script.MODELS:
        assert "==" in trained.package
        assert trained.file.endswith(".onnx")
    assert len({trained.name for trained in script.MODELS}) == len(script.MODELS) >= 4
