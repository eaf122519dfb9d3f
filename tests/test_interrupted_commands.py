"""Ctrl-C in the middle of a run, in every command that runs models: one line, at once, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_graphs import parse
from text_models import tokenizer

from onnx_attnq.job import compress
from onnx_attnq.model import save

MODEL = (
    "(int64[B,L] input_ids) => (float[B,L,4] z, float[A,C] end)"
    " <float[1,1,4] table = {1.0,0.5,0.25,0.1}, int64[1] last = {2}, int64[2] wide = {1500,1500}>"
    " { f = Cast<to=1>(input_ids) u = Unsqueeze(f, last) x = Mul(u, table) xt = Transpose<perm=[0,2,1]>(x)"
    " s = MatMul(x, xt) p = Softmax<axis=-1>(s) z = MatMul(p, x) m = ReduceMean<keepdims=0>(z) h0 = Expand(m, wide) "
    + " ".join(f"h{i + 1} = MatMul(h{i}, h{i})" for i in range(500))
    + " end = Identity(h500) }"
)
"""One attention, and products that take minutes."""

COMMANDS = {
    "compress": "a.onnx -o out.onnx",
    "folder": "folder",
    "tuned": "a.onnx --data data --max-loss 1% --jobs 1 -o out.onnx",
    "verify": "verify a.onnx b.onnx",
    "bench": "bench a.onnx b.onnx --tokens 8",
    "bisect": "bisect a.onnx b.onnx",
    "analyze": "analyze a.onnx -o out",
    "evaluate": "evaluate a.onnx --task sentence-similarity --data pairs.csv --tokenizer words",
    "tune": "tune a.onnx --data data --max-loss 1% --jobs 1 -o out.json",
    "tune in two processes": "tune a.onnx --data data --max-loss 1% --jobs 2 -o out.json",
    "sweep": "sweep a.onnx --data data --jobs 1 -o out",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save(parse(MODEL), folder / "a.onnx")
    compress(folder / "a.onnx", folder / "b.onnx", verification=None)
    (folder / "folder").mkdir()
    shutil.copy(folder / "a.onnx", folder / "folder")
    (folder / "data").mkdir()
    for number in range(8):
        np.savez(folder / "data" / f"{number}.npz", input_ids=np.arange(5)[None] + number)
    (folder / "pairs.csv").write_text("sentence1,sentence2,score\nred green,blue,1.0\nred,big,2.0\n")
    tokenizer().save_pretrained(folder / "words")
    return folder


def take_interrupts() -> None:
    """Undo what a shell does to the jobs that it starts in the background: they, and their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_ends_at_once(name: str, files: Path, tmp_path: Path) -> None:
    before = sorted(path for path in files.rglob("*"))
    command = [sys.executable, "-m", "onnx_attnq", *COMMANDS[name].split()]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=files, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=take_interrupts
    ) as process:
        time.sleep(8)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)  # a run takes minutes
    assert error.strip() == "onnx-attnq: interrupted"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir() if path.name != ".ses"] == []  # which is of onnxruntime
    assert sorted(path for path in files.rglob("*")) == before
