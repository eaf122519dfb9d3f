"""Models that the rewriter wrote, in onnxruntime with and without the native library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from attention_forms import FORMS
from native_models import environment
from small_graphs import parse

from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load, save
from onnx_attnq.run import native_library
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import VerifySettings

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library was not built: make native")

ATOL = 1e-5
"""Float32 rounding of products and sums in another order. A code that flipped would move an output by far more."""


@pytest.mark.parametrize("scheme", ["row-log", "ji2021", "prune-only"])
@pytest.mark.parametrize("name", ["scale and additive mask", "sinks: one more score, cut off behind the softmax"])
def test_the_library_takes_what_the_rewriter_writes(name: str, scheme: str, tmp_path: Path) -> None:
    form = FORMS[name]
    save(parse(form.text, opset=form.opset, functions=form.functions), tmp_path / "model.onnx")
    written = compress(tmp_path / "model.onnx", scheme=preset(scheme), verification=None).output
    options = onnxruntime.SessionOptions()
    portable = onnxruntime.InferenceSession(str(written), options, providers=["CPUExecutionProvider"])
    options.register_custom_ops_library(str(native_library()))
    native = onnxruntime.InferenceSession(str(written), options, providers=["CPUExecutionProvider"])
    for sample in generate_samples(load(tmp_path / "model.onnx"), 2, 0):
        np.testing.assert_allclose(native.run(None, sample)[0], portable.run(None, sample)[0], atol=ATOL)


@pytest.mark.parametrize("rough", ["0", "1"])
@pytest.mark.parametrize("scheme", [preset("row-log-mean", bits=3, threshold=0.03), preset("row-log-mean", bits=2)])
def test_long_inputs_are_verified_with_rough_scores_and_without(
    scheme: QuantScheme, rough: str, tmp_path: Path
) -> None:
    save(parse(FORMS["scale and additive mask"].text), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, 300, 4)).astype(np.float32) * spread for spread in (3, 2, 1))
    sample = {"q": q, "k": k, "v": v, "m": np.zeros((2, 1, 1, 300), np.float32)}
    with environment(ONNX_ATTNQ_ROUGH_SCORES=rough):
        done = compress(tmp_path / "model.onnx", scheme=scheme, verification=VerifySettings((sample,)))
    assert done.verification is not None
    assert set(done.verification.runs) == {"standard", "native"}
    assert done.verification.passed, done.verification.failures
