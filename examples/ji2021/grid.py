"""Bits and thresholds of the default scheme, whose pruned values share their sum, beside `row-log`, which has zeros.

    python examples/ji2021/grid.py --sts-b stsb-en-dev.csv --sst-2 sst2-dev.tsv
    python examples/ji2021/grid.py --only log-mean --against "row-log-mean: 3 bits, .03" --max-length 64

prints GRID.md: for each trained model what the schemes prune, the loss of its metrics, and how far its outputs move
from the original's; then which of them do no more damage than one of them, `row-log`, on any model. Without the two
data sets, which may not be committed, their rows are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from study import HERE, SUBJECTS, exported, percent

from onnx_attnq.evaluate import Interval, Metric, Task, TextModel, interval, load_task, load_tokenizer
from onnx_attnq.evaluate.attention import Recording, attention_figures
from onnx_attnq.evaluate.bootstrap import relative_loss
from onnx_attnq.job import compress
from onnx_attnq.run import RunSettings, native_library
from onnx_attnq.scheme import QuantScheme, preset

ZERO: Final = "row-log: 3 bits, .01"
"""What all others are compared with unless --against names another: the default before values were shared."""


def named(name: str, bits: int, threshold: float) -> dict[str, QuantScheme]:
    label = f"{name}: {bits} bits, {threshold:g}".replace("0.", ".")
    return {label: preset(name, bits=bits, threshold=threshold)}


GRID: Final = (
    named("row-log", 3, 0.01)
    | named("row-log", 3, 0.1)
    | named("row-log", 2, 0.1)
    | {
        label: scheme
        for bits in (3, 2)
        for threshold in (0.03, 0.05, 0.1, 0.2, 0.3)
        for label, scheme in named("row-log-mean", bits, threshold).items()
    }
    | named("row-log-mean", 2, 0.12)
    | named("row-log-mean", 2, 0.15)
    | {
        label: scheme
        for bits in (4, 3)
        for threshold in (0.005, 0.01, 0.02)
        for label, scheme in named("log-mean", bits, threshold).items()
    }
)
LIMITS: Final[Mapping[str, int | None]] = {
    "text-generation": 500,
    "fill-mask": 6,
    "retrieval": 40,
    "question-answering": 60,
    "sentence-similarity": 100,
    "text-classification": 218,
}
"""Examples of each task; of text-generation, lines of text."""
SAMPLES: Final = 3
"""Runs whose pruned values are counted."""

RESAMPLES: Final = 400
"""Of the examples, for each interval."""

Floats = npt.NDArray[np.float64]
Outputs = Mapping[str, npt.NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Case:
    """An exported model and its task."""

    title: str
    model: Path
    task: Task


@dataclasses.dataclass(frozen=True)
class Row:
    """What one scheme does to one model.

    Attributes:
        count: Number of examples.
        original: Each metric of the original.
        pruned: Share of the values.
        losses: Of each metric of the task, relative to the original's.
        moved: Mean distance of the outputs from the original's.
        worse: Metrics that are worse than with what it is compared with, beyond chance.
    """

    count: int
    original: dict[str, float]
    pruned: float
    losses: dict[str, Interval]
    moved: Interval
    worse: tuple[str, ...]


class Watched:
    """A model whose outputs are noted, or compared with those that the original gave."""

    def __init__(self, path: Path, tokenizer: Any, run: RunSettings, expected: list[Outputs] | None = None) -> None:
        model = TextModel.load(path, tokenizer, run=run)
        self._session, self._expected = model.session, expected
        self.model = dataclasses.replace(model, session=self._run)
        self.noted: list[Outputs] = []
        self.distances: list[float] = []

    def _run(self, sample: Any) -> Any:
        found = self._session(sample)
        outputs = watched_of(found)
        if self._expected is None:
            self.noted.append(outputs)
        else:
            self.distances.append(distance_of(self._expected[len(self.distances)], outputs))
        return found


def watched_of(found: Outputs) -> Outputs:
    """The mean hidden state, or the log-probabilities of all logits."""
    logits = {name: log_softmax(value, axis=-1) for name, value in found.items() if "logits" in name}
    return logits or {"embedding": found["last_hidden_state"][0].mean(axis=0)}


def distance_of(before: Outputs, after: Outputs) -> float:
    """1 - cosine of the embeddings, or the mean Kullback-Leibler divergence in nats, the largest of all outputs."""
    if "embedding" in before:
        a, b = (side["embedding"].astype(np.float64) for side in (before, after))
        return float(1.0 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return max(float((np.exp(p) * (p - after[name])).sum(axis=-1).mean()) for name, p in before.items())


def cases(folder: Path, options: argparse.Namespace) -> list[Case]:
    """The models, exported into ``folder``."""
    limits = {task: None if options.whole else options.limit or limit for task, limit in LIMITS.items()}
    only, sts_b, sst_2 = options.task, options.sts_b, options.sst_2
    found = []
    for subject in SUBJECTS:
        if only in (None, subject.task):
            length = options.max_length or subject.max_length
            task = load_task(subject.task, subject.data, max_length=length, limit=limits[subject.task])
            found.append(Case(subject.title, exported(subject, folder / subject.task), task))
    if not (sts_b or sst_2):
        return found
    (encoder,) = (subject for subject in SUBJECTS if subject.task == "retrieval")
    path = exported(encoder, folder / "encoder")
    if sts_b is not None and only in (None, "sentence-similarity"):
        task = load_task("sentence-similarity", sts_b, limit=limits["sentence-similarity"])
        found.append(Case("MiniLM-L6, sentence similarity on STS-B", path, task))
    if sst_2 is not None and only in (None, "text-classification"):
        program = [sys.executable, str(HERE / "fit_classifier.py"), str(path), str(sst_2), "-o", str(folder / "sst2")]
        subprocess.run(program, check=True, capture_output=True)
        task = load_task("text-classification", folder / "sst2" / "held_out.tsv", limit=limits["text-classification"])
        found.append(Case("MiniLM-L6 with a linear classifier, SST-2", folder / "sst2" / path.name, task))
    return found


def rows_of(case: Case, schemes: Mapping[str, QuantScheme], threads: int) -> dict[str, Row]:
    """Every scheme on one model; the first is what others are compared with."""
    tokenizer, library = load_tokenizer(case.model.parent), native_library()
    run = RunSettings(threads)
    kernels = run if library is None else RunSettings(threads, (library,))
    original = Watched(case.model, tokenizer, kernels)
    recording = Recording(original.model, SAMPLES)
    before = case.task.records(recording.model)
    metrics = {metric.name: metric.compute(before) for metric in case.task.metrics}
    rows: dict[str, Row] = {}
    first = before
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, scheme) in enumerate(schemes.items()):
            path = Path(folder) / f"{number}.onnx"
            compress(case.model, path, scheme=scheme, verification=None)
            watched = Watched(path, tokenizer, kernels, original.noted)
            after = case.task.records(watched.model)
            first = after if number == 0 else first
            losses = {metric.name: loss(before, after, metric) for metric in case.task.metrics}
            worse = tuple(metric.name for metric in case.task.metrics if loss(first, after, metric).low > 0.0)
            moved = interval(
                functools.partial(mean_of, np.array(watched.distances)), len(watched.distances), resamples=RESAMPLES
            )
            pruned = attention_figures(path, recording.samples, run=run).pruned
            rows[name] = Row(len(before), metrics, pruned, losses, moved, worse)
            print(f"{case.title}: {name}", file=sys.stderr, flush=True)
    return rows


def loss(before: Floats, after: Floats, metric: Metric) -> Interval:
    """How much worse a metric has become, as a share; the examples are resampled together."""

    def of(rows: Any) -> float:
        return relative_loss(metric.compute(before[rows]), metric.compute(after[rows]), metric.higher_is_better)

    return interval(of, len(before), resamples=RESAMPLES)


def mean_of(values: Floats, chosen: Any) -> float:
    return float(values[chosen].mean())


def table(case: Case, rows: Mapping[str, Row]) -> str:
    against, first = next(iter(rows.items()))
    preset_name = against.partition(":")[0]
    metrics = list(first.losses)
    originals = [f"{name} {value:.4g}" for name, value in first.original.items()]
    distance = "1 - cosine" if case.task.name in ("retrieval", "sentence-similarity") else "KL, nats"
    lines = [
        f"## {case.title}",
        "",
        f"{first.count} {case.task.unit}; of the original {', '.join(originals)}.",
        "",
        f"| scheme | pruned, % | {' | '.join(f'loss of {m}, %' for m in metrics)} | {distance} | of {preset_name}'s |",
        "|---" * (4 + len(metrics)) + "|",
    ]
    for scheme, row in rows.items():
        losses = " | ".join(percent(of) + (" worse" if name in row.worse else "") for name, of in row.losses.items())
        share = row.moved.estimate / first.moved.estimate
        moved = f"{row.moved.estimate:.2g} ({row.moved.low:.2g} to {row.moved.high:.2g})"
        lines.append(f"| {scheme} | {100 * row.pruned:.1f} | {losses} | {moved} | {share:.2f} |")
    return "\n".join(lines) + "\n"


def summary(found: Mapping[str, Mapping[str, Row]]) -> str:
    """Each scheme on all models: how much more it moves the outputs than the first does, and what is worse."""
    schemes = list(next(iter(found.values())))
    lines = [
        "## On all of them",
        "",
        f"| scheme | pruned, mean, % | moves outputs, times {schemes[0]}: most, mean | metrics that are worse |",
        "|---|---|---|---|",
    ]
    for name in schemes:
        rows = [(rows[name], rows[schemes[0]]) for rows in found.values()]
        ratios = [row.moved.estimate / first.moved.estimate for row, first in rows]
        worse = [f"{metric} ({title})" for title, own in found.items() for metric in own[name].worse]
        mean = float(np.exp(np.log(ratios).mean()))
        pruned = 100 * float(np.mean([row.pruned for row, _ in rows]))
        lines.append(f"| {name} | {pruned:.1f} | {max(ratios):.2f}, {mean:.2f} | {', '.join(worse) or 'none'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sts-b", type=Path, help="CSV of sentence, sentence, score")
    parser.add_argument("--sst-2", type=Path, help="TSV with sentence and label")
    parser.add_argument("--task", choices=list(LIMITS), help="only this one")
    parser.add_argument("--whole", action="store_true", help="all examples, not the first of each task")
    parser.add_argument("--limit", type=int, help="examples of each task")
    parser.add_argument("--max-length", type=int, help="tokens of a window, or of a text before it is cut")
    parser.add_argument("--only", action="append", help="only schemes whose name begins with this, such as log-mean")
    parser.add_argument("--against", choices=list(GRID), default=ZERO, help="the scheme that others are compared with")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    schemes = {options.against: GRID[options.against]}
    schemes |= {name: own for name, own in GRID.items() if name.startswith(tuple(options.only or [""]))}
    found: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), options):
            rows = rows_of(case, schemes, options.threads)
            found[case.title] = rows
            print(table(case, rows), flush=True)
    print(summary(found))


if __name__ == "__main__":
    main()
