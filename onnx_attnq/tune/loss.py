"""What a tuned model may lose: agreement with the original, a task's metrics, or a function of the user's.

Every loss is measured on two parts of the data: plans are chosen on the calibration part, and the one that was chosen
is measured once more on the confirmation part, which nothing was chosen by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.evaluate import Interval, Task, TextModel, interval
from onnx_attnq.evaluate import compare as compare_records
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.verification import deviation_of, is_distribution, real_tokens

RESAMPLES: Final = 400


class Part(enum.StrEnum):
    """Which part of the data."""

    CALIBRATION = "calibration"
    CONFIRMATION = "confirmation"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A loss on one part of the data.

    Attributes:
        figures: By name, each figure's loss as a share (0.005 is 0.5 %) with its 95 % bootstrap interval. A plan is
            accepted when every one is within the bound: accuracy can hide what a likelihood shows.
        count: Number of examples.
    """

    figures: Mapping[str, Interval]
    count: int

    @property
    def worst(self) -> float:
        """The largest loss of all figures."""
        return max(figure.estimate for figure in self.figures.values())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"count": self.count, "figures": {name: figure.to_json() for name, figure in self.figures.items()}}


class Loss(Protocol):
    """Something that a rewritten model may lose."""

    @property
    def name(self) -> str:
        """For people."""

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss of a rewritten model."""


def halves(items: Sequence[Any]) -> dict[Part, Sequence[Any]]:
    """The first and the second half; neighbours, such as questions about one paragraph, stay together.

    Raises:
        InvalidData: Fewer than four, so that no half has an interval.
    """
    if len(items) < 4:
        raise InvalidData(f"{len(items)} examples are too few to choose on one half and confirm on the other; give 4")
    middle = (len(items) + 1) // 2
    return {Part.CALIBRATION: items[:middle], Part.CONFIRMATION: items[middle:]}


class Agreement:
    """Agreement with the original: the loss of cosine and, for logits or probabilities, of top-1; KL beside them.

    Args:
        original: The original model.
        samples: Inputs, split into halves.
        run: How to run models.
    """

    name = "agreement with the original"

    def __init__(self, original: Path, samples: Sequence[Sample], run: RunSettings = RunSettings()) -> None:
        model = load(original)
        self._distributions = frozenset(str(value.name) for value in model.graph.outputs if is_distribution(value))
        self._samples = halves(samples)
        self._run = run
        session = Session(original, run)
        self._expected = {part: [session.run(s) for s in own] for part, own in self._samples.items()}

    def measure(self, model: Path, part: Part) -> Measured:
        """1 - cosine of the worst output, and KL in nats of the worst output that is a distribution."""
        session = Session(model, self._run)
        rows = []
        for sample, expected in zip(self._samples[part], self._expected[part], strict=True):
            found = session.run(sample)
            cosine, kl = 0.0, 0.0
            for name, before in expected.items():
                if before.dtype.kind != "f" or before.shape != found[name].shape:
                    continue
                after, tokens = found[name], real_tokens(before.shape, sample)
                if tokens is not None:
                    before, after = before[tokens], after[tokens]
                moved = deviation_of(before, after, distribution=name in self._distributions)
                cosine, kl = max(cosine, 1.0 - moved.cosine), max(kl, moved.kl or 0.0)
            rows.append((cosine, kl))
        table = np.array(rows)
        names = ("cosine", "kl") if self._distributions else ("cosine",)
        figures = {
            name: interval(functools.partial(_mean_of, table[:, column]), len(table), resamples=RESAMPLES)
            for column, name in enumerate(names)
        }
        return Measured(figures, len(table))


class TaskLoss:
    """The relative loss of each metric of a task of `evaluate`, example by example against the original.

    Args:
        original: The original model.
        task: With its examples, which are split into halves.
        tokenizer: As `evaluate.load_tokenizer` gives it.
        run: How to run models.
    """

    def __init__(self, original: Path, task: Task, tokenizer: Any, run: RunSettings = RunSettings()) -> None:
        self.name = task.name
        self._tasks = {part: _with_examples(task, own) for part, own in halves(_examples(task)).items()}
        self._tokenizer, self._run = tokenizer, run
        model = self._model(original)
        self._before = {part: own.records(model) for part, own in self._tasks.items()}

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss of each metric."""
        task, before = self._tasks[part], self._before[part]
        after = task.records(self._model(model))
        found = [compare_records(before, after, metric, resamples=RESAMPLES) for metric in task.metrics]
        return Measured({c.metric: c.relative_loss for c in found}, len(before))

    def samples(self, model: Path, count: int) -> list[Sample]:
        """What the model is fed by the first examples of the calibration part."""
        fed: list[Sample] = []
        original = self._model(model)

        def remember(sample: Sample) -> Any:
            fed.append({name: array[:1] for name, array in sample.items()})
            if len(fed) == count:
                raise _Enough
            return original.session(sample)

        with contextlib.suppress(_Enough):
            self._tasks[Part.CALIBRATION].records(dataclasses.replace(original, session=remember))
        return fed

    def _model(self, path: Path) -> TextModel:
        return TextModel.load(path, self._tokenizer, run=self._run)


class _Enough(Exception):
    """As many samples as were asked for."""


class FunctionLoss:
    """The relative loss of a number that a function of the user's gives: higher is better.

    Args:
        original: The original model.
        function: Called with the path of a model and the name of a part of the data.
        name: For people.

    Raises:
        InvalidModel: The function gives 0 for the original, of which nothing is a share.
    """

    def __init__(self, original: Path, function: Callable[[str, str], float], name: str = "metric") -> None:
        self.name, self._function = name, function
        self._before = {part: float(function(str(original), str(part))) for part in Part}
        if 0.0 in self._before.values():
            raise InvalidModel(f"{name} is 0 for the original; a relative loss needs another metric")

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss, without an interval: what the function does with its examples is not known."""
        before = self._before[part]
        loss = (before - float(self._function(str(model), str(part)))) / abs(before)
        return Measured({self.name: Interval(loss, float("nan"), float("nan"))}, 1)


def load_function(reference: str) -> Callable[[str, str], float]:
    """The function that ``module:function`` names.

    Raises:
        InvalidData: There is no such module or function.
    """
    module, colon, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise InvalidData(f"--metric {reference}: {error}") from None
    if not callable(found):
        raise InvalidData(
            f"--metric {reference}: write MODULE:FUNCTION, a function of a model's path and a part's name"
        )
    return found  # type: ignore[no-any-return]


def _mean_of(column: Any, rows: Any) -> float:
    return float(column[rows].mean())


def _examples(task: Task) -> Sequence[Any]:
    (name, *_) = (field.name for field in dataclasses.fields(task))  # type: ignore[arg-type]
    examples: Sequence[Any] = getattr(task, name)
    return examples


def _with_examples(task: Task, examples: Sequence[Any]) -> Task:
    (name, *_) = (field.name for field in dataclasses.fields(task))  # type: ignore[arg-type]
    changed: Task = dataclasses.replace(task, **{name: examples})  # type: ignore[type-var]
    return changed


__all__ = ["Agreement", "FunctionLoss", "Loss", "Measured", "Part", "TaskLoss", "halves", "load_function"]
