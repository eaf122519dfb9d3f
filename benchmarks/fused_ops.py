"""Fused attention ops, each alone and with its features, against what they are rewritten into, in turn.

    python benchmarks/fused_ops.py [--threads 2] [--only gqa] [--one-buffer]

Numbers are medians of process CPU time; above 1 is faster than the original. The rule by which `compress` leaves a fused
op as it is (onnx_attnq/rewriting/fused_rule.py) rests on them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnx_attnq.errors import AttnqError
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import RunSettings, Session, native_library
from onnx_attnq.scheme import preset

HEADS, GROUPS, SIZE = 8, 2, 64
Inputs = dict[str, Any]


def model(op_type: str, inputs: Inputs, outputs: int, domain: str, opset: int, attributes: Inputs) -> onnx.ModelProto:
    """One node; inputs whose name begins with ``skip`` are left out."""
    names = ["" if name.startswith("skip") else name for name in inputs]
    fed = {name: array for name, array in inputs.items() if not name.startswith("skip")}
    node = helper.make_node(op_type, names, [f"o{i}" for i in range(outputs)], "node", domain=domain, **attributes)
    kinds = [inputs["query"].dtype, *[inputs.get("past_key", inputs["query"]).dtype] * (outputs - 1)]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in fed.items()],
        [
            helper.make_tensor_value_info(f"o{i}", helper.np_dtype_to_tensor_dtype(kind), None)
            for i, kind in enumerate(kinds)
        ],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def draw(*shape: int, spread: float = 1.0) -> Any:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * spread).astype(np.float32)


def gqa(
    queries: int, keys: int, dtype: Any = np.float32, more: Inputs | None = None, **attributes: Any
) -> onnx.ModelProto:
    """GroupQueryAttention with a past of ``keys - queries``, in a cache of twice the keys."""
    caches = {name: draw(1, GROUPS, 2 * keys, SIZE).astype(dtype) for name in ("past_key", "past_value")}
    inputs = {
        "query": draw(1, queries, HEADS * SIZE, spread=3.0).astype(dtype),
        **{name: draw(1, queries, GROUPS * SIZE).astype(dtype) for name in ("key", "value")},
        **caches,
        "seqlens_k": np.array([keys - 1], np.int32),
        "total_sequence_length": np.array([keys], np.int32),
        **(more or {}),
    }
    how = {"num_heads": HEADS, "kv_num_heads": GROUPS, **attributes}
    return model("GroupQueryAttention", inputs, 3, "com.microsoft", 21, how)


def gqa_int8(queries: int, keys: int, kind: str) -> onnx.ModelProto:
    """The same with caches of 8-bit integers; a query's scores are as widely spread."""
    caches = {name: draw(1, GROUPS, 2 * keys, SIZE).astype(np.int8) for name in ("past_key", "past_value")}
    steps = (1,) if kind == "PER_TENSOR" else (1, GROUPS, 1, SIZE)
    scales = {name: np.full(steps, 1 / 30, np.float32) for name in ("k_scale", "v_scale")}
    how = {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": 8}
    return gqa(queries, keys, more={**caches, **skipped(5), **scales}, **how)


def skipped(count: int) -> Inputs:
    return {f"skip{i}": None for i in range(count)}


def attention(
    queries: int, keys: int, groups: int = HEADS, dtype: Any = np.float32, mask: str = "", **how: Any
) -> onnx.ModelProto:
    """ai.onnx Attention; with fewer queries than keys the rest of the keys is a past. `mask` is the name of that input."""
    past = {
        name: draw(1, groups, keys - queries, SIZE).astype(dtype)
        for name in ("past_key", "past_value")
        if keys > queries
    }
    given = {mask: np.zeros((queries, keys), np.float32)} if mask else ({"skip": None} if past else {})
    inputs = {
        "query": draw(1, queries, HEADS * SIZE, spread=3.0).astype(dtype),
        **{name: draw(1, queries, groups * SIZE).astype(dtype) for name in ("key", "value")},
        **given,
        **past,
    }
    how = {"q_num_heads": HEADS, "kv_num_heads": groups, **how}
    return model("Attention", inputs, 3 if past else 1, "", 23, how)


def mha(queries: int, keys: int, *, mask: bool = False, **how: Any) -> onnx.ModelProto:
    past = {name: draw(1, HEADS, keys - queries, SIZE) for name in ("past_key", "past_value") if keys > queries}
    given = {"skip": None, "mask": np.ones((1, keys), np.int32), "skip2": None} if mask or past else {}
    if given and not mask:
        given = skipped(3)
    inputs = {
        "query": draw(1, queries, HEADS * SIZE, spread=3.0),
        **{name: draw(1, queries, HEADS * SIZE) for name in ("key", "value")},
        **given,
        **past,
    }
    return model("MultiHeadAttention", inputs, 3 if past else 1, "com.microsoft", 17, {"num_heads": HEADS, **how})


def cases(prompt: int, past: int) -> dict[str, Callable[[], onnx.ModelProto]]:
    half = np.float16
    both = {"prompt": (prompt, prompt), "step": (1, past + 1)}
    found: dict[str, Callable[[], onnx.ModelProto]] = {}
    for phase, (queries, keys) in both.items():
        sink = {**skipped(4), "head_sink": np.zeros(HEADS, np.float32)}
        bias = {**skipped(3), "attention_bias": np.zeros((1, 1, queries, keys), np.float32)}
        found |= {
            f"gqa, {phase}": lambda q=queries, k=keys: gqa(q, k),
            f"gqa, window, {phase}": lambda q=queries, k=keys: gqa(q, k, local_window_size=256),
            f"gqa, softcap, {phase}": lambda q=queries, k=keys: gqa(q, k, softcap=30.0),
            f"gqa, sinks, {phase}": lambda q=queries, k=keys, m=sink: gqa(q, k, more=m),
            f"gqa, bias, {phase}": lambda q=queries, k=keys, m=bias: gqa(q, k, more=m),
            f"gqa, float16, {phase}": lambda q=queries, k=keys: gqa(q, k, half),
            f"gqa, int8, {phase}": lambda q=queries, k=keys: gqa_int8(q, k, "PER_TENSOR"),
            f"gqa, int8 by channel, {phase}": lambda q=queries, k=keys: gqa_int8(q, k, "PER_CHANNEL"),
            f"mha, {phase}": lambda q=queries, k=keys: mha(q, k),
            f"mha, padding, {phase}": lambda q=queries, k=keys: mha(q, k, mask=True),
            f"mha, causal, {phase}": lambda q=queries, k=keys: mha(q, k, unidirectional=1),
            f"attention 23, {phase}": lambda q=queries, k=keys: attention(q, k),
            f"attention 23, causal, {phase}": lambda q=queries, k=keys: attention(q, k, is_causal=1),
            f"attention 23, mask, {phase}": lambda q=queries, k=keys: attention(q, k, mask="mask"),
            f"attention 23, causal mask, {phase}": lambda q=queries, k=keys: attention(q, k, mask="causal_mask"),
            f"attention 23, groups, {phase}": lambda q=queries, k=keys: attention(q, k, GROUPS),
            f"attention 23, softcap, {phase}": lambda q=queries, k=keys: attention(q, k, softcap=30.0),
            f"attention 23, float16, {phase}": lambda q=queries, k=keys: attention(q, k, dtype=half),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--past", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scheme", default="row-log-mean")
    parser.add_argument("--only", default="")
    parser.add_argument("--one-buffer", action="store_true", help="for past and present, where an op has both")
    parser.add_argument("--no-portable", action="store_true", help="for long prompts, whose scores it keeps in memory")
    arguments = parser.parse_args()
    run = RunSettings(arguments.threads)
    for name, make in cases(arguments.prompt, arguments.past).items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            original, rewritten = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
            proto = make()
            onnx.save(proto, original)
            try:
                settings = RewriteSettings(preset(arguments.scheme), keep_fused=False)
                compress(original, rewritten, rewriting=settings, verification=None)
                sessions = {"original": Session(original, run)}
                if not arguments.no_portable:
                    sessions["portable"] = Session(rewritten, run)
                if native_library() is not None:
                    sessions["native"] = Session(rewritten, run, native=True)
                ops = ",".join(sorted({f"{n.op_type}" for n in load(rewritten).graph if n.domain == "onnx_attnq"}))
            except AttnqError as error:
                print(f"{name:34} {error}")
                continue
            feeds = feeds_of(proto)
            shared = {"past_key": "o1", "past_value": "o2"} if arguments.one_buffer and "past_key" in feeds else {}
            spent: dict[str, list[float]] = {variant: [] for variant in sessions}
            try:
                runs = {variant: session.bound(feeds, shared) for variant, session in sessions.items()}
                for _ in range(arguments.repeats * (4 if name.endswith("step") else 1) + 1):
                    for variant, run_once in runs.items():
                        start = time.process_time()
                        run_once()
                        spent[variant].append(time.process_time() - start)
            except AttnqError as error:
                print(f"{name:34} {error}")
                continue
            medians = {variant: statistics.median(times[1:]) for variant, times in spent.items()}
            ratios = "  ".join(f"{v} {1e3 * s:8.2f} ms {medians['original'] / s:5.2f}" for v, s in medians.items())
            print(f"{name:34} {ratios}  {ops}", flush=True)


def feeds_of(proto: onnx.ModelProto) -> Inputs:
    """Arrays of the declared shapes, those of whole numbers as the op demands them."""
    feeds: Inputs = {}
    for value in proto.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        spread = 3.0 if value.name == "query" else 30.0 if dtype == np.int8 else 1.0
        feeds[value.name] = draw(*shape, spread=spread).astype(dtype)
    if "seqlens_k" in feeds:
        keys = feeds["past_key"].shape[2] // 2
        feeds["seqlens_k"][:] = keys - 1
        feeds["total_sequence_length"][:] = keys
    for name in ("k_scale", "v_scale"):
        if name in feeds:
            feeds[name][:] = 1 / 30
    if "causal_mask" in feeds:
        queries, keys = feeds["causal_mask"].shape
        seen = np.tri(queries, keys, keys - queries, dtype=bool)
        feeds["causal_mask"][:] = np.where(seen, 0, np.finfo(np.float32).min)
    if "mask" in feeds:
        feeds["mask"][:] = 1 if feeds["mask"].dtype == np.int32 else 0
    for name in ("attention_bias", "head_sink"):
        if name in feeds:
            feeds[name][:] = 0
    return feeds


if __name__ == "__main__":
    main()
