"""No queries, no keys, an empty batch: as the original where that runs, and zeros where there are no keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import Session
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
