"""What the proof costs: time as a multiple of loading, saving and one run of each variant; memory as one of the file.

    python benchmarks/cost.py [compress bisect bench starts] [--layers 12] [--batch 8] [--tokens 128] [--external]
        [--threads 2] [--model FILE]

The parts and each command run in processes of their own, on a BERT with random weights. Prints CPU seconds, wall
seconds, peak memory, and the two ratios; bisect's time as a multiple of a run of the model, and what bench needs beside
its timed runs. `--layers 12 --layers 48 --hidden 128` shows how it grows with depth, `--layers 1 --batch 1
--tokens 4096` what the probabilities of one long site take; `starts` times the command line. `--model` takes a model of
your own, with made-up samples.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from bert import bert

_FRAME = """
import json, os, sys, time
import numpy as np
from pathlib import Path
from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import TimingSettings, bench, compress
from onnx_attnq.run import peak_memory
from onnx_attnq.model import load, save
from onnx_attnq.run import RunSettings, Session, native_library
from onnx_attnq.verification import VerifySettings, bisect
source, target = Path(sys.argv[1]), Path(sys.argv[2])
batch, tokens, threads = map(int, sys.argv[3:])
run = RunSettings(threads or None)
ids = np.random.default_rng(0).integers(4, 900, (batch, tokens))
samples = ({{"input_ids": ids, "attention_mask": np.ones((batch, tokens), np.int64)}},)
if not batch:
    samples = generate_samples(load(source), 4)
def used():
    return sum(os.times()[:4])  # with the processes that have ended
cpu, wall, more = used(), time.perf_counter(), 0.0
{body}
print(json.dumps([used() - cpu, time.perf_counter() - wall, peak_memory(), more]))
"""
_PARTS = """
model = load(source)
save(model, target)
del model
for native in (False, False, True)[: 2 + (native_library() is not None)]:
    session = Session(source, run, native=native)
    start = time.process_time()
    for sample in samples:
        session.run(sample)
    more = time.process_time() - start
    del session
"""
_COMPRESS = """
assert compress(source, target, verification=VerifySettings(samples if batch else None), run=run).verification.passed
"""
_REWRITE = """
compress(source, target, verification=None)
"""
_BISECT = """
bisect(source, target, samples, run=run)
"""
_BENCH = """
marks = [("", used())]
def mark(what, done, total):
    marks.append((what, used()))
timings, _ = bench(source, (target,), settings=TimingSettings((tokens,), batch, repeats=5), run=run, progress=mark)
made = marks[1][1] - marks[0][1]
memory = sum(b[1] - a[1] for a, b in zip(marks, marks[1:]) if b[0].startswith("memory of"))
timed = sum(6 * (t.cpu_ms + t.cpu_ms * t.ratio) / 1e3 for t in timings if t.variant != "original")
more = [made, used() - cpu - made - memory - timed, memory]
"""


def measure(body: str, *arguments: object) -> tuple[float, float, float, Any]:
    """CPU seconds, wall seconds and peak megabytes of a process of its own, and what else the body counts."""
    command = [sys.executable, "-c", _FRAME.format(body=body), *map(str, arguments)]
    environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ  # as the command line has it
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu, wall, peak, more = json.loads(done.stdout)
    return cpu, wall, peak, more


def starts(folder: Path) -> None:
    """How long the command line takes to answer."""
    small = folder / "small.onnx"
    onnx.save(bert(2, 64, 1, vocabulary=100), small)
    for arguments in (["--help"], ["--version"], ["fingerprint", str(small)]):
        wall, cpu = [], []
        for _ in range(5):
            begin, used = time.perf_counter(), children()
            subprocess.run([sys.executable, "-m", "onnx_attnq", *arguments], capture_output=True, check=True)
            wall.append(time.perf_counter() - begin)
            cpu.append(children() - used)
        print(f"{arguments[0]:12} {statistics.median(cpu):.2f} s of CPU, {statistics.median(wall):.2f} s", flush=True)


def children() -> float:
    """CPU seconds of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["compress"], help="compress, bisect, bench, starts")
    parser.add_argument("--layers", type=int, action="append")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--model", type=Path, help="in place of BERT, for compress and bisect")
    parser.add_argument("--external", action="store_true", help="weights in a data file")
    arguments = parser.parse_args()
    for layers in arguments.layers or [12]:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.what == ["starts"]:
                starts(Path(folder))
                return
            source, target = Path(folder, "bert.onnx"), Path(folder, "out.onnx")
            rest = (arguments.batch, arguments.tokens, arguments.threads)
            if arguments.model is not None:
                source, rest = arguments.model, (0, 1, arguments.threads)
                size = source.stat().st_size / 2**20
            else:
                write_bert(source, layers, arguments.hidden, external=arguments.external)
                size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
            parts = measure(_PARTS, source, Path(folder, "copy.onnx"), *rest)
            print(f"{layers} layers, {size:.0f} MB" if arguments.model is None else source.name, flush=True)
            show("parts", *parts[:3], size, "load, save and a run of each variant")
            if "compress" in arguments.what:
                cpu, wall, peak, _ = measure(_COMPRESS, source, target, *rest)
                show("compress", cpu, wall, peak, size, f"{cpu / parts[0]:.2f} times the parts")
            else:
                measure(_REWRITE, source, target, *rest)
            if "bisect" in arguments.what:
                cpu, wall, peak, _ = measure(_BISECT, source, target, *rest)
                show("bisect", cpu, wall, peak, size, f"{cpu / parts[3]:.1f} runs of the model")
            if "bench" in arguments.what:
                cpu, wall, peak, rest_of = measure(_BENCH, source, target, *rest)
                made, sessions, memory = rest_of
                beside = f"beside the timed runs {made:.1f} s to make models, {sessions:.1f} s to make sessions"
                show("bench", cpu, wall, peak, size, f"{beside}, {memory:.1f} s to measure memory")
            if "starts" in arguments.what:
                starts(Path(folder))


def write_bert(path: Path, layers: int, hidden: int, *, external: bool) -> None:
    """In a function of its own, so that the weights are gone before anything is measured."""
    proto = bert(layers, hidden, hidden // 64)
    onnx.save(proto, path, save_as_external_data=external, location="bert.onnx.data")


def show(what: str, cpu: float, wall: float, peak: float, size: float, ratio: str) -> None:
    print(
        f"{what:9} {cpu:7.1f} s of CPU, {wall:6.1f} s, peak {peak:5.0f} MB, {peak / size:.2f} times the file; {ratio}",
        flush=True,
    )


if __name__ == "__main__":
    main()
