"""Readers of evaluation data: the published formats, and one clear line for anything else."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate import TASKS, load_task
from onnx_attnq.evaluate.data import (
    LabelledText,
    Pair,
    Question,
    questions_from_rows,
    read_labelled_texts,
    read_pairs,
    read_questions,
    read_texts,
)

SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "It is red.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "What?",
                            "answers": [{"text": "red", "answer_start": 6}, {"text": "It", "answer_start": 0}],
                        }
                    ],
                }
            ],
        }
    ]
}


def test_squad_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SQUAD))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(json.dumps(SQUAD).encode()))
    expected = (Question("What?", "It is red.", ("red", "It")),)
    assert read_questions(tmp_path / "a.json") == read_questions(tmp_path / "a.json.xz") == expected


def test_squad_rows_of_the_hub() -> None:
    row = {"question": "What?", "context": "It is red.", "answers": {"text": ["red"], "answer_start": [6]}}
    assert questions_from_rows([row]) == (Question("What?", "It is red.", ("red",)),)


def test_sst2_keeps_quotes_and_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence\tlabel\n"a charming journey .\t1\nbleak\t0\n')
    expected = (LabelledText('"a charming journey .', 1), LabelledText("bleak", 0))
    assert read_labelled_texts(tmp_path / "a.tsv") == expected


def test_stsb_with_a_comma_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"Yes, a man.",A man.,4.2\n')
    assert read_pairs(tmp_path / "a.csv") == (Pair("Yes, a man.", "A man.", 4.2),)


def test_texts_without_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    assert read_texts(tmp_path / "a.txt") == ("one", "two")


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("question-answering", "{", "SQuAD"),
        ("question-answering", '{"data": [{"paragraphs": [{"qas": []}]}, 3]}', "SQuAD"),
        ("retrieval", '{"version": 1}', "no 'data'"),
        ("text-classification", "text\tclass\na\t1\n", "'sentence' and 'label'"),
        ("text-classification", "sentence\tlabel\na\tgood\n", ":2: 'good' is not a number"),
        ("text-classification", "sentence\tlabel\na\n", ":2: None is not a number"),
        ("sentence-similarity", "a,b\n", ":1: 2 columns"),
        ("sentence-similarity", "a,b,3\na,b,c\n", ":2: 'c' is not a number"),
        ("fill-mask", "\n\n", "no examples"),
    ],
)
def test_other_formats_end_in_one_line_that_names_the_file(tmp_path: Path, task: str, text: str, message: str) -> None:
    path = tmp_path / "data.txt"
    path.write_text(text)
    with pytest.raises(InvalidData, match=message) as caught:
        load_task(task, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="No such file"):
        load_task("fill-mask", tmp_path / "none.txt")


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
def test_a_damaged_archive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"not compressed")
    with pytest.raises(InvalidData, match=r"a\.txt"):
        load_task("fill-mask", path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidData, match="utf-8"):
        load_task("fill-mask", tmp_path / "a.txt")


def test_unknown_task_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=", ".join(TASKS)):
        load_task("translation", tmp_path / "x")


def test_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\nc\n")
    assert load_task("fill-mask", tmp_path / "a.txt", limit=2).texts == ("a", "b")  # type: ignore[attr-defined]
