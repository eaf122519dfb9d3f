"""Ctrl-C ends a run of onnxruntime at its next op, and not when the run is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_models

from onnx_attnq.interruption import running, stopping_runs

RUN = """
import signal, sys
import numpy as np
from onnx_attnq.interruption import stopping_runs
from onnx_attnq.run import RunSettings, Session
signal.signal(signal.SIGINT, signal.default_int_handler)
session = Session(sys.argv[1], RunSettings(1))
with stopping_runs():
    print("ready", flush=True)
    try:
        session.run({"x": np.zeros((1500, 1500), np.float32)})
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to another process")
def test_a_run_of_minutes_ends_at_once(tmp_path: Path) -> None:
    products = " ".join(f"h{i + 1} = MatMul(h{i}, h{i})" for i in range(500))
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> f (float[A,A] x) => (float[A,A] h500) {{ h0 = Exp(x) {products} }}'
    )
    model = small_models.write(small_models.parse(text), tmp_path / "long.onnx")
    process = subprocess.Popen([sys.executable, "-c", RUN, str(model)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)  # 500 products take minutes
    assert said == "interrupted\n"
    assert process.returncode == 0


class Options:
    terminate = False


def interrupted_run(options: Options) -> None:
    with stopping_runs(), running(options):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)
            while not options.terminate:
                time.sleep(0.01)


def test_only_what_runs_is_stopped() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted_run(Options())
    with stopping_runs(), running(Options()) as later:
        time.sleep(0.05)
    assert not later.terminate
    assert signal.set_wakeup_fd(-1) == -1
