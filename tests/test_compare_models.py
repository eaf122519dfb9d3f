"""`onnx-attnq verify A B`: what two models compute, compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidModel, InvalidScheme
from onnx_attnq.inputs import generate_samples
from onnx_attnq.inputs.made_up import edge_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.verification import Limit, Limits
from onnx_attnq.verification import verify as compare_models
from onnx_attnq.verification.deviation import FIGURES
from onnx_attnq.verification.outputs import QUANTILES, OutputComparison

MODELS = Path(__file__).parent / "models"


def verify(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["verify", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def bert(tmp_path):
    return small_models.write(small_models.parse(small_models.BERT), tmp_path / "bert.onnx")


@pytest.fixture
def moved(tmp_path):
    """The same model with one weight changed: row 5 of the embeddings."""
    proto = small_models.parse(small_models.BERT)
    words = next(t for t in proto.graph.initializer if t.name == "words")
    array = onnx.numpy_helper.to_array(words).copy()
    array[5] += 0.5
    words.CopyFrom(onnx.numpy_helper.from_array(array, "words"))
    return small_models.write(proto, tmp_path / "moved.onnx")


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 0.5), st.floats(0, 0.5))
def test_figures_against_numpy(seed, size, rtol, atol):
    random = np.random.default_rng(seed)
    a = [random.standard_normal((size, 3)).astype(np.float32) for _ in range(2)]
    b = [x + random.standard_normal(x.shape).astype(np.float32) * 0.1 for x in a]
    a[0].flat[0] = b[0].flat[0] = np.nan
    a[1].flat[0], b[1].flat[1] = np.inf, -np.inf
    output = OutputComparison(rtol=rtol, atol=atol)
    for pair in zip(a, b, strict=True):
        output.add(*pair)
    found = output.result()
    x, y = np.concatenate(a).astype(np.float64).ravel(), np.concatenate(b).astype(np.float64).ravel()
    both = np.isfinite(x) & np.isfinite(y)
    far = ~np.isclose(y, x, rtol=rtol, atol=atol, equal_nan=True)
    assert found.far == (far & both).sum()
    assert found.deviation.one_sided == (far & ~both).sum() == 2
    for name, q in QUANTILES.items():
        assert found.figure(name) == pytest.approx(np.quantile(np.abs(x - y)[both], q))


@given(
    st.sampled_from([*FIGURES, *QUANTILES]), st.floats(0, 1e6), st.none() | st.sampled_from(["y", "a:b", "logits>=1"])
)
def test_tolerances_survive_being_written(metric, value, output):
    tolerance = Limit(metric, float(f"{value:g}"), output)
    assert Limit.parse(str(tolerance)) == tolerance


@pytest.mark.parametrize(
    "text", ["", "cosine", "cosine>=", "cosine==0.9", "cosine=nan", "cosin>=0.9", "cosine>=x", "y:>=1"]
)
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(InvalidScheme, match="is no limit"):
        Limit.parse(text)


def test_an_equals_sign_stands_for_the_one_that_the_figure_demands():
    assert Limit.parse("cosine=0.9") == Limit.parse("cosine>=0.9")
    assert Limit.parse("y:max_abs=0.1") == Limit.parse("y:max_abs<=0.1")


def test_a_bound_from_the_wrong_side_is_refused():
    with pytest.raises(InvalidScheme, match=r"write cosine>=0\.9"):
        Limit.parse("cosine<=0.9")


def test_equal_models_pass(bert, capsys):
    assert verify(bert, bert) == 0
    assert "Verified" in capsys.readouterr().out


def test_a_changed_weight_fails_without_any_option(bert, moved, capsys):
    assert verify(bert, moved, "--samples", 20, "--json", "-") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert found["runs"]["standard"]["outputs"]["y"]["far"] > 0
    assert "elements differ by more than" in found["failures"][0]


def test_the_tolerance_decides(bert, moved):
    samples = ("--samples", 20)
    assert verify(bert, moved, *samples, "--atol", 10) == 0
    assert verify(bert, moved, *samples, "--metric", "cosine>=0.9") == 0
    assert verify(bert, moved, *samples, "--metric", "y:max_abs<=1e-6") == 1
    assert verify(bert, moved, *samples, "--metric", "cosine>=0.9", "--metric", "mean_abs<=0") == 1
    assert verify(bert, moved, "--metric", "z:cosine>=0.9") == 2  # there is no output z


@pytest.mark.parametrize("way", ["standard", "native"])
def test_a_rewritten_model_is_checked_site_by_site(bert, tmp_path, way):
    compress(bert, tmp_path / "b.onnx", verification=None)
    a, b = load(bert), load(tmp_path / "b.onnx")
    found = compare_models(a, b, (*generate_samples(a), *edge_samples(a)))
    if way not in found.runs:
        pytest.skip("the native library was not built")
    assert found.passed, found.failures
    (check,) = found.runs[way].sites.values()
    assert check.codes > 0
    assert found.runs[way].outputs["y"].deviation.max_abs > 1e-3  # it is another model
    tight = compare_models(a, b, generate_samples(a), limits=Limits((Limit("max_abs", 1e-6),)))
    assert any(failure.startswith(way) for failure in tight.failures)


def test_a_wrong_scheme_in_the_graph_is_found(bert, tmp_path):
    """The record says one threshold, the op has another."""
    compress(bert, tmp_path / "b.onnx", verification=None)
    b = load(tmp_path / "b.onnx")
    (op,) = [node for node in b.graph if node.domain == "onnx_attnq"]
    step = ir.tensor(op.attributes["step"].as_tensor().numpy() * np.float32(2))
    op.attributes["step"] = ir.AttrTensor("step", step)
    a = load(bert)
    found = compare_models(a, b, generate_samples(a))
    assert any("codes are wrong" in failure for failure in found.failures)


def test_another_interface_is_refused(bert, tmp_path):
    other = small_models.write(small_models.attention(), tmp_path / "other.onnx")
    a, b = load(bert), load(other)
    with pytest.raises(InvalidModel, match="only A has the input 'attention_mask'"):
        compare_models(a, b, generate_samples(a))
    proto = small_models.parse(small_models.ATTENTION.replace("length, 8] x)", "length] x)", 1))
    c = small_models.write(proto, tmp_path / "c.onnx")
    with pytest.raises(InvalidModel, match="input 'x' is float32"):
        compare_models(b, load(c), generate_samples(b))


def test_another_shape_of_an_output(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> f (float[n] x) => (float[m] y) { y = %s }'
    a = small_models.write(small_models.parse(text % "Relu(x)"), tmp_path / "a.onnx")
    b = small_models.write(small_models.parse(text % "Concat<axis = 0>(x, x)"), tmp_path / "b.onnx")
    found = compare_models(load(a), load(b), [{"x": np.ones(3, np.float32)}])
    assert found.failures == ("standard: output 'y': the shape is [3] in A and [6] in B",)


def test_edge_samples_hide_a_row_and_have_a_nan(bert, tmp_path):
    (masked,) = edge_samples(load(bert))
    assert not masked["attention_mask"][-1].any()
    assert masked["attention_mask"][0].any()
    other = small_models.write(small_models.attention(), tmp_path / "a.onnx")
    (spoiled,) = edge_samples(load(other))
    assert np.isnan(spoiled["x"]).sum() == 1


def test_a_lost_nan_fails(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> f (float[batch, 4] x) => (float[batch, 4] y) { %s }'
    a = small_models.write(small_models.parse(text % "y = Identity(x)"), tmp_path / "a.onnx")
    guard = "n = IsNaN(x)\n zero = Constant<value_float = 0.0>()\n y = Where(n, zero, x)"
    b = small_models.write(small_models.parse(text % guard), tmp_path / "b.onnx")
    assert verify(a, a) == 0
    assert verify(a, b) == 1
