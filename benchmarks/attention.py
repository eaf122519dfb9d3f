"""QuantizedAttention of the native library against onnxruntime's MultiHeadAttention.

    make native && python benchmarks/attention.py [--int16] [--pruned 60] [--phases] [--lengths 128 512]
    python benchmarks/attention.py --scheme row-log:threshold=.1 --scheme row-log:threshold=.1,pruned=mean --pruned 83

All contenders run in turn. Of the process CPU time of their calls the least, the tenth percentile and the median are
printed, each as the time of MultiHeadAttention divided by theirs: above 1 is faster. On a shared machine others make
calls slower, never faster, so that the least says most about the kernels, and the median about that machine.
``dense`` is the same kernel with every key kept and exact probabilities: the step from 1 to it is what the kernel
gives, the step from it to the schemes what pruning gives.
``--scheme``, repeated, measures others; ``--pruned`` is about the first.
``--beside torch openvino`` adds their scaled_dot_product_attention, without a mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from onnx_attnq.rewriting import bodies
from onnx_attnq.run import native_library
from onnx_attnq.scheme import Pruned, QuantScheme, numerics, parse_scheme, preset

HEADS = 12
LENGTHS = [(128, 128), (384, 384), (512, 512), (1024, 1024), (2048, 2048), (4096, 4096), (1, 8192)]
DENSE = preset("identity")
PERCENTILES = (0, 10, 50)
"""Of the times of calls, that are compared."""
# Float32 multiply-and-adds in a cycle: two units of 16, 8 or 4 lanes each; Zen 4 does 512 bits in two halves.
FMA_PEAKS = {"avx512": "32, of Zen 4 16", "avx2": "16", "neon": "8"}

Run = Callable[[], object]
Tensors = dict[str, np.ndarray]


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(native_library()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def model_of(node: onnx.NodeProto, shape: dict[str, list[int]]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[name]) for name in node.input if name]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape["q"])
    opsets = [helper.make_opsetid(domain, 1) for domain in ("com.microsoft", bodies.DOMAIN)]
    graph = helper.make_graph([node], "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *opsets], ir_version=8)


def multi_head_attention(tensors: Tensors, threads: int, mask: np.ndarray | None = None) -> Run:
    feeds = {name: t.reshape(*t.shape[:2], -1) for name, t in tensors.items()}
    inputs = list("qkv")
    if mask is not None:
        inputs += ["", "", "mask"]  # attention_bias
        feeds["mask"] = mask
    node = helper.make_node("MultiHeadAttention", inputs, ["y"], domain="com.microsoft", num_heads=HEADS)
    opened = session(model_of(node, {name: list(t.shape) for name, t in feeds.items()}), threads)
    return lambda: opened.run(None, feeds)


def quantized_attention(
    tensors: Tensors, scheme: QuantScheme, threads: int, int16: bool = False, mask: np.ndarray | None = None
) -> Run:
    attributes = {a.name: a.value.numpy().reshape(-1) for a in bodies.scheme_attributes(scheme)}
    attributes |= {"scale": np.array([tensors["q"].shape[-1] ** -0.5]), "row_max_floor": np.array([-np.inf])}
    numbers = {
        k: helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.astype(np.float32)) for k, v in attributes.items()
    }
    perms = {"q_perm": [0, 2, 1, 3], "k_perm": [0, 2, 3, 1], "v_perm": [0, 2, 1, 3], "out_perm": [0, 2, 1, 3]}
    feeds = {**tensors, "mask": np.zeros((), np.float32) if mask is None else mask}
    op = bodies.attention_op(scheme)
    node = helper.make_node(op, [*"qkv", "mask"], ["y"], domain=bodies.DOMAIN, qk=int(int16), **numbers, **perms)
    opened = session(model_of(node, {name: list(t.shape) for name, t in feeds.items()}), threads)
    return lambda: opened.run(None, feeds)


def torch_attention(tensors: Tensors, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    q, k, v = (torch.from_numpy(t).transpose(1, 2) for t in tensors.values())

    def run() -> object:
        with torch.no_grad():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    return run


def openvino_attention(tensors: Tensors, threads: int) -> Run:
    import openvino
    import openvino.opset13 as ops

    parameters = [ops.parameter(list(t.transpose(0, 2, 1, 3).shape), np.float32) for t in tensors.values()]
    model = openvino.Model([ops.scaled_dot_product_attention(*parameters)], parameters, "attention")
    compiled = openvino.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    feeds = [np.ascontiguousarray(t.transpose(0, 2, 1, 3)) for t in tensors.values()]
    return lambda: compiled(feeds)


OTHERS = {"torch": torch_attention, "openvino": openvino_attention}


@dataclass(frozen=True)
class Shape:
    """One call: the benchmark's axes."""

    queries: int
    keys: int
    depth: int
    batch: int


def draw(shape: Shape, spread: float) -> Tensors:
    """Queries, keys and values (batch, length, heads, depth), with scores q.k / sqrt(depth) of this standard deviation."""
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal((shape.batch, length, HEADS, shape.depth)) * spread**0.5).astype(np.float32)
        for name, length in zip("qkv", (shape.queries, shape.keys, shape.keys), strict=True)
    }


def mask_of(kind: str, shape: Shape) -> np.ndarray:
    """An additive mask (1, 1, queries, keys) as exports have it: the lowest float32 where nothing is attended to."""
    low = np.finfo(np.float32).min
    if kind == "bias":
        return np.random.default_rng(1).standard_normal((1, 1, shape.queries, shape.keys)).astype(np.float32)
    if kind == "causal":
        seen = np.tri(shape.queries, shape.keys, shape.keys - shape.queries, dtype=bool)
    else:
        seen = np.broadcast_to(np.arange(shape.keys) < shape.keys * 3 // 4, (shape.queries, shape.keys))
    return np.where(seen, 0, low).astype(np.float32)[None, None]


def sparsity(tensors: Tensors, scheme: QuantScheme) -> float:
    """The share of keys that the scheme prunes; of one head's first 64 queries."""
    query = tensors["q"][0, :64, 0].astype(np.float64)
    scores = query @ tensors["k"][0, :, 0].T * query.shape[-1] ** -0.5
    return float((numerics.codes(numerics.relative(numerics.softmax(scores), scheme), scheme) == 0).mean())


def spread_for(shape: Shape, scheme: QuantScheme, share: float) -> float:
    """The spread of scores at which this share of the keys is pruned, by bisection."""
    low, high = 0.05, 6.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if sparsity(draw(shape, middle), scheme) < share else (low, middle)
    return (low + high) / 2


def call_times(runs: dict[str, Run], seconds: float) -> dict[str, np.ndarray]:
    """CPU seconds of the calls of each, made in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or len(times["mha"]) < 5:
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in times.items()}


def print_phases(
    lengths: list[tuple[int, int]], depth: int, scheme: QuantScheme, spread_of: Callable[[Shape], float]
) -> None:
    program = Path(__file__).parent.parent / "build" / "native" / "phases"
    if not program.is_file():
        sys.exit("build the program first: cmake -S custom_ops -B build/native -DONNX_ATTNQ_PROGRAMS=ON && make native")
    print(
        "cycles for 8 scores, of one thread, and products of queries and keys in a cycle beside what the float32 "
        "multiply-and-add units can do (16-bit integers and tiles can do more)"
    )
    for keys in sorted({keys for _, keys in lengths if keys <= 4096}):
        shares = int(scheme.pruned is Pruned.MEAN)
        arguments = [keys, depth, scheme.bits, scheme.threshold, spread_of(Shape(keys, keys, depth, 1)), 0, shares]
        command = [str(program), *map(str, arguments)]
        phases = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        steps = "  ".join(
            f"{step} {phases[f'{step}_cycles']:5.1f}" for step in ("scores", "weights", "context", "packing")
        )
        products = f"{phases['products_per_cycle']:.1f} products"
        peak = FMA_PEAKS.get(phases["kernels"])
        products += f" (float32 peak {peak})" if peak else ""
        print(f"{phases['kernels']} {keys:5d} keys  {phases['ghz']:.1f} GHz  {steps}  {products}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", help="tokens; default: the table of the documentation")
    parser.add_argument("--depth", type=int, default=64, help="size of a head")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the scores")
    parser.add_argument("--pruned", type=float, help="choose the spread so that this percentage of keys is pruned")
    parser.add_argument(
        "--scheme", action="append", help="NAME[:bits=B,threshold=T,pruned=P]; row-log-mean, row-log and ji2021"
    )
    parser.add_argument("--mask", choices=["causal", "padding", "bias"], help="padding: a quarter of the keys")
    parser.add_argument("--int16", action="store_true", help="also 16-bit products of queries and keys")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each length")
    parser.add_argument("--beside", nargs="*", choices=OTHERS, default=[], help="also these; they have to be installed")
    parser.add_argument("--phases", action="store_true", help="only print where the kernel spends its time")
    arguments = parser.parse_args()
    if native_library() is None:
        sys.exit("the native library was not built: make native")
    lengths = [(n, n) for n in arguments.lengths] if arguments.lengths else LENGTHS
    schemes = {text: parse_scheme(text) for text in arguments.scheme or ["row-log-mean", "row-log", "ji2021"]}
    scheme = next(iter(schemes.values()))

    def spread_of(shape: Shape) -> float:
        return arguments.spread if arguments.pruned is None else spread_for(shape, scheme, arguments.pruned / 100)

    if arguments.phases:
        print_phases(lengths, arguments.depth, scheme, spread_of)
        return

    kernels, threads = os.environ.get("ONNX_ATTNQ_ISA", "best"), arguments.threads
    print(
        f"onnxruntime {onnxruntime.__version__}, {HEADS} heads of {arguments.depth}, batch {arguments.batch}, ", end=""
    )
    print(
        f"threads {threads}, kernels: {kernels}; ratios of the least, the tenth percentile and the median of the calls"
    )
    for queries, keys in lengths:
        shape = Shape(queries, keys, arguments.depth, arguments.batch)
        tensors = draw(shape, spread_of(shape))
        mask = mask_of(arguments.mask, shape) if arguments.mask else None
        runs: dict[str, Run] = {
            "mha": multi_head_attention(tensors, threads, mask),
            **{text: quantized_attention(tensors, own, threads, mask=mask) for text, own in schemes.items()},
            "dense": quantized_attention(tensors, DENSE, threads, mask=mask),
        }
        if arguments.int16:
            for text, own in schemes.items():
                runs[f"{text} int16"] = quantized_attention(tensors, own, threads, int16=True, mask=mask)
        for other in arguments.beside:
            runs[other] = OTHERS[other](tensors, threads)
        times = call_times(runs, arguments.seconds)
        mha = np.percentile(times.pop("mha"), PERCENTILES)
        milliseconds = " ".join(f"{1e3 * value:.2f}" for value in mha)
        calls = len(next(iter(times.values())))
        print(f"{queries} x {keys}: {sparsity(tensors, scheme):.0%} pruned, {calls} calls, mha {milliseconds} ms")
        for name, own in times.items():
            ratios = " ".join(f"{ratio:8.2f}" for ratio in mha / np.percentile(own, PERCENTILES))
            print(f"    {name:40s} {ratios}", flush=True)


if __name__ == "__main__":
    main()
