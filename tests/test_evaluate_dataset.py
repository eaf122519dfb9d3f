"""`evaluate --dataset` on folders, which the package ``datasets`` reads as it does data sets of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="needs the extra 'hub'")

import datasets
from text_models import attention, tokenizer

from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate import Task, task_from_hub
from onnx_attnq.evaluate.data import LabelledText, Pair, Question

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
# datasets leaves the files open that it reads

SQUAD_ROWS = [
    {"question": "What?", "context": "It is red.", "answers": {"text": ["red", "It"], "answer_start": [6, 0]}},
    {"question": "Who?", "context": "A fox.", "answers": {"text": ["fox"], "answer_start": [2]}},
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def examples(task: Task) -> tuple[object, ...]:
    return next(getattr(task, name) for name in ("questions", "texts", "pairs") if hasattr(task, name))  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", ["question-answering", "retrieval"])
def test_squad_as_json_lines(folder: Path, task: str) -> None:
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SQUAD_ROWS))
    expected = (Question("What?", "It is red.", ("red", "It")), Question("Who?", "A fox.", ("fox",)))
    assert examples(task_from_hub(task, str(folder), "validation")) == expected


def test_sst2_as_tsv(folder: Path) -> None:
    (folder / "validation.tsv").write_text("sentence\tlabel\na charming journey\t1\nbleak\t0\n")
    expected = (LabelledText("a charming journey", 1), LabelledText("bleak", 0))
    assert examples(task_from_hub("text-classification", str(folder), "validation")) == expected


def test_classes_with_names_as_parquet(folder: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_list([{"text": "good", "label": 1}], features=features)
    rows.to_parquet(folder / "test.parquet")
    assert examples(task_from_hub("text-classification", str(folder), "test")) == (LabelledText("good", 1),)


def test_stsb_as_csv_and_the_first_of_it(folder: Path) -> None:
    (folder / "validation.csv").write_text('sentence1,sentence2,score\n"Yes, a man.",A man.,4.2\nb,c,1\n')
    expected = (Pair("Yes, a man.", "A man.", 4.2), Pair("b", "c", 1.0))
    assert examples(task_from_hub("sentence-similarity", str(folder), "validation")) == expected
    assert examples(task_from_hub("sentence-similarity", str(folder), "validation[:1]")) == expected[:1]
    assert examples(task_from_hub("sentence-similarity", str(folder), "validation", limit=1)) == expected[:1]


@pytest.mark.parametrize("task", ["fill-mask", "text-generation"])
def test_text_as_parquet_without_empty_rows(folder: Path, task: str) -> None:
    rows = datasets.Dataset.from_list([{"text": text} for text in ("one", "", None, "two")])
    rows.to_parquet(folder / "validation.parquet")
    assert examples(task_from_hub(task, str(folder), "validation")) == ("one", "two")


def test_a_colon_in_the_path_of_a_folder_is_no_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "12:30"
    folder.mkdir()
    (folder / "train.txt").write_text("one\n")
    assert examples(task_from_hub("fill-mask", str(folder), "train")) == ("one",)


@pytest.mark.parametrize(
    ("task", "file", "text", "split", "message"),
    [
        ("text-classification", "train.csv", "review,label\na,1\n", "train", "no column 'sentence' or 'text'"),
        ("text-classification", "train.csv", "text,label\na,good\n", "train", "'good'"),
        ("text-classification", "train.csv", "text,label\n,1\n", "train", "None in column .* is no text"),
        ("question-answering", "train.json", '{"data": [{"paragraphs": []}]}', "train", "no column 'question'"),
        ("question-answering", "train.json", "{", "train", "JSON parse error"),
        ("sentence-similarity", "train.csv", "sentence1,sentence2\na,b\n", "train", "no column 'label' or 'score'"),
        ("fill-mask", "train.txt", "one\n", "validation", "Unknown split"),
        ("fill-mask", "train.txt", "\n\n", "train", "no examples"),
        ("fill-mask", "read.me", "one\n", "train", "data files"),
    ],
)
def test_anything_else_is_one_line_that_names_the_data_set(
    folder: Path, task: str, file: str, text: str, split: str, message: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(InvalidData, match=message) as caught:
        task_from_hub(task, str(folder), split)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "validation.csv").write_text(
        "sentence1,sentence2,label\nred green blue,big house,1\ntree car,red red red,2\nsmall tree,blue,3\n"
    )
    tokenizer().save_pretrained(tmp_path / "words")
    command = f"evaluate {attention(tmp_path)} --task sentence-similarity --dataset {folder} --threads 1"
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--tokenizer", str(tmp_path / "words"), "--resamples", "20", "--json", "-"])
    assert not caught.value.code
    assert json.loads(capsys.readouterr().out)["count"] == 3
