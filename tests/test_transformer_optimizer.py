"""The optimizer does with a few weights what it does with all, and gets all where it asks for others."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_attnq.model.files as files
import onnx_attnq.model.weights_in_file as weights_in_file
import onnx_attnq.run.transformer_optimizer as optimizer
from onnx_attnq.errors import InvalidModel
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session, optimize_transformer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bert import bert


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(bert(2, 64, 2, vocabulary=50), tmp_path / "a.onnx")
    for module, name in ((files, "LARGE_FILE"), (weights_in_file, "LARGE_TENSOR"), (optimizer, "_READ")):
        monkeypatch.setattr(module, name, 100)
    return tmp_path / "a.onnx"


def fused(path: Path) -> dict[str, int]:
    ops = [node.op_type for node in onnx.load(path).graph.node]
    return {op: ops.count(op) for op in set(ops)}


def test_few_weights_give_what_all_give(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    right = optimizer._optimized

    def noted(source: str | onnx.ModelProto, output: str | None) -> str | onnx.ModelProto | None:
        if isinstance(source, onnx.ModelProto):
            given.extend(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in source.graph.initializer)
        return right(source, output)

    monkeypatch.setattr(optimizer, "_optimized", noted)
    few, whole = path.with_name("few.onnx"), path.with_name("whole.onnx")
    optimize_transformer(path, few)
    assert any(given)
    assert not all(given)
    right(str(path), str(whole))
    assert fused(few) == fused(whole)
    assert fused(few)["Attention"] > 0
    for sample in generate_samples(load(path), 2):
        x, y = Session(few, RunSettings(1)).run(sample), Session(whole, RunSettings(1)).run(sample)
        assert all(np.array_equal(x[name], y[name]) for name in x)


def test_where_it_asks_for_others_it_gets_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "_merged", lambda model: set())
    optimize_transformer(path, path.with_name("few.onnx"))
    assert fused(path.with_name("few.onnx"))["Attention"] > 0


def test_the_log_of_the_optimizer_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidModel, match="no attention to fuse"):
        optimize_transformer(Path(__file__).parent / "models" / "bert__int8dyn-qattention.onnx", tmp_path / "x.onnx")
    assert caplog.records == []
    assert logging.root.manager.disable == logging.NOTSET
