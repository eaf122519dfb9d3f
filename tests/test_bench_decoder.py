"""Decoders with a cache, of every layout: rewritten, verified, and timed in both phases."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from decoder_models import KINDS, decoder
from fused_case import CURRENT_KERNELS

from onnx_attnq.cli.group import cli
from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs import Step, shared_buffers, step_of, step_sample, steps_of
from onnx_attnq.job import TimingSettings, bench, compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.verification import VerifySettings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bert import bert

pytestmark = CURRENT_KERNELS

FAST = TimingSettings(tokens=(12,), repeats=1, memory=False)


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=[] if kind in ("gqa", "concat") else [pytest.mark.slow]) for kind in KINDS],
)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    onnx.save(decoder(request.param), folder / "decoder.onnx")
    found = compress(folder / "decoder.onnx", rewriting=RewriteSettings(keep_fused=False))
    assert found.output is not None
    assert found.verification is not None
    assert found.verification.passed
    assert len(found.plan.sites) == 2
    return request.param, folder / "decoder.onnx", found.output


def test_both_phases_are_timed(models: tuple[str, Path, Path]) -> None:
    kind, original, rewritten = models
    timings, _ = bench(original, [rewritten], settings=FAST, run=RunSettings(1))
    steps = list(dict.fromkeys(timing.step for timing in timings))
    if kind in ("gqa", "scatter"):
        assert steps == [Step(12, 0, 48), Step(1, 12, 13), Step(1, 12, 48)]
    else:
        assert steps == [Step(12), Step(1, 12)]
    assert {t.variant for t in timings} >= {"original", "rewritten, portable"}


def test_a_model_alone_is_as_fast_as_itself(tmp_path: Path) -> None:
    onnx.save(decoder("gqa"), tmp_path / "decoder.onnx")
    settings = TimingSettings(tokens=(12,), repeats=3, memory=False)
    timings, _ = bench(tmp_path / "decoder.onnx", [], settings=settings, run=RunSettings(1))
    assert {t.ratio for t in timings if t.variant == "original"} == {1.0}


def test_a_step_has_the_sizes_that_it_says(models: tuple[str, Path, Path]) -> None:
    _, original, _ = models
    model = load(original)
    for step in steps_of(model, (7,)):
        sample = step_sample(model, step)
        assert sample["input_ids"].shape == (1, step.tokens)
        assert sample["past_key_values.0.key"].shape[2] == (step.past if step.capacity is None else step.capacity)
        if "attention_mask" in sample:
            assert sample["attention_mask"].shape == (1, step.past + step.tokens)
        assert Session(original).run(sample)["logits"].shape == (1, step.tokens, 64)
        assert step_of(model, sample).tokens == step.tokens


def test_a_shared_buffer_gives_what_two_buffers_give(tmp_path: Path) -> None:
    onnx.save(decoder(), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    pairs = shared_buffers(model)
    assert pairs == {
        f"past_key_values.{i}.{part}": f"present.{i}.{part}" for i in range(2) for part in ("key", "value")
    }
    session = Session(model)
    sample = step_sample(model, Step(1, 12, 20))
    before = {name: array.copy() for name, array in sample.items()}
    run = session.bound(sample, pairs)
    run()
    for name, array in sample.items():  # the caller's arrays are not written to
        np.testing.assert_array_equal(array, before[name])


def test_a_model_without_a_cache_is_timed_as_before(tmp_path: Path) -> None:
    onnx.save(bert(1, 8, 2, vocabulary=10), tmp_path / "m.onnx")
    assert steps_of(load(tmp_path / "m.onnx"), (4, 8)) == (Step(4), Step(8))


def test_a_model_of_images_is_timed_once_and_has_no_tokens(tmp_path: Path) -> None:
    onnx.save(bert(1, 8, 2, image=32), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    (step,) = steps_of(model, (4, 8))
    assert str(step) == str(step_of(model, step_sample(model, step))) == "1x3x32x32"
    timings, _ = bench(tmp_path / "m.onnx", [], settings=TimingSettings((4,), repeats=1, memory=False))
    assert timings[0].to_json()["tokens"] is None
    assert timings[0].to_json()["shape"] == (1, 3, 32, 32)


def test_what_does_not_run_is_said_and_the_rest_is_timed(tmp_path: Path) -> None:
    """The table of positions has 96 rows."""
    onnx.save(decoder(), tmp_path / "m.onnx")
    compress(tmp_path / "m.onnx", tmp_path / "n.onnx", verification=None)
    arguments = ["bench", str(tmp_path / "m.onnx"), str(tmp_path / "n.onnx"), "--repeats", "1", "--no-memory"]
    done = CliRunner().invoke(cli, [*arguments, "--tokens", "8", "--tokens", "500", "--json", "-"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.output)
    assert {(t["tokens"], t["past"], t["capacity"]) for t in data["timings"]} == {(8, 0, 32), (1, 8, 9), (1, 8, 32)}
    assert any(line.startswith("500 tokens") for line in data["missing"])
    with pytest.raises(InvalidData, match="does not run the model on this sample"):
        bench(tmp_path / "m.onnx", [], settings=TimingSettings((500,), repeats=1, memory=False))


def test_each_phase_has_its_own_line(tmp_path: Path) -> None:
    onnx.save(decoder(), tmp_path / "m.onnx")
    compress(tmp_path / "m.onnx", tmp_path / "n.onnx", verification=None)
    arguments = ["bench", str(tmp_path / "m.onnx"), str(tmp_path / "n.onnx"), "--repeats", "1", "--no-memory"]
    lines = CliRunner().invoke(cli, [*arguments, "--tokens", "8"]).output.splitlines()
    for step in ("8 tokens, room for 32", "1 token after 8, room for 9", "1 token after 8, room for 32"):
        assert any(line.startswith(f"{step}: rewritten, ") and "as fast as the original" in line for line in lines)


def test_the_head_axis_of_the_cache_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    """As onnxruntime-genai 0.18 writes it; its size follows from the op's attributes."""
    onnx.save(decoder(cache_axis="kv_cache_dim"), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx")
    assert found.verification is not None
    assert found.verification.passed
    model = load(tmp_path / "m.onnx")
    for step in steps_of(model, (7,)):
        assert step_sample(model, step)["past_key_values.0.key"].shape[1] == 2


def test_tokens_that_were_taken_back_are_no_difference(tmp_path: Path) -> None:
    """What a buffer holds behind the last key is not defined in the present; onnxruntime's own op gives zeros there."""
    onnx.save(decoder(), tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    sample = dict(step_sample(model, Step(1, 12, 20)))
    random = np.random.default_rng(0)
    for name in shared_buffers(model):
        sample[name] = random.standard_normal(sample[name].shape).astype(np.float32)
    before = {name: array.copy() for name, array in sample.items()}
    found = compress(tmp_path / "m.onnx", verification=VerifySettings((sample,)))
    assert found.verification is not None
    assert found.verification.passed, found.verification.failures
    for name, array in sample.items():
        np.testing.assert_array_equal(array, before[name])
