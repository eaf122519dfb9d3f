"""The pass for Olive, in an Olive workflow on a small local model. Needs the extra ``olive``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_transformers import bert_like

from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import read_record
from onnx_attnq.scheme import schemes_of

pytestmark = pytest.mark.pipeline

RUN = """
import json, sys
from olive.package_config import OlivePackageConfig
from olive.workflows import run
from onnx_attnq.olive_pass import PACKAGE_CONFIG
result = run(json.loads(sys.argv[1]), package_config=PACKAGE_CONFIG)
print("MODEL", result.get_best_candidate().model_path)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("olive")
    save(bert_like(17), tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    for index, sample in enumerate(generate_samples(bert_like(17), 4, 0)):
        np.savez(tmp_path / "data" / f"{index}.npz", **sample)
    return tmp_path / "model.onnx"


def run_workflow(model: Path, options: dict[str, object]) -> subprocess.CompletedProcess[str]:
    folder = model.parent
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "passes": {"attention": {"type": "OnnxAttentionQuantization", **options}},
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "no_artifacts": False,
    }
    # A process of its own: Olive sets up logging, telemetry and warnings of its own.
    quiet = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(config)], env=quiet, cwd=folder, capture_output=True, text=True
    )


def output_of(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.rpartition("MODEL ")[2].strip())


def test_a_workflow_rewrites_with_a_scheme(model: Path) -> None:
    written = output_of(run_workflow(model, {"scheme": "row-log:bits=2", "data": str(model.parent / "data")}))
    record = read_record(load(written))
    assert record is not None
    assert [schemes_of(site.scheme)[0].bits for site in record.sites] == [2, 2]


def test_a_workflow_tunes_within_a_loss(model: Path) -> None:
    written = output_of(run_workflow(model, {"max_loss": 0.6, "data": str(model.parent / "data")}))
    assert read_record(load(written)) is not None


def test_a_model_that_fails_the_bounds_is_no_output(model: Path) -> None:
    done = run_workflow(model, {"scheme": "row-log:bits=1,threshold=0.5", "max_deviation": ["max_abs<=0"]})
    assert "MODEL" not in done.stdout or done.returncode != 0
    assert "max_abs" in done.stdout + done.stderr
