"""Models that the rewriter wrote, in onnxruntime with and without the native library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from attention_forms import FORMS
from small_graphs import parse

from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load, save
from onnx_attnq.run import native_library
from onnx_attnq.scheme import preset

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
