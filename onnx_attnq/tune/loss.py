"""What a tuned model may lose: agreement with the original, a task's metrics, or the user's own function.

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
from onnx_attnq.verification import FloatOutputs

RESAMPLES: Final = 400


class Part(enum.StrEnum):
    """Which part of the data."""

    CALIBRATION = "calibration"
    CONFIRMATION = "confirmation"
    ALL = "all"
    """Both; for what chooses nothing."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A loss on one part of the data.

    Attributes:
        figures: By name, each figure's loss as a share (0.005 is 0.5 %) with its 95 % bootstrap interval. A plan is
            accepted when every one that can tell is within the bound: accuracy can hide what a likelihood shows.
        count: Number of examples.
    """

    figures: Mapping[str, Interval]
    count: int

    @property
    def worst(self) -> float:
        """The largest loss of all figures."""
        return max(figure.estimate for figure in self.figures.values())

    @property
    def noise(self) -> tuple[str, ...]:
        """The figures that cannot tell a loss from none, since their interval has 0 within and another's is narrower.

        The figure with the narrowest interval always tells; so does one without an interval.

        >>> sharp, blurred = Interval(0.004, 0.002, 0.006), Interval(0.008, -0.004, 0.02)
        >>> Measured({"perplexity": sharp, "accuracy": blurred}, 100).noise
        ('accuracy',)
        """
        widths = {name: figure.high - figure.low for name, figure in self.figures.items()}
        narrowest = min((width for width in widths.values() if width == width), default=0.0)
        return tuple(n for n, f in self.figures.items() if f.low <= 0.0 <= f.high and widths[n] > narrowest)

    def within(self, bound: float) -> bool:
        """Whether no figure loses more, those aside in which the loss cannot be told from noise."""
        return all(figure.estimate <= bound for name, figure in self.figures.items() if name not in self.noise)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        figures = {name: figure.to_json() for name, figure in self.figures.items()}
        return {"count": self.count, "figures": figures, "noise": list(self.noise)}


class Loss(Protocol):
    """Something that a rewritten model may lose."""

    @property
    def name(self) -> str:
        """For people."""

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss of a rewritten model."""


def alternating(samples: Sequence[Any]) -> dict[Part, Sequence[Any]]:
    """Every other one, as samples are often sorted by length: halves in order would be of short and of long ones.

    Raises:
        InvalidData: As by `halves`.

    >>> {str(part): own for part, own in alternating([13, 16, 23, 41]).items()}
    {'calibration': [13, 23], 'confirmation': [16, 41], 'all': [13, 16, 23, 41]}
    """
    return {**halves(samples), Part.CALIBRATION: samples[::2], Part.CONFIRMATION: samples[1::2]}


def halves(items: Sequence[Any]) -> dict[Part, Sequence[Any]]:
    """The first and the second half; neighbours, such as questions about one paragraph, stay together.

    Raises:
        InvalidData: Fewer than four, so that no half has an interval.
    """
    if len(items) < 4:
        raise InvalidData(
            f"the data has {len(items)} example{'' if len(items) == 1 else 's'}; at least 4 are needed, "
            "half to choose a plan and half to confirm it"
        )
    middle = (len(items) + 1) // 2
    return {Part.CALIBRATION: items[:middle], Part.CONFIRMATION: items[middle:], Part.ALL: items}


AGREEMENT: Final = ("cosine", "kl", "top-1")
"""The figures of `Agreement`; all but the first are of logits and probabilities only."""


class Agreement:
    """Disagreement with the original: 1 - cosine of the worst output; KL in nats; the share of rows with another top-1.

    Args:
        original: The original model.
        samples: Inputs; every other one calibrates.
        run: How to run models.
        figures: Which of `AGREEMENT` count. Top-1 only on request: near ties change long before KL is large.

    Raises:
        InvalidData: Fewer than four samples, or no figure of these names.
    """

    name = "agreement with the original"

    def __init__(
        self,
        original: Path,
        samples: Sequence[Sample],
        run: RunSettings = RunSettings(),
        figures: Sequence[str] = AGREEMENT[:2],
    ) -> None:
        model = load(original)
        self._outputs = FloatOutputs(model)
        known = AGREEMENT if self._outputs.distributions else AGREEMENT[:1]
        self._figures = [name for name in _chosen(figures, AGREEMENT) if name in known] or list(known[:1])
        self._samples = alternating(samples)
        self._run = run.absolute()
        session = Session(original, run)
        whole = [session.run(s) for s in samples]
        self._expected = alternating(whole)

    def measure(self, model: Path, part: Part) -> Measured:
        """Each figure of the output that is worst in it."""
        session = Session(model, self._run)
        rows = []
        for sample, expected in zip(self._samples[part], self._expected[part], strict=True):
            found = session.run(sample)
            cosine, kl, top1 = 0.0, 0.0, 0.0
            for moved in self._outputs.deviations(expected, found, sample):
                if moved.one_sided:  # NaN or infinity, which the figures leave aside
                    cosine, kl, top1 = 1.0, 1.0, 1.0
                cosine, kl = max(cosine, 1.0 - moved.cosine), max(kl, moved.kl or 0.0)
                top1 = max(top1, 0.0 if moved.top1_agreement is None else 1.0 - moved.top1_agreement)
            rows.append((cosine, kl, top1))
        table = np.array(rows)
        figures = {
            name: interval(
                functools.partial(_mean_of, table[:, AGREEMENT.index(name)]), len(table), resamples=RESAMPLES
            )
            for name in self._figures
        }
        return Measured(figures, len(table))


class TaskLoss:
    """The relative loss of each metric of a task of `evaluate`, example by example against the original.

    Args:
        original: The original model.
        task: With its examples, which are split into halves.
        tokenizer: As `evaluate.load_tokenizer` gives it.
        run: How to run models.
        figures: Names of the metrics that count; all if empty.

    Raises:
        InvalidData: Fewer than four examples, or no metric of these names.
    """

    def __init__(
        self,
        original: Path,
        task: Task,
        tokenizer: Any,
        run: RunSettings = RunSettings(),
        figures: Sequence[str] = (),
    ) -> None:
        self.name = task.name
        names = _chosen(figures, [metric.name for metric in task.metrics])
        self._metrics = [metric for metric in task.metrics if metric.name in names]
        self._tasks = {part: _with_examples(task, own) for part, own in halves(_examples(task)).items()}
        # A worker that measures may be in another folder.
        self._original, self._tokenizer, self._run = original.absolute(), tokenizer, run.absolute()
        self._before: dict[Part, Any] = {}

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss of each metric."""
        task = self._tasks[part]
        if part not in self._before:
            self._before[part] = task.records(self._model(self._original))
        before, after = self._before[part], task.records(self._model(model))
        found = [compare_records(before, after, metric, resamples=RESAMPLES) for metric in self._metrics]
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
    """The relative loss of a number that the user's own function gives: higher is better.

    Args:
        original: The original model.
        function: Called with the path of a model and the name of a part of the data.
        name: For people.

    Raises:
        InvalidModel: The function gives 0 for the original, of which nothing is a share.
    """

    def __init__(self, original: Path, function: Callable[[str, str], float], name: str = "metric") -> None:
        self.name, self._function, self._original = name, function, original
        self._before: dict[Part, float] = {}

    def measure(self, model: Path, part: Part) -> Measured:
        """The loss, without an interval: what the function does with its examples is not known."""
        if part not in self._before:
            self._before[part] = float(self._function(str(self._original), str(part)))
        before = self._before[part]
        if before == 0.0:
            raise InvalidModel(f"{self.name} is 0 for the original; a relative loss needs another metric")
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


def _chosen(figures: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for name in figures:
        if name not in known:
            raise InvalidData(f"--figure {name}: the loss has the figures {', '.join(known)}")
    return figures or known


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


__all__ = ["AGREEMENT", "Agreement", "FunctionLoss", "Loss", "Measured", "Part", "TaskLoss", "halves", "load_function"]
