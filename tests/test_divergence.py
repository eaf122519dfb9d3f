"""What single heads are ordered by is what verification calls KL and relative error."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_attnq.tune.divergence import BLOCK, BROKEN, Divergence
from onnx_attnq.verification import FloatOutputs

SEEDS = st.integers(0, 2**32 - 1)


def outputs(*names: str) -> FloatOutputs:
    return FloatOutputs(ir.Model(ir.Graph([], [ir.Value(name=name) for name in names], nodes=[]), ir_version=10))


@given(seed=SEEDS, rows=st.integers(0, 5), width=st.integers(1, 9), scale=st.sampled_from([1e-6, 0.1, 30.0]))
@pytest.mark.parametrize("name", ["logits", "hidden"])
def test_it_is_the_figure_of_verification(name: str, seed: int, rows: int, width: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    before = random.normal(size=(2, rows, width)).astype(np.float32) * 10
    after = before + (random.normal(size=before.shape) * scale).astype(np.float32)
    known = outputs(name)
    (moved,) = known.deviations({name: before}, {name: after}, {})
    expected = moved.relative_error**2 if moved.kl is None else max(moved.kl, 0.0)
    found = Divergence({name: before}, known, {}).of({name: after})
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-11)


def test_blocks_of_rows_are_one_mean() -> None:
    rng = np.random.default_rng(0)
    width = BLOCK // 3
    before = rng.normal(size=(8, width)).astype(np.float32)
    after = before + rng.normal(size=before.shape).astype(np.float32)
    (moved,) = outputs("logits").deviations({"logits": before}, {"logits": after}, {})
    assert Divergence({"logits": before}, outputs("logits"), {}).of({"logits": after}) == pytest.approx(moved.kl)


def test_padding_does_not_count() -> None:
    tokens = ["batch", "tokens"]
    mask = ir.Value(name="attention_mask", shape=ir.Shape(tokens))
    logits = ir.Value(name="logits", shape=ir.Shape([*tokens, 3]))
    known = FloatOutputs(ir.Model(ir.Graph([mask], [logits], nodes=[]), ir_version=10))
    before = np.zeros((1, 2, 3), np.float32)
    found = Divergence({"logits": before}, known, {"attention_mask": np.array([[1, 0]])})
    assert found.of({"logits": np.array([[[0, 0, 0], [9, 0, 0]]], np.float32)}) == 0.0
    assert found.of({"logits": np.array([[[9, 0, 0], [0, 0, 0]]], np.float32)}) > 1.0


@pytest.mark.parametrize("name", ["logits", "hidden"])
def test_infinities_that_the_original_has_are_left_aside_and_new_ones_break(name: str) -> None:
    before = np.array([[1.0, 2.0], [0.0, -np.inf]], np.float32)
    found = Divergence({name: before}, outputs(name), {})
    assert found.of({name: before}) == pytest.approx(0.0, abs=1e-12)
    assert 0.0 < found.of({name: before + np.array([[0.5, 0.0], [0.0, 0.0]], np.float32)}) < 1.0
    assert found.of({name: np.array([[np.nan, 2.0], [0.0, -np.inf]], np.float32)}) == BROKEN


def test_an_infinity_that_becomes_another_one_breaks() -> None:
    before = np.array([[1.0, -np.inf]], np.float32)
    assert Divergence({"hidden": before}, outputs("hidden"), {}).of({"hidden": -before}) == BROKEN
