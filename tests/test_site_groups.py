"""What is compared a few rows, or a few sites, at a time is what is compared at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rewrite_proof import TWO
from test_verify import EINSUM, GUARDED, PLAIN, rewritten

import onnx_attnq.verification.row_blocks as row_blocks
from onnx_attnq.inputs import generate_samples, made_up_samples
from onnx_attnq.rewriting import read_record
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import HeadSchemes, preset
from onnx_attnq.verification import verify
from onnx_attnq.verification.row_blocks import blocks, part
from onnx_attnq.verification.site_groups import site_groups

HEADS = HeadSchemes((preset(), preset(bits=2)))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 200), st.booleans())
def test_blocks_are_each_row_once_and_small(shape: list[int], most: int, by_head: bool) -> None:
    seen = np.zeros(shape, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "BLOCK", most)
        places = list(blocks(tuple(shape), HEADS if by_head else preset()))
    for place in places:
        seen[place] += 1
        first = 0 if by_head and len(shape) == 3 else 1
        assert seen[place].size <= max(most, math.prod(shape[first:-2]) * shape[-1])
    assert (seen == 1).all()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.booleans(), st.booleans())
def test_the_part_of_a_mask_is_that_of_what_it_is_broadcast_to(b: int, h: int, q: int, one: bool, low: bool) -> None:
    shape = (b, h, q, 5)
    mask = np.random.default_rng(0).normal(size=(1 if one else b, 1, q, 5))
    mask = mask[0, 0] if low and one else mask
    whole = np.broadcast_to(mask, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "BLOCK", 7)
        for place in blocks(shape, preset()):
            np.testing.assert_array_equal(np.broadcast_to(part(mask, place), whole[place].shape), whole[place])


@pytest.mark.parametrize("text", [PLAIN, GUARDED, EINSUM, TWO], ids=["attention", "guarded", "softmax", "two"])
@pytest.mark.parametrize(("memory", "block"), [(1, 1), (300, 40), pytest.param(1500, 2**18, marks=pytest.mark.slow)])
def test_a_small_memory_changes_nothing(text: str, memory: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, model = rewritten(text, preset())
    samples = generate_samples(original, 3, 0)
    large = verify(original, model, samples, run=RunSettings(1))
    monkeypatch.setattr(row_blocks, "BLOCK", block)
    small = verify(original, model, samples, run=RunSettings(1, memory=memory))
    assert large.passed, large.failures
    assert small.to_json() == large.to_json()


@pytest.mark.parametrize("text", [PLAIN, EINSUM], ids=["attention", "softmax"])
@pytest.mark.parametrize("memory", [1, 2**28])
def test_what_is_wrong_in_one_row_is_seen_whatever_the_memory(
    text: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row of the last sample, as if the op had not quantized it."""
    original, model = rewritten(text, preset(bits=2))
    samples = generate_samples(original, 2, 0)
    record = read_record(model)
    assert record is not None
    last = next(iter(samples[-1].values()))
    right = Session.run

    def wrong(session: Session, sample, outputs=None):  # type: ignore[no-untyped-def]
        found = right(session, sample, outputs)
        for name, array in found.items():
            shown = name.removesuffix("_rows") == record.sites[0].output
            if shown and array.size and any(value is last for value in sample.values()):
                changed = array.copy()
                changed.reshape(-1, array.shape[-1])[-1] *= 1.01
                found[name] = changed
        return found

    monkeypatch.setattr(Session, "run", wrong)
    monkeypatch.setattr(row_blocks, "BLOCK", 16)
    found = verify(original, model, samples, run=RunSettings(1, memory=memory))
    assert any("codes are wrong" in failure for failure in found.failures)


def test_sites_share_a_session_as_far_as_the_memory_goes() -> None:
    _, model = rewritten(TWO, preset())
    record = read_record(model)
    assert record is not None
    samples = ({"x": np.zeros((1, 3, 4), np.float32)}, {"x": np.zeros((2, 8, 4), np.float32)})
    assert [len(g.sites) for g in site_groups(model, record.sites, samples, 2**20)] == [2]
    size = 2 * 8 * 4 * 4
    assert [len(g.sites) for g in site_groups(model, record.sites, samples, 3 * size)] == [1, 1]
    _, einsum = rewritten(EINSUM, preset())
    record = read_record(einsum)
    assert record is not None
    (whole,) = site_groups(einsum, record.sites, generate_samples(einsum, 1), 2**20)
    (split,) = site_groups(einsum, record.sites, generate_samples(einsum, 1), 2000)
    assert whole.queries is None
    assert split.queries is not None
    assert split.runs > 1


def test_each_variant_runs_once_on_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original not again where samples were made up and tried on it; the ops alone are no runs of the model."""
    original, model = rewritten(TWO, preset())
    runs: list[int] = []
    right = Session.run

    def counted(session: Session, sample, outputs=None):  # type: ignore[no-untyped-def]
        runs.append("x" in session.inputs)
        return right(session, sample, outputs)

    monkeypatch.setattr(Session, "run", counted)
    made = made_up_samples(original, 3)
    assert sum(runs) == 3
    found = verify(original, model, made.samples, expected=made.outputs)
    assert found.passed
    assert sum(runs) == 3 * (1 + 1 + len(found.runs))


@pytest.mark.parametrize("text", [PLAIN, EINSUM], ids=["attention", "softmax"])
@pytest.mark.parametrize(
    ("tokens", "memory"), [(256, 2**17), pytest.param(4096, 2**24, marks=pytest.mark.slow)], ids=["256", "4096"]
)
def test_no_run_gives_more_than_the_memory(
    text: str, tokens: int, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities of a site that are several times as large as what a run may return."""
    original, model = rewritten(text, preset())
    sample = generate_samples(original, 1, 0, shapes=[(1, tokens)])[0]
    returned: list[int] = []
    right = Session.run

    def measured(session: Session, sample, outputs=None):  # type: ignore[no-untyped-def]
        found = right(session, sample, outputs)
        returned.append(sum(array.nbytes for array in found.values()))
        return found

    monkeypatch.setattr(Session, "run", measured)
    monkeypatch.setattr(row_blocks, "BLOCK", min(row_blocks.BLOCK, memory // 4))
    found = verify(original, model, [sample], run=RunSettings(1, memory=memory))
    assert found.passed
    assert found.standard.codes.codes * 4 >= 2 * memory
    assert max(returned) <= memory + 8  # with the number of rows that there are
