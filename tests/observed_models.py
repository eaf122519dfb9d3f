"""Small transformers with random weights whose attention is known, for observing."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

VOCABULARY = 50


def layer(x: str, n: int, heads: int, size: int, mask: str = "bias") -> str:
    """The nodes of one layer of multi-head attention, from value ``x`` to ``x{n}``."""
    return f"""
        q{n} = MatMul({x}, wq{n})  k{n} = MatMul({x}, wk{n})  v{n} = MatMul({x}, wv{n})
        qs{n} = Reshape(q{n}, split)  ks{n} = Reshape(k{n}, split)  vs{n} = Reshape(v{n}, split)
        qh{n} = Transpose<perm = [0, 2, 1, 3]>(qs{n})
        kh{n} = Transpose<perm = [0, 2, 3, 1]>(ks{n})
        vh{n} = Transpose<perm = [0, 2, 1, 3]>(vs{n})
        s{n} = MatMul(qh{n}, kh{n})
        m{n} = Add(s{n}, {mask})
        p{n} = Softmax<axis = -1>(m{n})
        c{n} = MatMul(p{n}, vh{n})
        ct{n} = Transpose<perm = [0, 2, 1, 3]>(c{n})
        cm{n} = Reshape(ct{n}, merge)
        x{n} = Add({x}, cm{n})
    """


def encoder(
    layers: int = 2, heads: int = 3, size: int = 4, *, causal: bool = False, sharpness: float = 2.0, seed: int = 0
) -> ir.Model:
    """A padded (and causal) transformer: input_ids and attention_mask (B, L) to hidden states; sites p0, p1, …"""
    width = heads * size
    body = "".join(layer("x" if n == 0 else f"x{n - 1}", n, heads, size) for n in range(layers))
    triangle = (
        """
        shape = Shape(input_ids)
        length = Slice(shape, one, two)
        square = Concat<axis = 0>(length, length)
        zeros = ConstantOfShape<value = float[1] {1.0}>(square)
        above = Trilu<upper = 1>(zeros, one_scalar)
        future = Mul(above, low)
        bias = Add(padding, future)
        """
        if causal
        else "bias = Identity(padding)"
    )
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    encoder (int64[B, L] input_ids, int64[B, L] attention_mask) => (float[B, L, {width}] hidden) {{
        x = Gather(table, input_ids)
        wide = Unsqueeze(attention_mask, middle)
        as_float = Cast<to = 1>(wide)
        absent = Sub(unit, as_float)
        padding = Mul(absent, low)
        {triangle}
        {body}
        hidden = Identity(x{layers - 1})
    }}
    """
    rng = np.random.default_rng(seed)
    weights = {
        "table": rng.normal(size=(VOCABULARY, width)),
        "low": np.array(-1e4),
        "unit": np.array(1.0),
    }
    for n in range(layers):
        for name, scale in (("wq", sharpness), ("wk", 1.0), ("wv", 1.0)):
            weights[f"{name}{n}"] = rng.normal(scale=scale / width**0.5, size=(width, width))
    integers = {
        "split": [0, 0, heads, size],
        "merge": [0, 0, width],
        "middle": [1, 2],
        "one": [1],
        "two": [2],
        "one_scalar": 1,
    }
    return build(
        text, {k: v.astype(np.float32) for k, v in weights.items()} | {k: np.array(v) for k, v in integers.items()}
    )


def attention(equations: str, inputs: str, **initializers: np.ndarray) -> ir.Model:
    """One attention over inputs that are given as they are: ``inputs`` are typed, the result is ``context``."""
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    attention ({inputs}) => (float context) {{
        {equations}
    }}
    """
    return build(text, initializers)


def build(text: str, initializers: dict[str, np.ndarray]) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in initializers.items() if name in used
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    return ir.from_proto(proto)


def tokens(lengths: list[int], seed: int = 0, pad_to: int | None = None) -> dict[str, np.ndarray]:
    """A padded batch of random tokens; token 2 ends each row, as a separator does."""
    rng = np.random.default_rng(seed)
    length = max(lengths) if pad_to is None else pad_to
    ids = np.zeros((len(lengths), length), np.int64)
    mask = np.zeros_like(ids)
    for row, count in enumerate(lengths):
        ids[row, :count] = rng.integers(3, VOCABULARY, count)
        ids[row, count - 1] = 2
        mask[row, :count] = 1
    return {"input_ids": ids, "attention_mask": mask}
