"""BERT-base with random weights: the rewritten model against the original and against its fused form, in turn.

    python benchmarks/end_to_end.py --tokens 128 --tokens 512 [--threads 2] [--opset 20] [--int8]

Above 1 is faster than the original. --int8 quantizes the weights of both with onnxruntime's quantize_dynamic.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
from bert import bert

from onnx_attnq.job import TimingSettings, bench, compress
from onnx_attnq.run import RunSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--int8", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        original, rewritten = Path(folder, "bert.onnx"), Path(folder, "bert.attnq.onnx")
        onnx.save(bert(arguments.layers, opset=arguments.opset), original)
        if arguments.int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantized = Path(folder, "bert.int8.onnx")
            quantize_dynamic(original, quantized, weight_type=QuantType.QInt8)
            original = quantized
        result = compress(original, rewritten, verification=None)
        print(f"{len(result.sites.sites)} sites, {arguments.threads} threads")
        timings, missing = bench(
            original,
            [rewritten],
            settings=TimingSettings(tuple(arguments.tokens or (128, 512)), repeats=arguments.repeats),
            run=RunSettings(arguments.threads),
        )
        print(f"{'variant':32} tokens    CPU ms   ratio  peak MB")
        for t in timings:
            print(f"{t.variant:32} {t.tokens:6} {t.cpu_ms:9.1f} {t.ratio:7.2f} {t.peak_mb or 0:8.0f}")
        for line in missing:
            print(f"not measured: {line}")


if __name__ == "__main__":
    main()
