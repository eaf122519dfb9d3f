"""What the proof costs: time as a multiple of loading, saving and one run of each variant; memory as one of the file.

    python benchmarks/cost.py [--layers 12] [--batch 8] [--tokens 128] [--external] [--threads 2]

The parts and the whole job run in processes of their own, on a BERT with random weights. Prints CPU seconds, wall
seconds, peak memory, and the two ratios. `--layers 12 --layers 48 --hidden 256` shows how it grows with depth.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
from bert import bert

_FRAME = """
import sys, time
import numpy as np
from pathlib import Path
from onnx_attnq.job import compress
from onnx_attnq.job.timing import peak_memory
from onnx_attnq.model import load, save
from onnx_attnq.run import RunSettings, Session, native_library
from onnx_attnq.verification import VerifySettings
source, target = Path(sys.argv[1]), Path(sys.argv[2])
batch, tokens, threads = map(int, sys.argv[3:])
run = RunSettings(threads or None)
random = np.random.default_rng(0)
samples = ({{"input_ids": random.integers(4, 30000, (batch, tokens)), "attention_mask": np.ones((batch, tokens), np.int64)}},)
cpu, wall = time.process_time(), time.perf_counter()
{body}
print(time.process_time() - cpu, time.perf_counter() - wall, peak_memory())
"""
_PARTS = """
model = load(source)
save(model, target)
del model
Session(source, run).run(samples[0])
Session(target, run).run(samples[0])
if native_library() is not None:
    Session(target, run, native=True).run(samples[0])
"""
_WHOLE = """
assert compress(source, target, verification=VerifySettings(samples), run=run).verification.passed
"""


def measure(body: str, *arguments: object) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak megabytes of a process of its own."""
    command = [sys.executable, "-c", _FRAME.format(body=body), *map(str, arguments)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu, wall, peak = map(float, printed.split())
    return cpu, wall, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, action="append")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--external", action="store_true", help="weights in a data file")
    arguments = parser.parse_args()
    print("layers  file MB  parts: CPU s  wall s  whole: CPU s  wall s  CPU ratio  peak MB  peak ratio")
    for layers in arguments.layers or [12]:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "bert.onnx")
            proto = bert(layers, arguments.hidden, arguments.hidden // 64)
            onnx.save(proto, source, save_as_external_data=arguments.external, location="bert.onnx.data")
            del proto
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
            rest = (arguments.batch, arguments.tokens, arguments.threads)
            parts = measure(_PARTS, source, Path(folder, "copy.onnx"), *rest)
            whole = measure(_WHOLE, source, Path(folder, "out.onnx"), *rest)
            print(
                f"{layers:6} {size:8.0f} {parts[0]:13.1f} {parts[1]:7.1f} {whole[0]:13.1f} {whole[1]:7.1f} "
                f"{whole[0] / parts[0]:10.2f} {whole[2]:8.0f} {whole[2] / size:11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
