"""What it costs that pruned values share what they summed to: the same kernel and threshold, `mean` over `zero`.

    cmake -S custom_ops -B build/native -DONNX_ATTNQ_PROGRAMS=ON && make native
    python benchmarks/cost_of_sharing.py [--lengths 128 512] [--seconds 4] [--pruned 73] [--counted 512]

For each length, and for one query over 8192 keys: instructions of a whole call, by valgrind, which depend on nothing
else that runs, and CPU time of calls in turn, medians. Padding is a quarter of the keys. Counting a call of 2048
queries takes minutes, so that calls of more than `--counted` queries are only timed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import time
from pathlib import Path

from attention import HEADS, Shape, draw, mask_of, quantized_attention, spread_for

from onnx_attnq.scheme import QuantScheme, preset

PROGRAM = Path(__file__).parent.parent / "build" / "native" / "phases"
MASKS = ("none", "causal", "padding")
ATTEND = "onnx_attnq::attend(onnx_attnq::Attention const&, onnx_attnq::Kernels const&, onnx_attnq::Host&)"


def instructions(shape: Shape, scheme: QuantScheme, spread: float, mask: str, shares: bool) -> float:
    """Of one call, for 8 scores."""
    arguments = [shape.keys, shape.depth, scheme.bits, scheme.threshold, spread, 0, int(shares)]
    arguments += [shape.queries, MASKS.index(mask), 1]
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--toggle-collect={ATTEND}"]
    done = subprocess.run([*valgrind, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind counted nothing: {done.stderr}")
    return int(found[1]) / (HEADS * shape.queries * shape.keys / 8)


def ratio_of_times(
    shape: Shape, zero: QuantScheme, mean: QuantScheme, spread: float, mask: str, seconds: float
) -> float:
    tensors = draw(shape, spread)
    given = None if mask == "none" else mask_of(mask, shape)
    calls = [quantized_attention(tensors, scheme, threads=1, mask=given) for scheme in (zero, mean)]
    ratios = []
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or len(ratios) < 9:
        times = []
        for call in calls:
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument(
        "--pruned", type=float, default=73, help="percent of the keys, which decides the spread of scores"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of calls in turn, for each row")
    parser.add_argument(
        "--counted", type=int, default=512, help="most queries of a call whose instructions are counted"
    )
    options = parser.parse_args()
    mean = preset("row-log-mean")
    zero = preset("row-log", bits=mean.bits, threshold=mean.threshold)
    print("| queries | keys | mask | instructions for 8 scores, zero | mean | ratio | ratio of times |")
    print("|---" * 7 + "|")
    shapes = [Shape(length, length, 64, 1) for length in options.lengths] + [Shape(1, 8192, 64, 1)]
    for shape in shapes:
        spread = spread_for(shape, mean, options.pruned / 100)
        for mask in MASKS if shape.queries > 1 else MASKS[:1]:
            counts = "not counted | |"
            if shape.queries <= options.counted:
                of_zero, of_mean = (instructions(shape, mean, spread, mask, shares) for shares in (False, True))
                counts = f"{of_zero:.1f} | {of_mean:.1f} | {of_mean / of_zero:.3f}"
            times = ratio_of_times(shape, zero, mean, spread, mask, options.seconds)
            print(f"| {shape.queries} | {shape.keys} | {mask} | {counts} | {times:.2f} |", flush=True)


if __name__ == "__main__":
    main()
