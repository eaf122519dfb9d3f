"""Encoders with random weights, written node by node as torch.onnx exports them (eager attention): BERT, and a ViT."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PATCH = 16
"""Pixels along the edge of a patch."""


def bert(
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    vocabulary: int = 30522,
    seed: int = 0,
    opset: int = 17,
    image: int | None = None,
) -> onnx.ModelProto:
    """BERT-base by default: about 440 MB of float32.

    Inputs input_ids and attention_mask, (batch, sequence) int64; output last_hidden_state. Weights have the standard
    deviation that BERT is initialized with, times 3 for query and key, so that attention is not flat.

    With ``image``, the edge of a square in pixels, the same layers on patches of it, without a mask: the shape of a ViT.
    """
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int, scale: float = 0.02) -> str:
        array = random.standard_normal(shape, np.float32) * np.float32(scale)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name: str, value: object, dtype: type = np.float32) -> str:
        weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def op(kind: str, output: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"/{output}", **attributes))
        return output

    def linear(prefix: str, x: str, rows: int, columns: int, scale: float = 0.02) -> str:
        product = op("MatMul", f"{prefix}/MatMul", x, weight(f"{prefix}.weight", rows, columns, scale=scale))
        return op("Add", f"{prefix}/Add", weight(f"{prefix}.bias", columns, scale=0.0), product)

    def norm(prefix: str, x: str) -> str:
        constant(f"{prefix}.gamma", np.ones(hidden))
        constant(f"{prefix}.beta", np.zeros(hidden))
        return op(
            "LayerNormalization", f"{prefix}/Norm", x, f"{prefix}.gamma", f"{prefix}.beta", axis=-1, epsilon=1e-12
        )

    constant("one", 1.0)
    constant("lowest", float(np.finfo(np.float32).min))
    constant("head_scale", (hidden // heads) ** 0.5)
    constant("half", 0.5)
    constant("sqrt2", 2.0**0.5)
    constant("split", [0, 0, heads, hidden // heads], np.int64)
    constant("merge", [0, 0, hidden], np.int64)
    constant("axis_1", [1], np.int64)
    constant("axis_2", [2], np.int64)

    mask = None
    if image is None:
        mask = op("Unsqueeze", "mask/Unsqueeze", "attention_mask", "axis_1")
        mask = op("Unsqueeze", "mask/Unsqueeze_1", mask, "axis_2")
        mask = op("Sub", "mask/Sub", "one", op("Cast", "mask/Cast", mask, to=TensorProto.FLOAT))
        mask = op("Mul", "mask/Mul", mask, "lowest")
        words = weight("embeddings.weight", vocabulary, hidden)
        x = norm("embeddings", op("Gather", "embeddings/Gather", words, "input_ids"))
    else:
        kernel = weight("patches.weight", hidden, 3, PATCH, PATCH)
        patches = op("Conv", "patches/Conv", "pixel_values", kernel, strides=[PATCH, PATCH])
        constant("rows", [0, hidden, -1], np.int64)
        rows = op("Transpose", "patches/Transpose", op("Reshape", "patches/Reshape", patches, "rows"), perm=[0, 2, 1])
        x = norm("embeddings", op("Add", "patches/Add", rows, weight("positions", 1, (image // PATCH) ** 2, hidden)))
    for layer in range(layers):
        p = f"layer.{layer}"
        split = {}
        for name, perm, scale in (
            ("query", [0, 2, 1, 3], 0.06),
            ("key", [0, 2, 3, 1], 0.06),
            ("value", [0, 2, 1, 3], 0.02),
        ):
            projected = linear(f"{p}/{name}", x, hidden, hidden, scale)
            reshaped = op("Reshape", f"{p}/{name}/Reshape", projected, "split")
            split[name] = op("Transpose", f"{p}/{name}/Transpose", reshaped, perm=perm)
        scores = op("Div", f"{p}/Div", op("MatMul", f"{p}/Scores", split["query"], split["key"]), "head_scale")
        masked = scores if mask is None else op("Add", f"{p}/Masked", scores, mask)
        probabilities = op("Softmax", f"{p}/Softmax", masked, axis=-1)
        context = op(
            "Transpose", f"{p}/Back", op("MatMul", f"{p}/Context", probabilities, split["value"]), perm=[0, 2, 1, 3]
        )
        attended = linear(f"{p}/output", op("Reshape", f"{p}/Merge", context, "merge"), hidden, hidden)
        x = norm(f"{p}/attention", op("Add", f"{p}/Residual", attended, x))
        inner = linear(f"{p}/inner", x, hidden, 4 * hidden)
        gelu = op("Add", f"{p}/Erf1", op("Erf", f"{p}/Erf", op("Div", f"{p}/ErfDiv", inner, "sqrt2")), "one")
        gelu = op("Mul", f"{p}/Gelu", op("Mul", f"{p}/GeluMul", inner, gelu), "half")
        x = norm(f"{p}/output_norm", op("Add", f"{p}/Residual2", linear(f"{p}/outer", gelu, 4 * hidden, hidden), x))
    nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"], name="/output"))

    axes: list[str | int] = ["batch", "sequence" if image is None else (image // PATCH) ** 2]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("input_ids", "attention_mask")]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, image, image])
    graph = helper.make_graph(
        nodes,
        "bert",
        ids if image is None else [pixels],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*axes, hidden])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
