"""Function bodies compute the codes of numerics.py: every scheme, opset, execution and optimization level."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from executions import EXECUTIONS, inlined, one_op_model, require_opset, run_feeds, run_onnxruntime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import schemes

from onnx_attnq.rewriting import bodies
from onnx_attnq.scheme import PRESETS, Normalize, QuantScheme, Reference, Rounding, Spacing, numerics, preset
from onnx_attnq.verification.codes import check_rows

KINDS = ("softmax", "probabilities")
OPSETS = (11, 12, 13, 17, 18, 21, 23, 24)
FAMILIES = [
    *itertools.product(Reference, Normalize, Spacing, Rounding),
    *itertools.product(Reference, Normalize, [None], [None]),
]
FLOAT32_MIN = float(np.finfo(np.float32).min)


def family_scheme(family: tuple[Reference, Normalize, Spacing | None, Rounding | None], bits: int = 3) -> QuantScheme:
    reference, normalize, spacing, rounding = family
    return QuantScheme(reference, normalize, 0.01, None if spacing is None else bits, spacing, rounding)


def rows(kind: str, shape: tuple[int, ...], seed: int, spread: float = 4.0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(0.0, spread, shape).astype(np.float32)
    return scores if kind == "softmax" else numerics.softmax(scores).astype(np.float32)


def assert_codes(kind: str, x: np.ndarray, y: np.ndarray, scheme: QuantScheme) -> None:
    assert y.shape == x.shape
    check = check_rows(x, y, scheme, is_scores=kind == "softmax")
    assert check.passed, f"{kind} {scheme}: {check}"


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "-".join(str(v) for v in f))
def test_every_family_at_every_opset(
    family: tuple[Reference, Normalize, Spacing | None, Rounding | None], opset: int
) -> None:
    require_opset(opset)
    scheme = family_scheme(family)
    for kind in KINDS:
        x = rows(kind, (3, 5, 40), seed=opset)
        model = ir.to_proto(one_op_model(kind, scheme, opset))
        onnx.checker.check_model(model, full_check=True)
        for optimize in (False, True):
            assert_codes(kind, x, run_onnxruntime(model, x, optimize=optimize), scheme)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    scheme=schemes(),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    length=st.integers(1, 130),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.01, 1.0, 4.0, 30.0]),
)
def test_any_scheme_rank_and_length_on_every_execution(
    execution: str, kind: str, scheme: QuantScheme, shape: list[int], length: int, seed: int, spread: float
) -> None:
    x = rows(kind, (*shape, length), seed, spread)
    assert_codes(kind, x, EXECUTIONS[execution](kind, x, scheme), scheme)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_bits_on_every_execution(kind: str, execution: str, bits: int) -> None:
    for family in FAMILIES[:24:5]:
        scheme = family_scheme(family, bits)
        x = rows(kind, (4, 16, 65), seed=bits)
        assert_codes(kind, x, EXECUTIONS[execution](kind, x, scheme), scheme)


SPECIAL_SCORES = {
    "masked by a finite value": [0.5, 1.5, -10_000.0, FLOAT32_MIN],
    "fully masked, finite": [FLOAT32_MIN] * 4,
    "fully masked, small": [-10_000.0] * 4,
    "masked by infinity": [0.5, -np.inf, -np.inf, 0.25],
    "fully masked, infinite": [-np.inf] * 4,
    "nan": [0.0, np.nan, 1.0, 2.0],
    "nan alone": [np.nan] * 4,
    "nan beside infinity": [-np.inf, np.nan, 1.0, -np.inf],
    "huge": [1e30, -1e30, 1e30, 0.0],
    "largest": [3e38, -3e38, 0.0, 3e38],
    "large and close": [20_000.0, 19_999.0, 19_990.0, 19_000.0],
    "equal": [7.0] * 4,
    "one hot": [100.0, -100.0, -100.0, -100.0],
}
SPECIAL_PROBABILITIES = {
    "zeros, as a guard leaves them": [0.0] * 4,
    "one hot": [0.0, 1.0, 0.0, 0.0],
    "flat": [0.25] * 4,
    "nan": [0.0, np.nan, 0.5, 0.5],
    "nan alone": [np.nan] * 4,
    "not summing to one": [0.5, 0.5, 0.5, 0.25],
    "tiny": [1e-38, 1e-38, 1e-20, 1e-30],
    "denormal beside one": [1e-42, 1.0, 0.0, 1e-44],
}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_special_rows_of_scores(execution: str, name: str) -> None:
    x = np.array(list(SPECIAL_SCORES.values()), np.float32)
    with np.errstate(over="ignore"):  # 3e38 and -3e38 are further apart than float32 reaches, which is the point
        y = EXECUTIONS[execution]("softmax", x, preset(name))
    nan_rows = [key for key, row in zip(SPECIAL_SCORES, y, strict=True) if np.isnan(row).any()]
    assert nan_rows == ["fully masked, infinite", "nan", "nan alone", "nan beside infinity"]
    assert_codes("softmax", x, y, preset(name))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_special_rows_of_probabilities(execution: str, name: str) -> None:
    x = np.array(list(SPECIAL_PROBABILITIES.values()), np.float32)
    y = EXECUTIONS[execution]("probabilities", x, preset(name))
    nan_rows = [key for key, row in zip(SPECIAL_PROBABILITIES, y, strict=True) if np.isnan(row).any()]
    assert nan_rows == ["nan", "nan alone"]
    assert not y[0].any()
    assert_codes("probabilities", x, y, preset(name))


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (2, 0, 5)])
@pytest.mark.parametrize("execution", ["numpy", "onnxruntime", "onnxruntime-inlined"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_tensor_stays_empty(kind: str, execution: str, shape: tuple[int, ...]) -> None:
    # The ReferenceEvaluator has no maximum of nothing.
    for name in PRESETS:
        assert EXECUTIONS[execution](kind, np.zeros(shape, np.float32), preset(name)).shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_one_body_serves_every_scheme_of_its_family(kind: str) -> None:
    strict, lenient = preset("row-log", bits=2, threshold=0.05), preset("row-log", bits=5, threshold=1e-4)
    model = one_op_model(kind, strict, rank=2)
    node = model.graph.node(0)
    for attribute in bodies.scheme_attributes(lenient):
        node.attributes[attribute.name] = attribute
    x = rows(kind, (4, 50), seed=3)
    proto = ir.to_proto(model)
    assert_codes(kind, x, run_onnxruntime(proto, x), lenient)
    assert_codes(kind, x, run_onnxruntime(inlined(proto), x), lenient)


def test_names_follow_the_op_contract() -> None:
    assert bodies.softmax_op(preset("row-log")) == "QuantizedSoftmax"
    assert bodies.probabilities_op(preset("ji2021")) == "QuantizeProbabilities_absolute_log_floor_none"
    assert bodies.attention_op(preset("prune-only-row-max")) == "PrunedAttention_row_max_none"
    names = {bodies.softmax_op(family_scheme(family)) for family in FAMILIES}
    assert len(names) == len(FAMILIES)


def masked_attention(scheme: QuantScheme, opset: int, *, zeroes_masked_rows: bool) -> onnx.ModelProto:
    """A model of one attention op: q (L_q, D), k (D, L_k), v (L_k, D_v) and mask (L_q, L_k) to y."""
    body = bodies.attention_function(scheme, opset)
    inputs = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([f"{name}0", f"{name}1"]))
        for name in ("q", "k", "v", "mask")
    ]
    straight = (0, 1)
    layout = bodies.attention_attributes(
        1.0, straight, straight, straight, straight, zeroes_masked_rows=zeroes_masked_rows
    )
    node = ir.Node(bodies.DOMAIN, body.name, inputs, [*bodies.scheme_attributes(scheme), *layout], name="site")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, bodies.DOMAIN: 1}, name="g")
    return ir.to_proto(ir.Model(graph, ir_version=8, functions=[body]))


@pytest.mark.parametrize("zeroes_masked_rows", [False, True])
@pytest.mark.parametrize("opset", [12, 17, 19, 24])
@pytest.mark.parametrize("execution", ["reference", "onnxruntime", "onnxruntime-inlined"])
def test_special_rows_of_attention(execution: str, opset: int, zeroes_masked_rows: bool) -> None:
    random = np.random.default_rng(opset)
    q, k, v = (random.normal(0.0, 2.0, shape).astype(np.float32) for shape in ((6, 8), (8, 24), (24, 5)))
    mask = np.zeros((6, 24), np.float32)
    mask[0, 9], mask[1, 4], mask[2], mask[3], mask[4, ::3], mask[5, 1::2] = (
        np.nan, np.inf, -np.inf, FLOAT32_MIN, -np.inf, FLOAT32_MIN
    )  # fmt: skip
    for name in PRESETS:
        model = masked_attention(preset(name), opset, zeroes_masked_rows=zeroes_masked_rows)
        if execution == "onnxruntime-inlined":
            model = inlined(model)
        feeds = dict(zip(("q", "k", "v", "mask"), (q, k, v, mask), strict=True))
        with np.errstate(all="ignore"):
            if execution == "reference":
                (y,) = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
            else:
                y = run_feeds(model, feeds)
            expected = numerics.quantized_attention(q, k.T, v, preset(name), mask)
        if zeroes_masked_rows:
            expected[2] = 0.0
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4, err_msg=name)
