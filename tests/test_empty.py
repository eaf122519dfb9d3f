"""No queries, no keys, an empty batch: as the original where that runs, and zeros where there are no keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_attnq.errors import InvalidData
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import Session, native_library
from onnx_attnq.scheme import preset

GRAPHS = {
    "MultiHeadAttention": (
        '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[B,L,16] q, float[B,K,16] k, '
        "float[B,K,16] v) => (float[B,L,16] y) { y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v) }"
    ),
    "standard ops": (
        '<ir_version: 10, opset_import: ["" : 17]> g (float[B,L,16] q, float[B,K,16] k, float[B,K,16] v) => '
        "(float[B,L,16] y) { kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) y = MatMul(p, v) }"
    ),
}


@pytest.mark.parametrize("inline", [False, True], ids=["function", "inline"])
@pytest.mark.parametrize("scheme", ["identity", "row-log", "row-log-mean", "ji2021"])
@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_to_attend_is_no_error(name: str, scheme: str, inline: bool, tmp_path: Path) -> None:
    onnx.save(parser.parse_model(GRAPHS[name]), tmp_path / "m.onnx")
    settings = RewriteSettings(inline=inline)
    compress(tmp_path / "m.onnx", tmp_path / "o.onnx", scheme=preset(scheme), rewriting=settings, verification=None)
    sessions = [Session(load(tmp_path / "m.onnx")), Session(load(tmp_path / "o.onnx"))]
    if not inline:
        sessions.append(Session(load(tmp_path / "o.onnx"), native=True))
    for batch, queries, keys in ((2, 0, 4), (2, 4, 0), (0, 4, 4), (2, 0, 0)):
        shapes = {"q": (batch, queries, 16), "k": (batch, keys, 16), "v": (batch, keys, 16)}
        sample = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        for session in sessions:
            (output,) = session.run(sample).values()
            assert output.shape == (batch, queries, 16)
            assert not output.any(), (batch, queries, keys)


def _fused(call: str, inputs: str, opset: int = 23) -> str:
    head = f'<ir_version: 11, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    return f"{head} g ({inputs}) => (float[B,L,W] y) {{ y = {call} }}"


LAYOUTS = {
    "grouped": (
        _fused("Attention<q_num_heads=4, kv_num_heads=2>(q, k, v)", "float[B,L,16] q, float[B,K,8] k, float[B,K,8] v"),
        {"q": "BL16", "k": "BK8", "v": "BK8"},
    ),
    "packed keys and values": (
        _fused("com.microsoft.MultiHeadAttention<num_heads=2>(q, k)", "float[B,L,16] q, float[B,K,2,2,8] k"),
        {"q": "BL16", "k": "BK228"},
    ),
    "packed": (_fused("com.microsoft.MultiHeadAttention<num_heads=2>(q)", "float[B,L,2,3,8] q"), {"q": "BL238"}),
}


def _ones(shapes: dict[str, str], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    found = {}
    for name, text in shapes.items():
        rest = [int(text[2:])] if len(text) < 5 else [int(digit) for digit in text[2:]]
        found[name] = np.ones([sizes[text[0]], sizes[text[1]], *rest], np.float32)
    return found


@pytest.mark.parametrize("scheme", ["identity", "row-log-mean"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_and_grouped_layouts_may_be_empty(name: str, scheme: str, tmp_path: Path) -> None:
    text, shapes = LAYOUTS[name]
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    settings = RewriteSettings(keep_fused=False)
    compress(tmp_path / "m.onnx", tmp_path / "o.onnx", scheme=preset(scheme), rewriting=settings, verification=None)
    original = Session(load(tmp_path / "m.onnx"))
    sessions = [Session(load(tmp_path / "o.onnx"), native=native) for native in (False, native_library() is not None)]
    for batch, queries, keys in ((2, 3, 4), (2, 0, 4), (2, 4, 0), (0, 4, 4), (2, 0, 0)):
        if not batch and "grouped" in name:  # onnxruntime makes -1 of the length, which no empty tensor tells
            continue
        sample = _ones(shapes, {"B": batch, "L": queries, "K": keys})
        try:
            (expected,) = original.run(sample).values()
        except InvalidData:  # onnxruntime's CPU lacks some layouts, and takes some of these sizes for an error
            some = (queries if name == "packed" else keys) > 0
            expected = np.full((batch, queries, 16), float(some))
        for session in sessions:
            (output,) = session.run(sample).values()
            assert output.shape == expected.shape
            np.testing.assert_allclose(output, expected, rtol=1e-5)
