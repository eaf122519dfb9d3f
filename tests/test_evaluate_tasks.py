"""Every task on models whose metric is known in advance."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from text_models import WORDS, load, lookup, tokenizer

from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.evaluate import (
    CausalLanguageModelling,
    MaskedLanguageModelling,
    QuestionAnswering,
    Retrieval,
    SentenceSimilarity,
    Task,
    TextClassification,
)
from onnx_attnq.evaluate.causal_lm import _windows
from onnx_attnq.evaluate.data import LabelledText, Pair, Question
from onnx_attnq.evaluate.question_answering import answer

UNIFORM = np.zeros((len(WORDS), len(WORDS)), np.float32)


def metrics(task: Task, records: np.ndarray) -> dict[str, float]:
    return {metric.name: metric.compute(records) for metric in task.metrics}


def span_finder(folder: Path, word: str) -> Path:
    """Start and end are wherever ``word`` is."""
    logits = np.array([10.0 if w == word else 0.0 for w in WORDS], np.float32)
    return lookup(folder, {"start_logits": logits, "end_logits": logits})


def test_an_answer_in_the_last_window_of_a_long_paragraph_is_found(tmp_path: Path) -> None:
    context = "big house " * 60 + "tree " + "small house " * 3
    assert answer(load(span_finder(tmp_path, "tree")), "red car", context, max_length=32)[0] == "tree"


def test_words_of_the_question_are_no_answer(tmp_path: Path) -> None:
    assert answer(load(span_finder(tmp_path, "tree")), "tree", "red car")[0] != "tree"


def test_question_answering_takes_the_best_of_several_answers(tmp_path: Path) -> None:
    questions = (
        Question("red", "big tree", ("nothing", "tree")),
        Question("red", "big tree", ("big tree",)),
        Question("red", "big tree", ("car",)),
    )
    task = QuestionAnswering(questions)
    found = metrics(task, task.records(load(span_finder(tmp_path, "tree"))))
    assert found == pytest.approx({"EM": 100 / 3, "F1": (100 + 200 / 3 + 0) / 3})


def test_question_answering_needs_span_logits(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="start_logits"):
        answer(load(lookup(tmp_path, {"logits": UNIFORM})), "red", "green")


def test_a_question_without_an_answer_is_not_squad_1(tmp_path: Path) -> None:
    questions = (Question("red", "big tree", ("tree",)), Question("blue", "big tree", ()))
    with pytest.raises(InvalidData, match=r"1 question.*'blue'"):
        QuestionAnswering(questions).records(load(span_finder(tmp_path, "tree")))


def test_classification_accuracy_is_that_of_sklearn(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(len(WORDS), 3)).astype(np.float32)
    path = lookup(tmp_path, {"token_logits": table})
    model = load(path)
    words = WORDS[5:]
    # The logits of the whole text are those of its first word: an adapter around a model that has one row per token.
    session = model.session
    first = type(model)(lambda s: {"logits": session(s)["token_logits"][:, 1]}, model.inputs, model.tokenizer)
    labels = [i % 3 for i in range(len(words))]
    task = TextClassification(tuple(LabelledText(w, label) for w, label in zip(words, labels, strict=True)))
    records = task.records(first)
    predicted = table[5:].argmax(axis=1)
    assert metrics(task, records)["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    exact = table[5:].astype(np.float64)
    nll = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(len(words)), labels]
    assert metrics(task, records)["NLL"] == pytest.approx(nll.mean(), rel=1e-6)
    with pytest.raises(InvalidData, match="label 3"):
        TextClassification((LabelledText("red", 3),)).records(first)


def test_a_uniform_masked_model_has_the_vocabulary_as_its_pseudo_perplexity(tmp_path: Path) -> None:
    task = MaskedLanguageModelling(("red house " * 20, "blue"))
    records = task.records(load(lookup(tmp_path, {"logits": UNIFORM})))
    assert records[:, 2].tolist() == [40, 1]  # [CLS] and [SEP] are not predicted
    assert metrics(task, records)["pseudo-perplexity"] == pytest.approx(len(WORDS))


def test_a_masked_token_is_not_seen_by_the_model(tmp_path: Path) -> None:
    copying = (100 * np.eye(len(WORDS))).astype(np.float32)  # right about every token that it sees
    task = MaskedLanguageModelling(("red green blue",))
    assert metrics(task, task.records(load(lookup(tmp_path, {"logits": copying}))))["accuracy"] == 0.0


def test_perplexity_of_a_known_transition(tmp_path: Path) -> None:
    table = np.full((len(WORDS), len(WORDS)), -100.0, np.float32)
    red, green, blue = (WORDS.index(w) for w in ("red", "green", "blue"))
    table[red, [green, blue]] = 0.0  # red is followed by green or blue, one as likely as the other
    table[green, red] = table[blue, red] = 0.0
    task = CausalLanguageModelling(("red green red blue red green red blue red",), max_length=4)
    records = task.records(load(lookup(tmp_path, {"logits": table})))
    assert records[:, 2].sum() == 8
    assert metrics(task, records)["perplexity"] == pytest.approx(np.sqrt(2.0))


@given(count=st.integers(2, 300), length=st.integers(8, 64))
def test_windows_score_every_token_but_the_first_once(count: int, length: int) -> None:
    windows = _windows(count, length)
    scored = [token for _, first, stop in windows for token in range(first, stop)]
    assert scored == list(range(1, count))
    assert all(0 <= start < first and stop - start <= length for start, first, stop in windows)
    # A token that is not in the first window has at least half a window before it.
    assert all(first - start >= length // 2 for start, first, _ in windows[1:])


def test_similarity_orders_pairs_as_people_do(tmp_path: Path) -> None:
    angles = np.linspace(0.0, 1.0, len(WORDS))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    table[:5] = 0.0  # special tokens add nothing to the mean
    model = load(lookup(tmp_path, {"last_hidden_state": table}))
    task = SentenceSimilarity((Pair("red", "green", 5.0), Pair("red", "big", 3.0), Pair("red", "car", 1.0)))
    assert metrics(task, task.records(model))["Spearman"] == pytest.approx(1.0)


def test_the_models_own_sentence_embedding_is_preferred(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = {n: rng.normal(size=(len(WORDS), 4)).astype(np.float32) for n in ("last_hidden_state", "pooled")}
    model = load(lookup(tmp_path, tables))
    session = model.session

    def pooled(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = session(sample)
        return {"last_hidden_state": outputs["last_hidden_state"], "sentence_embedding": outputs["pooled"][:, 1]}

    task = SentenceSimilarity((Pair("red", "green", 1.0),))
    a, b = tables["pooled"][5].astype(np.float64), tables["pooled"][6].astype(np.float64)
    cosine = task.records(type(model)(pooled, model.inputs, model.tokenizer))[0, 1]
    assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_retrieval_ranks_the_paragraph_that_was_asked_about(tmp_path: Path) -> None:
    model = load(lookup(tmp_path, {"last_hidden_state": np.eye(len(WORDS), dtype=np.float32)}))
    questions = (
        Question("red tree", "red tree car", ("x",)),
        Question("blue house", "blue house car", ("x",)),
        Question("blue house", "big small", ("x",)),  # the least similar of three
    )
    task = Retrieval(questions)
    records = task.records(model)
    assert records[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert records[2, 1] == pytest.approx(1 / 3, abs=0.17)  # rank 2 or 3: two paragraphs share no word
    assert metrics(task, records)["accuracy@1"] == pytest.approx(2 / 3)


def test_a_model_with_fixed_shapes_is_refused(tmp_path: Path) -> None:
    model = load(lookup(tmp_path, {"logits": UNIFORM}, shape=(1, 4)))
    with pytest.raises(InvalidData, match="dynamic axes"):
        model.run({"input_ids": [[5, 6]]})


QUESTIONS = (Question("red", "big tree " * 40, ("tree",)), Question("blue", "big tree", ("tree",)))


@pytest.mark.parametrize(
    "task",
    [
        SentenceSimilarity(tuple(Pair(a, b, 1.0) for a, b in itertools.pairwise(WORDS))),
        MaskedLanguageModelling(("red", "red house " * 20, "")),
        CausalLanguageModelling(("red house " * 20,), max_length=8),
        QuestionAnswering(QUESTIONS, max_length=32),
        Retrieval(QUESTIONS),
    ],
    ids=lambda task: task.name,
)
def test_progress_counts_runs(task: Task, tmp_path: Path) -> None:
    vector = UNIFORM[0]
    tables = {"logits": UNIFORM, "last_hidden_state": UNIFORM + 1, "start_logits": vector, "end_logits": vector}
    model = load(lookup(tmp_path, tables))
    runs: list[object] = []
    seen: list[tuple[int, int]] = []
    counting = dataclasses.replace(model, session=lambda sample: runs.append(sample) or model.session(sample))
    task.records(counting, lambda _, *step: seen.append(step))
    assert len(runs) > 2
    assert seen[-1] == (len(runs), len(runs))
    assert all(done <= total for done, total in seen)


def test_the_tokenizer_pairs_question_and_paragraph() -> None:
    assert tokenizer()("red", "green").sequence_ids(0) == [None, 0, None, 1, None]
