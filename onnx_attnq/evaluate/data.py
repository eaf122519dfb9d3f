"""Evaluation data: from a file in its published format, or from a hub through ``datasets``.

A path ending in .xz or .gz is decompressed on the way. Each reader has a sibling ``*_from_rows`` that takes the rows of
a ``datasets`` split, with the column names that the published data sets have there.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from onnx_attnq.errors import InvalidData, first_line
from onnx_attnq.extras import quiet_hub, require
from onnx_attnq.reading import read_regular, unpacked_limit

TableRows = Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A question, the paragraph that holds its answer, and every answer that counts as right."""

    question: str
    context: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledText:
    """A sentence and its class, an index into the model's logits."""

    text: str
    label: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences and how similar people found them; only the order of the scores matters."""

    first: str
    second: str
    score: float


def read_questions(path: str | os.PathLike[str]) -> tuple[Question, ...]:
    """Read SQuAD v1.1 JSON, which XQuAD has too.

    Raises:
        InvalidData: The file cannot be read or is not of this format.
    """
    with _open(path) as file:
        try:
            articles = json.load(file)["data"]
            return tuple(
                Question(question["question"], paragraph["context"], tuple(a["text"] for a in question["answers"]))
                for article in articles
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidData(f"{path}: not in SQuAD v1.1 format ({_reason(error)})") from error


def questions_from_rows(rows: TableRows) -> tuple[Question, ...]:
    """Columns ``question``, ``context``, ``answers`` (with ``text``), as ``rajpurkar/squad`` has them."""
    return tuple(
        Question(_text(row, "question"), _text(row, "context"), tuple(_column(_column(row, "answers"), "text")))
        for row in rows
    )


def read_labelled_texts(path: str | os.PathLike[str]) -> tuple[LabelledText, ...]:
    """Read SST-2 as GLUE publishes it: tab-separated, a header line, columns ``sentence`` and ``label``.

    Raises:
        InvalidData: The file cannot be read or is not of this format.
    """
    with _open(path) as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"sentence", "label"} <= set(rows.fieldnames or ()):
            raise InvalidData(f"{path}: the header must name the tab-separated columns 'sentence' and 'label'")
        return tuple(LabelledText(row["sentence"], _number(int, row["label"], path, rows.line_num)) for row in rows)


def labelled_texts_from_rows(rows: TableRows) -> tuple[LabelledText, ...]:
    """Columns ``sentence`` (or ``text``) and ``label``, as ``stanfordnlp/sst2`` has them."""
    return tuple(LabelledText(_text(row, "sentence", "text"), int(_column(row, "label"))) for row in rows)


def read_pairs(path: str | os.PathLike[str]) -> tuple[Pair, ...]:
    """Read STS-B as ``stsb_multi_mt`` publishes it: CSV without a header, sentence, sentence, score.

    Raises:
        InvalidData: The file cannot be read or is not of this format.
    """
    with _open(path) as file:
        rows = csv.reader(file)
        pairs = []
        for row in rows:
            if len(row) != 3:
                raise InvalidData(f"{path}:{rows.line_num}: {len(row)} columns instead of sentence, sentence, score")
            pairs.append(Pair(row[0], row[1], _number(float, row[2], path, rows.line_num)))
        return tuple(pairs)


def pairs_from_rows(rows: TableRows) -> tuple[Pair, ...]:
    """Columns ``sentence1``, ``sentence2`` and ``label`` (or ``score``), as ``nyu-mll/glue`` (stsb) has them."""
    return tuple(
        Pair(_text(row, "sentence1"), _text(row, "sentence2"), float(_column(row, "label", "score"))) for row in rows
    )


def read_texts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read plain text, one example a line; empty lines are skipped.

    Raises:
        InvalidData: The file cannot be read.
    """
    with _open(path) as file:
        return tuple(line for line in file.read().splitlines() if line.strip())


def texts_from_rows(rows: TableRows) -> tuple[str, ...]:
    """Column ``text``, as ``Salesforce/wikitext`` has it; empty rows are skipped."""
    return tuple(text for row in rows if (text := _column(row, "text")) and text.strip())


def hub_rows(name: str, split: str) -> Sequence[Mapping[str, Any]]:
    """The rows of a data set of the hub, or of a local folder of files that ``datasets`` reads.

    Args:
        name: ``rajpurkar/squad``, or ``nyu-mll/glue:stsb`` where the data set has configurations, or a folder.
        split: ``validation``, or a slice of it such as ``validation[:200]``.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InvalidData: There is no such data set, its files cannot be read, or the hub cannot be reached.
    """
    require("hub")
    import datasets

    path, _, configuration = (name, "", "") if Path(name).is_dir() else name.partition(":")
    try:
        with quiet_hub():
            return cast(Sequence[Mapping[str, Any]], datasets.load_dataset(path, configuration or None, split=split))
    except datasets.exceptions.DatasetGenerationError as error:  # its own message is empty
        raise InvalidData(f"data set {name!r}, split {split!r}: {_reason(error.__cause__ or error)}") from error
    except (OSError, ValueError) as error:
        raise InvalidData(f"data set {name!r}, split {split!r}: {_reason(error)}") from error


def _open(path: str | os.PathLike[str]) -> io.StringIO:
    """The whole text, so that a damaged archive fails here and not in the midst of a reader."""
    path = Path(path)
    try:
        data = read_regular(path)
        if path.suffix == ".xz":
            with lzma.open(io.BytesIO(data)) as packed:
                data = _unpacked(packed, path)
        elif path.suffix == ".gz":
            with gzip.open(io.BytesIO(data)) as packed:
                data = _unpacked(packed, path)
        return io.StringIO(data.decode("utf-8"), newline="")
    except (OSError, lzma.LZMAError, EOFError, zlib.error, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InvalidData(f"{path}: {reason}") from error


def _unpacked(file: io.BufferedIOBase, path: Path) -> bytes:
    limit = unpacked_limit(path)
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError("what is packed in it is too large for the size of the file")
    return data


def _number(kind: type[int] | type[float], text: str | None, path: str | os.PathLike[str], line: int) -> Any:
    try:
        return kind(text or "")
    except ValueError:
        raise InvalidData(f"{path}:{line}: {text!r} is not a number") from None


def _column(row: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns that the row has."""
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(f"no column {' or '.join(map(repr, names))}; there are {', '.join(row)}")


def _text(row: Mapping[str, Any], *names: str) -> str:
    text = _column(row, *names)
    if not isinstance(text, str):  # an empty cell of a CSV file is None
        raise ValueError(f"{text!r} in column {' or '.join(map(repr, names))} is no text")
    return text


def _reason(error: BaseException) -> str:
    return f"no {error}" if isinstance(error, KeyError) else first_line(error)


__all__ = [
    "LabelledText",
    "Pair",
    "Question",
    "hub_rows",
    "labelled_texts_from_rows",
    "pairs_from_rows",
    "questions_from_rows",
    "read_labelled_texts",
    "read_pairs",
    "read_questions",
    "read_texts",
    "texts_from_rows",
]
