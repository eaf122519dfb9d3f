"""The tasks by the names that ``transformers`` and optimum give them, each with its data format."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final, Protocol

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate.causal_lm import CausalLanguageModelling
from onnx_attnq.evaluate.data import TableRows, hub_rows
from onnx_attnq.evaluate.masked_lm import MaskedLanguageModelling
from onnx_attnq.evaluate.question_answering import QuestionAnswering
from onnx_attnq.evaluate.records import FloatArray, Metric
from onnx_attnq.evaluate.retrieval import Retrieval
from onnx_attnq.evaluate.sentence_similarity import SentenceSimilarity
from onnx_attnq.evaluate.text_classification import TextClassification
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.progress import Progress, no_progress


class Task(Protocol):
    """Examples, and how a model is measured on each of them. Constructed as (examples, max_length)."""

    name: ClassVar[str]
    """What ``transformers`` and optimum call the task."""
    unit: ClassVar[str]
    """What an example is: the n of a table counts these."""
    format: ClassVar[str]
    """The published format of the file that ``read`` reads."""
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def max_length(self) -> int:
        """Tokens of a window, or of a text before it is cut."""

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """What is measured on each example, (n, k), float64; the rows that the metrics are computed from."""


TASKS: Final[dict[str, Any]] = {
    task.name: task
    for task in (
        QuestionAnswering,
        TextClassification,
        MaskedLanguageModelling,
        CausalLanguageModelling,
        SentenceSimilarity,
        Retrieval,
    )
}
"""The task classes by name."""


def load_task(
    name: str, path: str | os.PathLike[str], *, max_length: int = MAX_LENGTH, limit: int | None = None
) -> Task:
    """A task with the examples of a file.

    Args:
        name: One of `TASKS`.
        path: A file in the task's format; .xz and .gz are decompressed.
        max_length: Tokens of a window, or of a text before it is cut.
        limit: Only the first so many examples (lines of text, for the two language models).

    Raises:
        InvalidData: Unknown task, a file that is not in the task's format, or no examples.
    """
    task = _task(name)
    return _with(task, task.read(path), str(path), max_length, limit)


def task_from_hub(
    name: str, dataset: str, split: str, *, max_length: int = MAX_LENGTH, limit: int | None = None
) -> Task:
    """A task with the examples of a data set that ``datasets`` loads.

    Args:
        name: One of `TASKS`.
        dataset: Its name on the hub, such as ``rajpurkar/squad`` or ``nyu-mll/glue:stsb``, or a local folder.
        split: Such as ``validation``.
        max_length: As in `load_task`.
        limit: As in `load_task`.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        InvalidData: Unknown task or data set, other columns than the task's, or no examples.
    """
    task = _task(name)
    rows: TableRows = hub_rows(dataset, split)
    try:
        examples = task.from_rows(rows)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(f"data set {dataset!r}: not the columns of {name} ({error})") from error
    return _with(task, examples, dataset, max_length, limit)


def _task(name: str) -> Any:
    if name not in TASKS:
        raise InvalidData(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]


def _with(task: Any, examples: tuple[Any, ...], source: str, max_length: int, limit: int | None) -> Task:
    if not examples:
        raise InvalidData(f"{source}: no examples")
    made: Task = task(examples[:limit], max_length)
    return made


__all__ = ["TASKS", "Task", "load_task", "task_from_hub"]
