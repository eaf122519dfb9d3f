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
    "grouped by heads": (
        _fused("Attention(q, k, v)", "float[B,4,L,8] q, float[B,2,K,8] k, float[B,2,K,8] v").replace(
            "[B,L,W]", "[B,4,L,8]"
        ),
        {"q": "B4L8", "k": "B2K8", "v": "B2K8"},
    ),
    "grouped by unknown heads": (
        _fused("Attention(q, k, v)", "float[B,H,L,D] q, float[B,G,K,D] k, float[B,G,K,D] v").replace(
            "[B,L,W]", "[B,H,L,D]"
        ),
        {"q": "B4L8", "k": "B2K8", "v": "B2K8"},
    ),
    "grouped with a mask for each head": (
        _fused(
            "Attention<q_num_heads=4, kv_num_heads=2>(q, k, v, m)",
            "float[B,L,16] q, float[B,K,8] k, float[B,K,8] v, float[B,4,L,K] m",
        ),
        {"q": "BL16", "k": "BK8", "v": "BK8", "m": "B4LK"},
    ),
    "unknown widths": (
        _fused(
            "com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)", "float[B,L,E] q, float[B,K,E] k, float[B,K,E] v"
        ),
        {"q": "BL16", "k": "BK16", "v": "BK16"},
    ),
    "packed with unknown widths": (
        _fused("com.microsoft.MultiHeadAttention<num_heads=2>(q, k)", "float[B,L,E] q, float[B,K,H,2,D] k"),
        {"q": "BL16", "k": "BK228"},
    ),
    "packed": (_fused("com.microsoft.MultiHeadAttention<num_heads=2>(q)", "float[B,L,2,3,8] q"), {"q": "BL238"}),
}


def _ones(shapes: dict[str, str], sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """For each input ones, of a shape such as BL16: numbers of one digit, except at the end of three axes."""
    found = {}
    for name, text in shapes.items():
        axes = (text[0], text[1], text[2:]) if text[2:].isdigit() and len(text) == 4 else tuple(text)
        found[name] = np.ones([sizes[axis] if axis in sizes else int(axis) for axis in axes], np.float32)
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
        sample = _ones(shapes, {"B": batch, "L": queries, "K": keys})
        try:
            (expected,) = original.run(sample).values()
        except InvalidData:  # onnxruntime's CPU lacks some layouts, and takes some of these sizes for an error
            some = (queries if name == "packed" else keys) > 0
            rows = (4, queries, 8) if name.endswith("heads") else (queries, 16)
            expected = np.full((batch, *rows), float(some))
        for session in sessions:
            (output,) = session.run(sample).values()
            assert output.shape == expected.shape
            np.testing.assert_allclose(output, expected, rtol=1e-5)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("inline", [False, True], ids=["function", "inline"])
@pytest.mark.parametrize("name", GRAPHS)
def test_opsets_before_14_may_be_empty(name: str, inline: bool, opset: int, tmp_path: Path) -> None:
    """Reshape cannot be asked for an axis of 0 there."""
    old = parser.parse_model(GRAPHS[name].replace('"" : 17', f'"" : {opset}'))
    onnx.save(old, tmp_path / "m.onnx")
    settings = RewriteSettings(inline=inline, keep_fused=False)
    compress(tmp_path / "m.onnx", tmp_path / "o.onnx", rewriting=settings, verification=None)
    for native in (False, not inline and native_library() is not None):
        session = Session(load(tmp_path / "o.onnx"), native=native)
        for batch, queries, keys in ((2, 0, 4), (2, 4, 0), (0, 4, 4), (2, 0, 0)):
            sample = _ones({"q": "BL16", "k": "BK16", "v": "BK16"}, {"B": batch, "L": queries, "K": keys})
            (output,) = session.run(sample).values()
            assert output.shape == (batch, queries, 16)
            assert not output.any(), (batch, queries, keys)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("name", [name for name, (text, _) in LAYOUTS.items() if "microsoft.Multi" in text])
def test_layouts_of_opsets_before_14_may_be_empty(name: str, opset: int, tmp_path: Path) -> None:
    text, shapes = LAYOUTS[name]
    onnx.save(parser.parse_model(text.replace('"" : 23', f'"" : {opset}')), tmp_path / "m.onnx")
    compress(tmp_path / "m.onnx", tmp_path / "o.onnx", rewriting=RewriteSettings(keep_fused=False), verification=None)
    session = Session(load(tmp_path / "o.onnx"))
    for batch, queries, keys in ((2, 3, 4), (2, 0, 4), (2, 4, 0), (0, 4, 4), (2, 0, 0)):
        (output,) = session.run(_ones(shapes, {"B": batch, "L": queries, "K": keys})).values()
        some = (queries if name == "packed" else keys) > 0
        np.testing.assert_allclose(output, np.full((batch, queries, 16), float(some)), rtol=1e-5)


@pytest.mark.parametrize(
    ("widths", "scheme", "opset"),
    [
        (("32", "16"), "identity", 17),
        (("32", "16"), "row-log-mean", 13),
        (("E", "F"), "identity", 13),
        (("E", "F"), "row-log-mean", 11),
        (("E", "F"), "row-log-mean", 17),
    ],
)
def test_a_cache_may_be_empty(widths: tuple[str, str], scheme: str, opset: int, tmp_path: Path) -> None:
    """As the native library does; onnxruntime's own op refuses these sizes, or divides by zero."""
    query, key = (f"float[B,L,{width}]" for width in widths)
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> g ({query} q, {key} k, {key} v, '
        "float[B,2,P,8] pk, float[B,2,P,8] pv, int32[B] last, int32 total) => (float[B,L,32] y, float[B,2,T,8] nk, "
        "float[B,2,T,8] nv) { y, nk, nv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
        "(q, k, v, pk, pv, last, total) }"
    )
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    compress(tmp_path / "m.onnx", tmp_path / "o.onnx", scheme=preset(scheme), verification=None)
    shapes = {"q": "BL32", "k": "BL16", "v": "BL16"}
    for batch, queries, past in ((2, 3, 4), (0, 3, 4), (2, 0, 4), (0, 0, 0), (2, 3, 0), (0, 1, 0)):
        sample = _ones(shapes, {"B": batch, "L": queries})
        sample |= {name: np.ones((batch, 2, past, 8), np.float32) for name in ("pk", "pv")}
        sample |= {"last": np.full(batch, queries + past - 1, np.int32), "total": np.array(queries + past, np.int32)}
        for native in (False, native_library() is not None):
            found = Session(load(tmp_path / "o.onnx"), native=native).run(sample)
            np.testing.assert_allclose(found["y"], np.ones((batch, queries, 32)), rtol=1e-5)
            assert found["nk"].shape == found["nv"].shape == (batch, 2, queries + past, 8)
