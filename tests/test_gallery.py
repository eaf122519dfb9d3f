"""Exports of real architectures: everything is found, rewritten, and verified, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from fused_case import CURRENT_KERNELS
from gallery_models import GalleryModel, gallery

from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import Form, expose, find_sites
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import VerifySettings

REFUSED_OPS = {"QAttention", "DecoderMaskedMultiHeadAttention"}
"""Fused ops that are left alone, because what they compute cannot be told from their inputs alone."""

LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
MODELS = gallery()


def refused(model: GalleryModel) -> bool:
    proto = onnx.load(model.path, load_external_data=False)
    return any(node.op_type in REFUSED_OPS for node in proto.graph.node)


LARGE = {"llama__int4-nbits", "t5-decoder_model_merged__optimum", "vit__qoperator"}
IDENTITY, NO_THRESHOLD = preset("identity"), preset("prune-only-row-max", threshold=0.0)

REWRITABLE = [model for model in MODELS if model.sites and not refused(model)]
EACH = pytest.mark.parametrize(
    "model", [pytest.param(m, id=m.name, marks=[CURRENT_KERNELS] if m.fused else []) for m in REWRITABLE]
)


def run(path: Path, sample: dict[str, np.ndarray], level: str = "ORT_ENABLE_ALL") -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, sample)]


def tolerance(model: GalleryModel) -> float:
    """float16 rounds at 5e-4 of a value, float32 at 1e-7."""
    loaded = load(model.path)
    types = {value.dtype for node in loaded.graph.all_nodes() for value in node.outputs}
    weights = {value.dtype for value in loaded.graph.initializers.values()}
    return 1e-2 if ir.DataType.FLOAT16 in types | weights else 1e-5


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], atol: float) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=atol, atol=atol)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_counts_are_those_of_the_manifest(model: GalleryModel) -> None:
    loaded = load(model.path)
    found = find_sites(expose(loaded))
    assert len(found.sites) == (0 if refused(model) else model.sites)
    assert len(found.rejections) == model.others + (model.fused if refused(model) else 0)
    assert all(rejection.reason for rejection in found.rejections)
    assert len({site.id for site in found.sites}) == len(found.sites)


@pytest.mark.parametrize("model", [m for m in MODELS if m not in REWRITABLE], ids=lambda m: m.name)
def test_without_attention_nothing_is_written(model: GalleryModel, tmp_path: Path) -> None:
    with pytest.raises(NothingToRewrite, match="no attention found"):
        compress(model.path, tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@EACH
@pytest.mark.parametrize(
    ("scheme", "inline"),
    [
        pytest.param(IDENTITY, False, id="identity-function"),
        pytest.param(NO_THRESHOLD, True, id="threshold 0-inline"),
        pytest.param(IDENTITY, True, id="identity-inline", marks=pytest.mark.slow),
        pytest.param(NO_THRESHOLD, False, id="threshold 0-function", marks=pytest.mark.slow),
    ],
)
def test_a_scheme_that_changes_nothing_reproduces_the_outputs(
    model: GalleryModel, scheme: QuantScheme, inline: bool, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    compress(model.path, output, rewriting=RewriteSettings(scheme, inline=inline, keep_fused=False), verification=None)
    sample = model.sample()
    expected = run(model.path, sample)
    assert_close(run(output, sample), expected, tolerance(model))


@EACH
def test_eight_bits_with_a_tiny_threshold_stay_close(model: GalleryModel, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    scheme = preset("row-log", bits=8, threshold=1e-6)
    compress(model.path, output, rewriting=RewriteSettings(scheme, keep_fused=False), verification=None)
    sample = model.sample()
    # A level is at most 2.7 % of its value away, and the errors of a row's keys cancel in part: outputs move by up to
    # 1.5 %. CLIP's embeddings move by 1.0 %; its logits are cosines of embeddings that are almost orthogonal, so that
    # they are small differences of large products, and that becomes 3.3 % of them.
    bound = 0.05 if model.name.startswith("clip") else 0.02
    for found, expected in zip(run(output, sample), run(model.path, sample), strict=True):
        a, b = found.astype(np.float64), expected.astype(np.float64)
        assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b) + 1e-6


@pytest.mark.parametrize(
    ("model", "inline"),
    [
        pytest.param(
            model,
            inline,
            id=f"{model.name}-{form}",
            marks=[CURRENT_KERNELS] * bool(model.fused) + [pytest.mark.slow] * (inline or model.name in LARGE),
        )
        for model in REWRITABLE
        for inline, form in ((False, "function"), (True, "inline"))
    ],
)
def test_three_bits_pass_the_verifier_and_load_everywhere(model: GalleryModel, inline: bool, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    sample = model.sample()
    settings = RewriteSettings(inline=inline, keep_fused=False)
    result = compress(model.path, output, rewriting=settings, verification=VerifySettings((sample,)))
    assert result.verification is not None
    assert result.verification.passed, result.verification.failures
    assert len(result.verification.standard.sites) == model.sites
    assert all(check.codes for check in checked_sites(result.verification.standard.sites, model))
    if "ort-extended" not in model.name:  # onnxruntime's own optimizer saves ops that onnx does not know
        onnx.checker.check_model(str(output))
    for level in LEVELS:
        assert all(np.isfinite(a).all() for a in run(output, sample, level) if a.dtype.kind == "f")


def checked_sites(sites: Any, model: GalleryModel) -> list[Any]:
    """All sites but those in the branches of an If, of which a sample takes one."""
    inside = any(node.op_type == "If" for node in load(model.path).graph)
    return [] if inside else list(sites.values())


@EACH
def test_two_runs_write_the_same_bytes(model: GalleryModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        compress(model.path, tmp_path / name / "out.onnx", verification=None)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["albert__optimum", "t5-decoder_model_merged__optimum"])
def test_one_op_takes_the_place_of_each_attention_of_an_export_by_optimum(name: str) -> None:
    (model,) = (model for model in MODELS if model.name == name)  # its masks are made with Expand, of no known shape
    sites = find_sites(expose(load(model.path))).sites
    assert [site.form for site in sites] == [Form.ATTENTION] * model.sites
