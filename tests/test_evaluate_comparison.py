"""Intervals, the comparison of two models, what is kept of the attention, and the command."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from text_models import WORDS, attention, load, tokenizer

from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidData, InvalidModel, MissingExtra
from onnx_attnq.evaluate import Metric, SentenceSimilarity, TextModel, attention_figures, compare, evaluate
from onnx_attnq.evaluate.attention import SAMPLES, Recording
from onnx_attnq.evaluate.bootstrap import Bootstrap, relative_loss
from onnx_attnq.evaluate.data import Pair
from onnx_attnq.evaluate.records import mean_of
from onnx_attnq.extras import first_problem
from onnx_attnq.job import compress
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import preset

ACCURACY = Metric("accuracy", mean_of(0))
TEXTS = ("red green blue", "big small house", "tree car", "red red red", "blue house car big", "small tree")
PAIRS = tuple(Pair(a, b, float(i)) for i, (a, b) in enumerate(itertools.pairwise(TEXTS)))


def test_the_interval_of_an_accuracy_is_that_of_the_binomial() -> None:
    right = (np.random.default_rng(0).random((2000, 1)) < 0.8).astype(np.float64)
    found = compare(right, right, ACCURACY).original
    p = right.mean()
    error = 1.96 * math.sqrt(p * (1 - p) / len(right))
    # 1000 resamples know a 2.5 % quantile to about a tenth of the interval.
    assert found.low == pytest.approx(p - error, abs=0.2 * error)
    assert found.high == pytest.approx(p + error, abs=0.2 * error)


def test_pairing_narrows_the_interval_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    original = (rng.random((500, 1)) < 0.7).astype(np.float64)
    compressed = original.copy()
    compressed[:5] = 0.0
    found = compare(original, compressed, ACCURACY)
    width = found.relative_loss.high - found.relative_loss.low
    assert width < 0.3 * (found.original.high - found.original.low)
    assert found.relative_loss.low <= found.relative_loss.estimate <= found.relative_loss.high


def test_the_same_seed_gives_the_same_interval() -> None:
    records = np.random.default_rng(2).random((50, 1))
    assert compare(records, records**2, ACCURACY, seed=3) == compare(records, records**2, ACCURACY, seed=3)
    assert compare(records, records**2, ACCURACY, seed=3) != compare(records, records**2, ACCURACY, seed=4)


def test_a_loss_is_undefined_where_the_original_is_zero() -> None:
    zeros = np.zeros((4, 1))
    found = compare(zeros, zeros, ACCURACY)
    assert math.isnan(relative_loss(0.0, 1.0, True))
    assert found.to_json()["relative_loss"] == {"estimate": None, "low": None, "high": None}


def test_records_must_be_of_the_same_examples() -> None:
    with pytest.raises(InvalidData, match="different examples"):
        compare(np.zeros((3, 1)), np.zeros((4, 1)), ACCURACY)
    with pytest.raises(InvalidData, match="two or more"):
        compare(np.zeros((1, 1)), np.zeros((1, 1)), ACCURACY)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attention(tmp_path_factory.mktemp("model"))


def softmaxes(text: str) -> np.ndarray:
    """The probabilities of `attention`, in float64."""
    table = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    rows = table[tokenizer()(text)["input_ids"]].astype(np.float64)
    exp = np.exp(rows @ rows.T - (rows @ rows.T).max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def test_share_pruned_and_kept_mass_of_a_pruned_model(original: Path, tmp_path: Path) -> None:
    threshold = 1e-2
    path = tmp_path / "pruned.onnx"
    compress(original, path, scheme=preset("prune-only", threshold=threshold), verification=None)
    model = load(path)
    found = attention_figures(path, [model.sample(model.tokenizer([text])) for text in TEXTS], run=RunSettings(1))
    p = [softmaxes(text) for text in TEXTS]
    values = np.concatenate([rows.ravel() for rows in p])
    rows = sum(len(rows) for rows in p)
    assert 0.0 < found.pruned == pytest.approx((values < threshold).mean())
    assert found.kept_mass == pytest.approx(values[values >= threshold].sum() / rows, abs=1e-6)
    assert found.row_mass == pytest.approx(found.kept_mass, abs=1e-6)
    assert found.rows == rows


def test_rows_of_row_log_have_mass_one(original: Path, tmp_path: Path) -> None:
    compress(original, tmp_path / "a.onnx", verification=None)
    model = load(tmp_path / "a.onnx")
    found = attention_figures(tmp_path / "a.onnx", [model.sample(model.tokenizer([TEXTS[0]]))], run=RunSettings(1))
    assert found.row_mass == pytest.approx(1.0, abs=1e-6)
    assert found.kept_mass < 1.0


def test_a_model_without_a_record_has_no_figures(original: Path) -> None:
    with pytest.raises(InvalidModel, match="no record"):
        attention_figures(original, [])


def test_a_model_that_another_tool_made_is_compared_and_has_no_figures_of_attention(
    original: Path, tmp_path: Path
) -> None:
    compress(original, tmp_path / "ours.onnx", verification=None)
    theirs = shutil.copy(original, tmp_path / "theirs.onnx")
    found = evaluate(
        SentenceSimilarity(PAIRS),
        original,
        [theirs, tmp_path / "ours.onnx"],
        tokenizer(),
        run=RunSettings(1),
        bootstrap=Bootstrap(5),
    )
    assert [model.attention is None for model in found.compressed] == [True, False]
    assert found.compressed[0].comparisons[0].relative_loss.estimate == 0.0


def test_identity_loses_nothing(original: Path, tmp_path: Path) -> None:
    compress(original, tmp_path / "same.onnx", scheme=preset("identity"), verification=None)
    compress(original, tmp_path / "coarse.onnx", scheme=preset("row-log", bits=1), verification=None)
    task = SentenceSimilarity(PAIRS)
    paths = [tmp_path / "same.onnx", tmp_path / "coarse.onnx"]
    seen: list[tuple[int, int]] = []
    found = evaluate(
        task,
        original,
        paths,
        tokenizer(),
        run=RunSettings(1),
        bootstrap=Bootstrap(50),
        progress=lambda _, *step: seen.append(step),
    )
    same, coarse = found.compressed
    assert same.comparisons[0].relative_loss.estimate == 0.0
    assert (same.attention.pruned, same.attention.row_mass) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert coarse.attention.pruned > 0.0
    # Two texts of each pair by three models, and the first of these for the attention of two.
    runs = 3 * 2 * len(PAIRS) + 2 * min(SAMPLES, 2 * len(PAIRS))
    assert seen[-1] == (runs, runs)
    assert {total for _, total in seen} == {runs}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert json.loads(json.dumps(found.to_json()))["count"] == len(PAIRS)


def test_recording_keeps_the_first_samples_only(original: Path) -> None:
    recording = Recording(load(original), 2)
    SentenceSimilarity(PAIRS).records(recording.model)
    assert len(recording.samples) == 2
    assert recording.samples[0]["input_ids"].shape == (1, 5)


def test_recording_keeps_one_text_of_a_batch(original: Path) -> None:
    recording = Recording(load(original))
    recording.model.run(tokenizer()(["red green", "blue car"]))
    assert recording.samples[0]["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_the_command_compresses_evaluates_and_leaves_nothing_behind(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer().save_pretrained(tmp_path / "words")
    data = tmp_path / "pairs.csv"
    data.write_text("".join(f"{p.first},{p.second},{p.score}\n" for p in PAIRS))
    before = sorted(original.parent.iterdir())
    arguments = f"evaluate {original} --task sentence-similarity --data {data} --tokenizer {tmp_path / 'words'}"
    arguments += " --scheme ji2021 --bits 2 --resamples 20 --threads 1"
    with pytest.raises(SystemExit) as caught:
        main([*arguments.split(), "--json", "-"])
    assert not caught.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "sentence-similarity"
    assert report["compressed"][0]["metrics"][0]["metric"] == "Spearman"
    assert 0.0 < report["compressed"][0]["attention"]["row_mass"] < 1.0
    assert sorted(original.parent.iterdir()) == before
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert not caught.value.code
    assert "attention.ji2021-2bit.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data x --dataset y", "one of the two"),
        ("", "one of the two"),
        ("--data none.csv", "no such folder"),
    ],
)
def test_bad_usage_is_one_line(
    original: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"evaluate {original} --task sentence-similarity --tokenizer nowhere {arguments}"
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_past_of_length_zero_is_made_up(original: Path) -> None:
    from onnx_attnq.inputs import ModelInput

    inputs = (
        ModelInput("input_ids", np.dtype(np.int64), ("batch", "sequence")),
        ModelInput("attention_mask", np.dtype(np.int64), ("batch", "past + sequence")),
        ModelInput("position_ids", np.dtype(np.int64), ("batch", "sequence")),
        ModelInput("past_key_values.0.key", np.dtype(np.float32), ("batch", 2, "past", 16)),
    )
    model = TextModel(lambda sample: {}, inputs, tokenizer())
    sample = model.sample({"input_ids": [[5, 6, 7]] * 2})
    assert {name: array.shape for name, array in sample.items()} == {
        "input_ids": (2, 3),
        "attention_mask": (2, 3),
        "position_ids": (2, 3),
        "past_key_values.0.key": (2, 2, 0, 16),
    }
    with pytest.raises(InvalidModel, match="pixel_values"):
        TextModel(lambda sample: {}, (ModelInput("pixel_values", np.dtype(np.float32), None),), tokenizer()).sample(
            {"input_ids": [[5]]}
        )


def test_version_conflicts_name_both_versions() -> None:
    assert (
        first_problem(["numpy<1 ; extra == 'x'"], "x") == f"'x' needs numpy<1, but numpy {np.__version__} is installed"
    )
    assert first_problem(["numpy<1 ; extra == 'y'", "numpy<1 ; python_version > '3'"], "x") is None
    assert issubclass(MissingExtra, Exception)
