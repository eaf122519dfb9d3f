"""A llama-like decoder with random weights, prefill and decode: the rewritten model against the original, in turn.

    python benchmarks/decoder.py [--context 2048:2080] [--int4] [--threads 2] [--memory] [--decode-only]

Past and present are bound to one buffer of the capacity behind the colon, as onnxruntime-genai does. Numbers are
medians of process CPU time of runs; above 1 is faster than the original. "flat" are weights as they come, with which
every key counts; "pruned" are scaled so that at least 80 % of the keys are pruned.

A step reads all weights, and how fast that is depends on where they happen to lie in memory: one session differs from
another of the same model by a tenth. So sessions are made anew (`--sessions`), in turn first and last.

`--memory` gives each variant a process of its own that decodes, and prints the peak of these steps. For a profile, one
variant alone: valgrind --tool=callgrind python benchmarks/decoder.py --variant native --sessions 1 --decode-only
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnx_attnq.job import compress
from onnx_attnq.run import native_library, peak_memory

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, WIDTH, VOCABULARY = 512, 4, 8, 2, 64, 1408, 512
CONTEXTS = ("128:160", "2048:2080", "2048:16384", "8192:8224")
SHARPENING = 16.0  # makes scores of standard deviation 0.2 into such of 3


def decoder(
    *, sharp: bool = False, packed: bool = True, layers: int = LAYERS, positions: int = 16384
) -> onnx.ModelProto:
    """The model in the form that onnxruntime-genai's builder emits: GroupQueryAttention with the rotation inside."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> str:
        return weight(name, (random.standard_normal((rows, columns)) * 0.02 * scale).astype(np.float32))

    def op(op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, outputs, name=f"node_{len(nodes)}", domain=domain, **attributes))
        return outputs[0]

    def norm(x: str, name: str) -> str:
        scale = weight(f"{name}.weight", np.ones(HIDDEN, np.float32))
        return op("SimplifiedLayerNormalization", [x, scale], [name], epsilon=1e-5, axis=-1, stash_type=1)

    angles = np.arange(positions)[:, None] / 10000.0 ** (np.arange(HEAD_SIZE // 2) * 2 / HEAD_SIZE)
    cos, sin = (weight(n, f(angles).astype(np.float32)) for n, f in (("cos_cache", np.cos), ("sin_cache", np.sin)))
    one, axis = weight("one", np.array([1], np.int64)), weight("axis", np.array(1, np.int64))
    summed = op("ReduceSum", ["attention_mask", one], ["mask_sum"], keepdims=0)
    last = op("Cast", [op("Sub", [summed, one], ["last"])], ["seqlens_k"], to=TensorProto.INT32)
    length = op("Gather", [op("Shape", ["attention_mask"], ["mask_shape"]), axis], ["length"], axis=0)
    total = op("Cast", [length], ["total_sequence_length"], to=TensorProto.INT32)

    x = op("Gather", [matrix("embedding", VOCABULARY, HIDDEN, 50.0), "input_ids"], ["embedded"])
    sharpening = SHARPENING if sharp else 1.0
    sizes = {"q": (HEADS * HEAD_SIZE, sharpening), "k": (KV_HEADS * HEAD_SIZE, 1.0), "v": (KV_HEADS * HEAD_SIZE, 1.0)}
    for i in range(layers):
        h = norm(x, f"norm_{i}")
        columns = {n: random.standard_normal((HIDDEN, size)) * 0.02 * scale for n, (size, scale) in sizes.items()}
        if packed:
            joined = weight(f"qkv_{i}.weight", np.concatenate(list(columns.values()), axis=1).astype(np.float32))
            qkv = [op("MatMul", [h, joined], [f"qkv_{i}"]), "", ""]
        else:
            qkv = [
                op("MatMul", [h, weight(f"{n}_{i}.weight", w.astype(np.float32))], [f"{n}_{i}"])
                for n, w in columns.items()
            ]
        past = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
        present = [f"present.{i}.{kind}" for kind in ("key", "value")]
        attention = op(
            "GroupQueryAttention",
            [*qkv, *past, last, total, cos, sin],
            [f"attention_{i}", *present],
            "com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            scale=HEAD_SIZE**-0.5,
            do_rotary=1,
        )
        projected = op("MatMul", [attention, matrix(f"o_{i}.weight", HEADS * HEAD_SIZE, HIDDEN)], [f"o_{i}"])
        x = op("Add", [x, projected], [f"after_attention_{i}"])
        h = norm(x, f"norm_mlp_{i}")
        gate = op("MatMul", [h, matrix(f"gate_{i}.weight", HIDDEN, WIDTH)], [f"gate_{i}"])
        up = op("MatMul", [h, matrix(f"up_{i}.weight", HIDDEN, WIDTH)], [f"up_{i}"])
        gated = op("Mul", [gate, op("Sigmoid", [gate], [f"sigmoid_{i}"])], [f"silu_{i}"])
        product = op("Mul", [gated, up], [f"gated_{i}"])
        down = op("MatMul", [product, matrix(f"down_{i}.weight", WIDTH, HIDDEN)], [f"down_{i}"])
        x = op("Add", [x, down], [f"after_mlp_{i}"])
    h = norm(x, "norm_last")
    op("MatMul", [h, matrix("lm_head.weight", HIDDEN, VOCABULARY)], ["logits"])

    def info(name: str, element_type: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element_type, shape)

    cache = ("batch_size", KV_HEADS, "past_sequence_length", HEAD_SIZE)
    grown = ("batch_size", KV_HEADS, "total_sequence_length", HEAD_SIZE)
    names = [f"{i}.{kind}" for i in range(layers) for kind in ("key", "value")]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            info("input_ids", TensorProto.INT64, "batch_size", "sequence_length"),
            info("attention_mask", TensorProto.INT64, "batch_size", "total_sequence_length"),
            *(info(f"past_key_values.{name}", TensorProto.FLOAT, *cache) for name in names),
        ],
        [
            info("logits", TensorProto.FLOAT, "batch_size", "sequence_length", VOCABULARY),
            *(info(f"present.{name}", TensorProto.FLOAT, *grown) for name in names),
        ],
        weights,
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def int4(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the weights of its products in 4 bits, blocks of 32, by onnxruntime's quantizer."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model


class Decoder:
    """A session whose caches are one buffer each, past and present."""

    def __init__(self, path: Path, capacity: int, *, native: bool, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if native:
            options.register_custom_ops_library(str(native_library()))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._caches = {}
        for value in self._session.get_inputs():
            if value.name.startswith("past_key_values."):
                cache = np.zeros((1, value.shape[1], capacity, value.shape[3]), np.float32)
                self._caches[value.name] = onnxruntime.OrtValue.ortvalue_from_numpy(cache)

    def fill(self, rng: np.random.Generator) -> None:
        """Random numbers for caches."""
        for cache in self._caches.values():
            cache.update_inplace(rng.standard_normal(cache.shape()).astype(np.float32))

    def _bind(self, ids: Any, past: int) -> None:
        binding = self._binding
        binding.bind_cpu_input("input_ids", ids[None])
        binding.bind_cpu_input("attention_mask", np.ones((1, past + len(ids)), np.int64))
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        binding.bind_output("logits")

    def step(self, ids: Any, past: int) -> Any:
        """The logits of tokens (L,) after a past of that many tokens, which are in the caches."""
        self._bind(ids, past)
        self._session.run_with_iobinding(self._binding)
        return self._binding.get_outputs()[-1].numpy()

    def timed(self, ids: Any, past: int) -> float:
        """Process CPU time of the run of a step, seconds."""
        self._bind(ids, past)
        start = time.process_time()
        self._session.run_with_iobinding(self._binding)
        return time.process_time() - start


@dataclasses.dataclass(frozen=True)
class How:
    """What to run: repeats of each of so many sessions, of these variants."""

    variants: tuple[str, ...]
    threads: int
    repeats: int
    sessions: int
    memory: bool
    decode_only: bool  # with a past of random numbers


def made(folder: Path, variant: str, capacity: int, how: How) -> Decoder:
    """A session of a variant."""
    path = folder / ("decoder.onnx" if variant == "original" else "decoder.attnq.onnx")
    session = Decoder(path, capacity, native=variant == "native", threads=how.threads)
    if how.decode_only:
        session.fill(np.random.default_rng(2))
    return session


def peak_of_steps(folder: Path, variant: str, length: int, capacity: int, how: How) -> float:
    """Peak memory of this process while it decodes, megabytes."""
    session = made(folder, variant, capacity, how)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of loading, is forgotten
    for _ in range(3):
        session.step(np.zeros(1, np.int64), length)
    return peak_memory()


def compare(folder: Path, context: str, how: How) -> None:
    """Prints a line for each of prefill and decode, and one for memory."""
    length, capacity = map(int, context.split(":"))
    ids = np.random.default_rng(1).integers(0, VOCABULARY, length + 1)
    phases = (
        {"decode": (ids[-1:], length)} if how.decode_only else {"prefill": (ids[:-1], 0), "decode": (ids[-1:], length)}
    )
    spent: dict[str, dict[str, list[float]]] = {phase: {name: [] for name in how.variants} for phase in phases}
    for turn in range(how.sessions):
        in_turn = how.variants[:: -1 if turn % 2 else 1]
        sessions = {name: made(folder, name, capacity, how) for name in in_turn}
        for phase, (tokens, past) in phases.items():
            for repeat in range(how.repeats * (4 if phase == "decode" else 1) + 1):
                for name, session in sessions.items():
                    seconds = session.timed(tokens, past)
                    if repeat > 0:
                        spent[phase][name].append(seconds)
    for phase, times in spent.items():
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        first = medians[how.variants[0]]
        columns = "  ".join(f"{name} {x * 1e3:9.2f} ms {first / x:5.2f}" for name, x in medians.items())
        print(f"  {context:11} {phase:8} {columns}", flush=True)
    if how.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = {name: pool.apply(peak_of_steps, (folder, name, length, capacity, how)) for name in how.variants}
        columns = "  ".join(f"{name} {x:9.1f} MB {x / peaks[how.variants[0]]:5.3f}" for name, x in peaks.items())
        print(f"  {context:11} memory   {columns}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", action="append", help="tokens:capacity")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--int4", action="store_true")
    parser.add_argument("--separate", action="store_true", help="query, key and value as three inputs")
    parser.add_argument("--weights", choices=("flat", "pruned"), action="append")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--decode-only", action="store_true", help="no prompt: random numbers for a past")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--variant", choices=("original", "portable", "native"), action="append")
    arguments = parser.parse_args()
    variants = arguments.variant or ["original", "portable", *(["native"] if native_library() is not None else [])]
    given = {
        field.name: getattr(arguments, field.name) for field in dataclasses.fields(How) if field.name != "variants"
    }
    how = How(tuple(variants), **given)
    for weights in arguments.weights or ("flat", "pruned"):
        print(f"{weights}, {'int4' if arguments.int4 else 'float32'}, {arguments.threads} threads")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = decoder(sharp=weights == "pruned", packed=not arguments.separate)
            onnx.save(int4(model) if arguments.int4 else model, folder / "decoder.onnx")
            compress(folder / "decoder.onnx", folder / "decoder.attnq.onnx", verification=None)
            for context in arguments.context or CONTEXTS:
                compare(folder, context, how)


if __name__ == "__main__":
    main()
