"""Side by side with onnxsim's apply_attention_quantization: the table of docs/comparison.md.

    pip install onnxsim==0.8.1          # in an environment of its own: it is no dependency of onnx-attnq
    python benchmarks/onnxsim_attention.py FOLDER_OR_MODEL ... [--repeats 5]

For each ONNX file, with the sample of the same name beside it (X.npz) or one that is made up: how many attentions each
tool changes, the relative error and the cosine of the first floating-point output against the original, and CPU time
of one run relative to the original (above 1 is faster, one thread; --repeats 0 leaves it out).

onnxsim changes the products around an attention where it finds one: an attention counts as changed when its
probabilities are rounded, that is when a Softmax of the original is followed by what onnxsim puts there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim

from onnx_attnq.errors import AttnqError
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import Sample, load_samples, made_up_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session, native_library

RUN = RunSettings(1)


def by_onnxsim(path: Path, target: Path) -> int:
    """Write what onnxsim makes of a model; the attentions that it changed."""
    before = onnx.load(path)
    after = onnxsim.apply_attention_quantization(before)
    onnx.save(after, target)
    return rounded(after) - rounded(before)


def rounded(model: onnx.ModelProto) -> int:
    """Softmaxes whose result is scaled, rounded and clipped, in this graph."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_rounded(name: str, steps: int) -> bool:
        return steps > 0 and any(
            node.op_type in ("Round", "QuantizeLinear")
            or (node.op_type in ("Mul", "Div", "Clip") and is_rounded(node.output[0], steps - 1))
            for node in readers.get(name, ())
        )

    return sum(node.op_type == "Softmax" and is_rounded(node.output[0], 3) for node in model.graph.node)


def by_us(path: Path, target: Path) -> int:
    result = compress(path, target, verification=None, run=RUN)
    return 0 if result.record is None else len(result.record.sites)


def sample_of(path: Path) -> Sample:
    beside = path.with_suffix(".npz")
    model = load(path)
    return load_samples(beside, model)[0] if beside.exists() else made_up_samples(model, 1, run=RUN).samples[0]


def deviation(original: Session, other: Session, sample: Sample) -> tuple[float, float]:
    """Relative error and cosine of the first output that is a number with a fraction."""
    a, b = (session.run(sample) for session in (original, other))
    name = next(name for name in original.outputs if a[name].dtype.kind == "f")
    x, y = (np.asarray(found[name], np.float64).ravel() for found in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(x)), float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def times(sessions: list[Session], sample: Sample, repeats: int) -> list[float]:
    spent: list[list[float]] = [[] for _ in sessions]
    for number in range(repeats + 1):
        for session, found in zip(sessions, spent, strict=True):
            start = time.process_time()
            session.run(sample)
            if number:
                found.append(time.process_time() - start)
    return [statistics.median(found) for found in spent]


def row(path: Path, repeats: int, folder: Path) -> tuple[str, tuple[int, int, int]] | None:
    sites = len(find_sites(expose(load(path))).sites)
    if not sites:
        return None
    sample = sample_of(path)
    original = Session(path, RUN)
    cells, changed, sessions = [], [], [original]
    for name in ("onnxsim", "ours"):
        target = folder / f"{name}.onnx"
        try:
            count = (by_onnxsim if name == "onnxsim" else by_us)(path, target)
            session = Session(target, RUN, native=name == "ours" and native_library() is not None)
            error, cosine = deviation(original, session, sample)
        except Exception as problem:  # of either tool: the row says which
            cells.append(f"fails: {str(problem).splitlines()[0][:60]}")
            changed.append(0)
            continue
        changed.append(count)
        sessions.append(session)
        cells.append(f"{count} of {sites}" + (f", {error:.1e}, {cosine:.4f}" if count else ""))
    ratios = "-"
    if repeats:
        base, *others = times(sessions, sample, repeats)
        ratios = " / ".join(f"{base / other:.2f}" for other in others)
    return f"| {path.stem} | {' | '.join(cells)} | {ratios} |", (sites, changed[0], changed[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    files = [file for path in arguments.paths for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]
    print("| model | onnxsim: attentions, relative error, cosine | onnx-attnq | time, onnxsim / onnx-attnq |")
    print("| --- | --- | --- | --- |")
    total, models = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = row(file, arguments.repeats, Path(folder))
            except AttnqError as error:
                print(f"<!-- {file.name}: {error} -->", flush=True)
                continue
        if found is not None:
            print(found[0], flush=True)
            total += found[1]
            models += np.array(found[1]) > 0
    print(
        f"\n{models[0]} models with {total[0]} attentions: onnxsim {onnxsim.__version__} changes {total[1]} in ", end=""
    )
    print(f"{models[1]} models, onnx-attnq {total[2]} in {models[2]}")


if __name__ == "__main__":
    main()
