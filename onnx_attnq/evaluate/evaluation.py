"""An original and its compressed models on one task, side by side."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnx_attnq.evaluate.attention import SAMPLES, AttentionFigures, Recording, attention_figures
from onnx_attnq.evaluate.bootstrap import CONFIDENCE, Bootstrap, Comparison, Interval, compare, interval
from onnx_attnq.evaluate.records import FloatArray, Metric
from onnx_attnq.evaluate.task import Task
from onnx_attnq.evaluate.text_model import TextModel
from onnx_attnq.model import load
from onnx_attnq.progress import Parts, Progress, no_progress
from onnx_attnq.rewriting import read_record
from onnx_attnq.run import RunSettings


@dataclasses.dataclass(frozen=True, slots=True)
class CompressedModel:
    """What one compressed model does on the task.

    Attributes:
        path: Its file.
        comparisons: Each metric of the task, against the original.
        attention: What it keeps of the attention; None where the attention was not rewritten.
    """

    path: Path
    comparisons: tuple[Comparison, ...]
    attention: AttentionFigures | None


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of a task.

    Attributes:
        task: Its name.
        unit: What an example is.
        count: Number of examples.
        original: File of the original model.
        metrics: Each metric of the original model with its interval, by name.
        compressed: The compressed models, in the order they were given.
    """

    task: str
    unit: str
    count: int
    original: Path
    metrics: dict[str, Interval]
    compressed: tuple[CompressedModel, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes; NaN becomes null."""
        return {
            "task": self.task,
            "unit": self.unit,
            "count": self.count,
            "confidence": CONFIDENCE,
            "original": {"path": str(self.original), "metrics": {n: i.to_json() for n, i in self.metrics.items()}},
            "compressed": [
                {
                    "path": str(model.path),
                    "metrics": [comparison.to_json() for comparison in model.comparisons],
                    "attention": None if model.attention is None else model.attention.to_json(),
                }
                for model in self.compressed
            ],
        }


def evaluate(
    task: Task,
    original: str | os.PathLike[str],
    compressed: Sequence[str | os.PathLike[str]],
    tokenizer: Any,
    *,
    run: RunSettings = RunSettings(),
    bootstrap: Bootstrap = Bootstrap(),
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure models on a task and compare them, example by example.

    Args:
        task: As `load_task` or `task_from_hub` gives it.
        original: The ONNX file before compression.
        compressed: Files that were made of it. Those whose attention this tool has not rewritten, such as one with
            quantized weights or another tool's, have no figures of attention.
        tokenizer: As `load_tokenizer` gives it.
        run: Threads and custom ops.
        bootstrap: How examples are resampled for the intervals.
        progress: Called after the runs of each example, with the runs done and those of all models.

    Raises:
        AttnqError: A model, the data, or an extra is not what the task needs.
    """
    paths = [Path(original), *map(Path, compressed)]
    rewritten = [read_record(load(path)) is not None for path in paths]
    runs = Parts(progress)

    def part(number: int) -> Progress:
        left = len(paths) - number - 1
        return runs.next(paths[number].name, lambda total: left * total + sum(rewritten[1:]) * min(SAMPLES, total))

    recording = Recording(TextModel.load(original, tokenizer, run=run))
    before = task.records(recording.model, part(0))
    others = [task.records(TextModel.load(p, tokenizer, run=run), part(n)) for n, p in enumerate(paths[1:], start=1)]
    found = []
    for number, (path, after) in enumerate(zip(paths[1:], others, strict=True), start=1):
        comparisons = tuple(
            compare(before, after, metric, resamples=bootstrap.resamples, seed=bootstrap.seed)
            for metric in task.metrics
        )
        figures = None
        if rewritten[number]:
            left = sum(rewritten[number + 1 :])
            attention = runs.next(path.name, functools.partial(operator.mul, left))
            figures = attention_figures(path, recording.samples, run=run, progress=attention)
        found.append(CompressedModel(path, comparisons, figures))
    metrics = {metric.name: _interval(before, metric, bootstrap) for metric in task.metrics}
    return Evaluation(task.name, task.unit, len(before), paths[0], metrics, tuple(found))


def _interval(records: FloatArray, metric: Metric, bootstrap: Bootstrap) -> Interval:
    return interval(
        lambda rows: metric.compute(records[rows]),
        len(records),
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
    )


__all__ = ["CompressedModel", "Evaluation", "evaluate"]
