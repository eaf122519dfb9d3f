"""What rewriting a 440 MB BERT-base with external data costs beside loading and saving it with onnx_ir.

    python benchmarks/rewrite.py

Every run is a process of its own; the two take turns. Prints medians, the median ratio of a turn, and peak memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
from bert import bert

_OURS = """
from onnx_attnq.job import compress
compress(sys.argv[1], sys.argv[2], verification=None)
"""
_THEIRS = """
import onnx_ir
onnx_ir.save(onnx_ir.load(sys.argv[1]), sys.argv[2], external_data=sys.argv[2].rsplit('/', 1)[-1] + '.data')
"""
# Imports are not what is measured, so they come before the clock starts.
_FRAME = """
import sys, time
import onnx_ir, onnx_attnq.job
from onnx_attnq.run import peak_memory
cpu, wall = time.process_time(), time.perf_counter()
{body}
print(time.process_time() - cpu, time.perf_counter() - wall, peak_memory())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "bert.onnx")
        onnx.save(bert(arguments.layers), source, save_as_external_data=True, location="bert.onnx.data")
        runs: dict[str, list[list[float]]] = {"onnx-attnq": [], "onnx_ir": []}
        for _ in range(arguments.repeats):
            for name, body in (("onnx-attnq", _OURS), ("onnx_ir", _THEIRS)):
                target = Path(folder, f"{name}.onnx")
                command = [sys.executable, "-c", _FRAME.format(body=body), str(source), str(target)]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs[name].append([float(number) for number in printed.split()])
                target.unlink()
                Path(f"{target}.data").unlink(missing_ok=True)
                time.sleep(0.2)  # let the page cache write back
        medians = {
            name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in runs.items()
        }
        for name, (cpu, wall, peak) in medians.items():
            print(f"{name:12} CPU {cpu:6.2f} s  elapsed {wall:6.2f} s  peak {peak:6.0f} MB")
        turns = list(zip(runs["onnx-attnq"], runs["onnx_ir"], strict=True))
        cpu, wall = (statistics.median(ours[i] / theirs[i] for ours, theirs in turns) for i in (0, 1))
        print(f"ratio        CPU {cpu:6.2f}    elapsed {wall:6.2f}")


if __name__ == "__main__":
    main()
