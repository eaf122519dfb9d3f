"""Tiny decoders with random weights and a cache, one for each op and layout that real ones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY, POSITIONS = 4, 2, 16, 64, 96
WIDTH: Final = HEADS * HEAD_SIZE
LAYERS: Final = 2
OPSETS: Final = {"attention": 23, "scatter": 24}
KINDS: Final = ("gqa", "mha", "attention", "scatter", "concat")
"""GroupQueryAttention as onnxruntime-genai's builder writes it, MultiHeadAttention and ai.onnx's Attention with a past, the
latter behind TensorScatter with the lengths of its rows, and plain ops behind a Concat, as optimum exports them."""


class _Graph:
    """Nodes and weights, with names made up as they come."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def weight(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def matrix(self, name: str, rows: int, columns: int, scale: float = 0.2) -> str:
        return self.weight(name, (self._random.standard_normal((rows, columns)) * scale).astype(np.float32))

    def op(
        self, op_type: str, *inputs: str, outputs: list[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        names = outputs or [f"{op_type.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op_type, inputs, names, names[0] + "_node", domain=domain, **attributes))
        return names[0]


def decoder(
    kind: str = "gqa", *, cache_axis: int | str = KV_HEADS, windows: Sequence[int] = (-1,) * LAYERS, **attributes: Any
) -> onnx.ModelProto:
    """A decoder; the attributes are those of its fused op, beside those that it needs.

    Args:
        kind: One of `KINDS`.
        cache_axis: The axis of the heads of the cache, of a number or a name.
        windows: Of GroupQueryAttention, for each layer; as many layers as there are windows.
        attributes: Of the fused op.
    """
    g = _Graph()
    kv_heads = HEADS if kind in ("mha", "concat") else KV_HEADS
    one = g.weight("one", np.array([1], np.int64))
    if kind == "gqa":
        g.op("Cast", g.op("Sub", g.op("ReduceSum", "attention_mask", one, keepdims=0), one), outputs=["last"], to=6)
        axis = g.weight("axis", np.array(1, np.int64))
        g.op("Cast", g.op("Gather", g.op("Shape", "attention_mask"), axis), outputs=["total"], to=6)
        angles = np.arange(POSITIONS)[:, None] / 10000.0 ** (np.arange(HEAD_SIZE // 2) * 2 / HEAD_SIZE)
        g.weight("cos", np.cos(angles).astype(np.float32))
        g.weight("sin", np.sin(angles).astype(np.float32))
    elif kind in ("attention", "concat"):
        _hidden(g)
    elif kind == "scatter":
        g.op("ReduceSum", "attention_mask", one, outputs=["lengths"], keepdims=0)
        new = g.op("Gather", g.op("Shape", "input_ids"), g.weight("axis", np.array(1, np.int64)))
        g.op("Max", g.op("Sub", "lengths", new), g.weight("zero", np.array(0, np.int64)), outputs=["places"])
    x = g.op("Gather", g.matrix("embedding", VOCABULARY, WIDTH, 1.0), "input_ids", outputs=["embedded"])
    for i, window in enumerate(windows):
        h = g.op("LayerNormalization", x, g.weight(f"norm_{i}", np.ones(WIDTH, np.float32)))
        sizes = {"q": WIDTH, "k": kv_heads * HEAD_SIZE, "v": kv_heads * HEAD_SIZE}
        qkv = [g.op("MatMul", h, g.matrix(f"{n}_{i}.weight", WIDTH, size)) for n, size in sizes.items()]
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        outputs = [f"attention_{i}", *(f"present.{i}.{part}" for part in ("key", "value"))]
        if kind == "gqa":
            how = {
                "num_heads": HEADS,
                "kv_num_heads": kv_heads,
                "do_rotary": 1,
                "local_window_size": window,
                **attributes,
            }
            inputs = (*qkv, *past, "last", "total", "cos", "sin")
            g.op("GroupQueryAttention", *inputs, outputs=outputs, domain="com.microsoft", **how)
        elif kind == "mha":
            inputs = (*qkv, "", "", "", *past)
            g.op("MultiHeadAttention", *inputs, outputs=outputs, domain="com.microsoft", num_heads=HEADS, unidirectional=1, **attributes)  # fmt: skip
        elif kind == "attention":
            how = {"q_num_heads": HEADS, "kv_num_heads": kv_heads, **attributes}
            g.op("Attention", *qkv, "hidden", *past, outputs=outputs, **how)
        elif kind == "scatter":
            heads = g.weight(f"heads_{i}", np.array([0, 0, -1, HEAD_SIZE], np.int64))
            q, k, v = (g.op("Transpose", g.op("Reshape", part, heads), perm=[0, 2, 1, 3]) for part in qkv)
            for old, new, present in zip(past, (k, v), outputs[1:], strict=True):
                g.op("TensorScatter", old, new, "places", outputs=[present], axis=2)
            y = g.op("Attention", q, *outputs[1:], "", "", "", "lengths", is_causal=1, **attributes)
            merged = g.weight(f"merged_{i}", np.array([0, 0, WIDTH], np.int64))
            g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), merged, outputs=[outputs[0]])
        else:
            _plain(g, qkv, past, outputs)
        x = g.op("Add", x, g.op("MatMul", outputs[0], g.matrix(f"o_{i}.weight", WIDTH, WIDTH)))
    g.op("MatMul", x, g.matrix("head.weight", WIDTH, VOCABULARY), outputs=["logits"])
    axis_of = cache_axis if kind == "gqa" else kv_heads
    return _model(g, kind, axis_of, len(windows))


def _hidden(g: _Graph) -> None:
    """What is added to the scores: -inf for the keys behind a query, and for padding."""
    zero, one = g.weight("zero", np.array(0, np.int64)), g.weight("one_scalar", np.array(1, np.int64))
    size = [g.op("Gather", g.op("Shape", name), one) for name in ("attention_mask", "input_ids")]
    keys = g.op("Range", zero, size[0], one)
    queries = g.op("Range", g.op("Sub", *size), size[0], one)
    later = g.op("Greater", keys, g.op("Unsqueeze", queries, g.weight("one_axis", np.array([1], np.int64))))
    padding = g.op("Unsqueeze", g.op("Equal", "attention_mask", zero), g.weight("axes", np.array([1, 2], np.int64)))
    lowest, none = (g.weight(n, np.array(v, np.float32)) for n, v in (("lowest", -1e9), ("none", 0.0)))
    g.op("Where", g.op("Or", later, padding), lowest, none, outputs=["hidden"])


def _plain(g: _Graph, qkv: list[str], past: list[str], outputs: list[str]) -> None:
    shape = f"heads_{outputs[0]}"
    g.weight(shape, np.array([0, 0, HEADS, HEAD_SIZE], np.int64))
    g.weight(f"{shape}_merged", np.array([0, 0, WIDTH], np.int64))
    q, k, v = (g.op("Transpose", g.op("Reshape", x, shape), perm=[0, 2, 1, 3]) for x in qkv)
    k = g.op("Concat", past[0], k, outputs=[outputs[1]], axis=2)
    v = g.op("Concat", past[1], v, outputs=[outputs[2]], axis=2)
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    scaled = g.op("Mul", scores, g.weight(f"scale_{outputs[0]}", np.array(HEAD_SIZE**-0.5, np.float32)))
    context = g.op("MatMul", g.op("Softmax", g.op("Add", scaled, "hidden"), axis=-1), v)
    g.op("Reshape", g.op("Transpose", context, perm=[0, 2, 1, 3]), f"{shape}_merged", outputs=[outputs[0]])


def _model(g: _Graph, kind: str, cache_axis: int | str, layers: int) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    names = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    cache = ("batch_size", cache_axis, "past_sequence_length", HEAD_SIZE)
    grown = ("batch_size", cache_axis, "total_sequence_length", HEAD_SIZE)
    mask = [] if kind == "mha" else [info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])]
    graph = helper.make_graph(
        g.nodes,
        "decoder",
        [
            info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            *mask,
            *(info(f"past_key_values.{name}", TensorProto.FLOAT, cache) for name in names),
        ],
        [
            info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", VOCABULARY]),
            *(info(f"present.{name}", TensorProto.FLOAT, grown) for name in names),
        ],
        g.weights,
    )
    imports = [helper.make_opsetid("", OPSETS.get(kind, 21)), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=11))
