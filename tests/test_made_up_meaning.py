"""Made-up inputs mean what the graph takes them for: tokens, lengths, masks of either polarity, settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnx_attnq.inputs import Sample, generate_samples
from onnx_attnq.inputs.mask_meaning import Meaning, mask_meaning
from onnx_attnq.inputs.roles import Role, role_of
from onnx_attnq.inputs.signature import model_inputs
from onnx_attnq.model import load
from onnx_attnq.run import Session

CASES = Path(__file__).parent / "cases"

MASKED = """
<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
masked (float[batch, 2, n, 4] q, float[batch, 2, n, 4] k, {mask}) => (float[batch, 2, n, 4] y)
<float zero = {{0}}, float one = {{1}}, float lowest = {{-10000}}, float infinity = {{-inf}}, int64 none = {{0}},
 int64[2] axes = {{1, 2}}, int64[1] axis = {{1}}>
{{
    kt = Transpose<perm = [0, 1, 3, 2]>(k)
    scores = MatMul(q, kt)
    {body}
    p = Softmax<axis = -1>(masked)
    y = MatMul(p, k)
}}
"""

ROW = "bool[batch, n] pad"
WHOLE = "int64[batch, n] pad"
FULL = "float[batch, 1, n, n] pad"
VISIBLE, HIDDEN, ADDED = Meaning.ONE_IS_VISIBLE, Meaning.ONE_IS_HIDDEN, Meaning.ADDED

MASKS = {
    "where-true-hides": (ROW, "m = Unsqueeze(pad, axes) masked = Where(m, infinity, scores)", HIDDEN),
    "where-true-shows": (ROW, "m = Unsqueeze(pad, axes) masked = Where(m, scores, lowest)", VISIBLE),
    "not-where": (ROW, "m = Unsqueeze(pad, axes) o = Not(m) masked = Where(o, lowest, scores)", VISIBLE),
    "equal-zero": (WHOLE, "e = Equal(pad, none) m = Unsqueeze(e, axes) masked = Where(m, lowest, scores)", VISIBLE),
    "one-minus": (
        WHOLE,
        "c = Cast<to = 1>(pad) m = Unsqueeze(c, axes) s = Sub(one, m) a = Mul(s, lowest) masked = Add(scores, a)",
        VISIBLE,
    ),
    "times-lowest": (
        WHOLE,
        "c = Cast<to = 1>(pad) m = Unsqueeze(c, axes) a = Mul(m, lowest) masked = Add(scores, a)",
        HIDDEN,
    ),
    "where-then-add": (
        ROW,
        "m = Unsqueeze(pad, axes) a = Where(m, infinity, zero) masked = Add(a, scores)",
        HIDDEN,
    ),
    "logarithm": (
        WHOLE,
        "c = Cast<to = 1>(pad) l = Log(c) m = Unsqueeze(l, axes) masked = Add(scores, m)",
        VISIBLE,
    ),
    "combined": (
        ROW,
        "t = Equal(scores, scores) m = Unsqueeze(pad, axes) b = Or(m, t) masked = Where(b, lowest, scores)",
        HIDDEN,
    ),
    "added": (FULL, "masked = Add(scores, pad)", ADDED),
    "added-scaled": (FULL, "s = Mul(scores, one) a = Add(s, pad) masked = Add(a, zero)", ADDED),
}


def masked(name: str, opset: int = 17) -> onnx.ModelProto:
    mask, body, _ = MASKS[name]
    return small_models.parse(MASKED.format(opset=opset, mask=mask, body=body))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_hides_the_last_two_keys_of_the_last_row_and_nothing_else(name: str) -> None:
    proto = masked(name)
    model = ir.from_proto(proto)
    assert mask_meaning(model, model.graph.inputs[2]) is MASKS[name][2]
    sample = generate_samples(model, 1)[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, None))
    probabilities = Session(ir.from_proto(proto)).run(sample)["p"]
    assert (probabilities[:-1] > 0).all()
    assert (probabilities[-1, ..., :-2] > 0).all()
    if name != "combined":  # where everything is hidden, the lowest scores are all there is
        assert (probabilities[-1, ..., -2:] < 1e-30).all()


@pytest.mark.parametrize(
    ("call", "mask", "meaning"),
    [
        ("y = Attention(q, k, k, pad)", "bool[n, n] pad", VISIBLE),
        ("y = Attention(q, k, k, pad)", "float[n, n] pad", ADDED),
        ("o = Not(pad) y = Attention(q, k, k, o)", "bool[n, n] pad", HIDDEN),
    ],
)
def test_a_fused_op_tells_what_its_mask_means(call: str, mask: str, meaning: Meaning) -> None:
    model = ir.from_proto(
        small_models.parse(
            f"""
            <ir_version: 10, opset_import: ["" : 23]>
            fused (float[batch, 2, n, 4] q, float[batch, 2, n, 4] k, {mask}) => (float[batch, 2, n, 4] y) {{ {call} }}
            """
        )
    )
    assert mask_meaning(model, model.graph.inputs[2]) is meaning
    for sample in generate_samples(model):
        assert np.isfinite(Session(model).run(sample)["y"]).all()


TABLES = {
    "quantized": ("int8[50, 8] table, float scale", "t = DequantizeLinear(table, scale) x = Gather(t, ids)"),
    "behind": ("int8[50, 8] table, float scale", "g = Gather(table, ids) x = DequantizeLinear(g, scale)"),
    "cast": ("int8[50, 8] table", "t = Cast<to = 1>(table) x = Gather(t, ids)"),
    "scaled": ("float[50, 8] table, float[50, 1] scale", "t = Mul(table, scale) x = Gather(t, ids)"),
    "transposed": ("float[8, 50] table", "t = Transpose(table) x = Gather(t, ids)"),
    "clipped": ("float[50, 8] table, int64 top = {49}", "c = Min(ids, top) x = Gather(table, c)"),
    "half": ("float16[50, 8] table", "t = Cast<to = 1>(table) u = Identity(t) x = Gather(u, ids)"),
}


@pytest.mark.parametrize("name", TABLES)
def test_token_ids_are_random_whatever_was_done_to_their_table(name: str) -> None:
    constants, body = TABLES[name]
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    table (int64[batch, n] ids) => (float[batch, n, 8] x) <{constants}> {{ {body} }}
    """
    kind = {"int8": np.int8, "float16": np.float16}.get(constants.partition("[")[0], np.float32)
    shape = (8, 50) if name == "transposed" else (50, 8)
    proto = small_models.parse(text, table=np.ones(shape, kind))
    Session(ir.from_proto(proto)).run({"ids": np.array([[49]])})
    for sample in generate_samples(ir.from_proto(proto), 8):
        ids = sample["ids"]
        assert len(np.unique(ids)) > 3
        assert ids.min() >= 4
        assert ids.max() < 50


def test_the_tokens_of_a_cast_and_scaled_table_are_random() -> None:
    for sample in generate_samples(load(CASES / "int8_table_cast_mul.onnx")):
        assert len(np.unique(sample["input_ids"])) > 4


def made_up(case: str) -> tuple[Sample, ...]:
    return generate_samples(load(CASES / case))


def test_lengths_are_those_of_the_tokens_and_the_last_row_is_shorter() -> None:
    for sample in made_up("input_lengths.onnx"):
        rows, tokens = sample["ids"].shape
        assert sample["lengths"].tolist() == ([tokens, tokens - 2] if rows == 2 else [tokens])


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("(int64[batch, n] ids, int64[batch] x_lengths) => (int64[batch] y) { y = Identity(x_lengths) }", Role.LENGTHS),
        ("(float[batch, n] ids, float[3] scales) => (float[3] y) { y = Identity(scales) }", Role.SETTING),
        (
            "(float[batch, n] ids, float[batch, n] x) => (float[batch, 1] y) { y = ReduceSum(x) }",
            Role.FEATURES,
        ),
        (
            "(float[batch, n] ids, float[3] scales) => (float[3] y) <int64 axis = {0}> { y = CumSum(scales, axis) }",
            Role.SETTING,
        ),
        ("(float[batch, n] ids, float[256] style) => (float[256] y) { y = Identity(style) }", Role.FEATURES),
        (
            "(float[batch, n] ids, int64 sr) => (bool y) <int64 rate = {16000}> { y = Equal(sr, rate) }",
            Role.CHOICE,
        ),
    ],
)
def test_what_is_no_data_is_told_from_data(text: str, role: Role) -> None:
    model = ir.from_proto(small_models.parse(f'<ir_version: 8, opset_import: ["" : 17]> m {text}'))
    assert role_of(model, model.graph.inputs[1], model_inputs(model)[1]) is role


def test_a_choice_is_one_that_the_graph_knows() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[batch, n] x, int64 sr) => (bool y) <int64 rate = {16000}> { y = Equal(sr, rate) }"""
    (sample,) = generate_samples(ir.from_proto(small_models.parse(text)), 1)
    assert sample["sr"] == 16000
