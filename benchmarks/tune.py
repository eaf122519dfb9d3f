"""What tuning per head gains on trained models, on data that was not used for tuning.

    pip install 'onnx-attnq[examples,tune]'
    python benchmarks/tune.py                  # all that need no further files
    python benchmarks/tune.py --only decoder

A row for each model and bound: share pruned, mean bits of a head, and each figure's relative loss on the half of the
data that chose the plan and on the half that did not, with 95 % bootstrap intervals. Beside it the default scheme on the
same halves. SST-2 and STS-B are measured where --sst2 and --stsb name their files.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from onnx_attnq.cli.output import progress_bar
from onnx_attnq.evaluate import Interval, load_task, load_tokenizer
from onnx_attnq.export import export
from onnx_attnq.job import compress
from onnx_attnq.run import RunSettings
from onnx_attnq.tune import Effort, Goal, Measured, Part, TaskLoss, Tuner

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES / "ji2021"))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model, its task, and the bounds to tune it for."""

    title: str
    build: Callable[[Path], None]
    export_task: str
    task: str
    data: Path
    bounds: tuple[float, ...]
    max_length: int = 320
    limit: int | None = None


def decoder(folder: Path) -> None:
    import shutil

    shutil.copytree(EXAMPLES / "decoder" / "model", folder)


def minilm(folder: Path) -> None:
    import models

    models.minilm(folder)


def rxnmapper(folder: Path) -> None:
    import models

    models.rxnmapper(folder)


def subjects(options: argparse.Namespace) -> Iterator[Subject]:
    yield Subject(
        "decoder",
        decoder,
        "text-generation",
        "text-generation",
        EXAMPLES / "decoder" / "held_out.txt",
        (0.005, 0.008),
        256,
    )
    yield Subject("rxnmapper", rxnmapper, "fill-mask", "fill-mask", EXAMPLES / "ji2021" / "reactions.txt", (0.005,))
    yield Subject(
        "minilm", minilm, "feature-extraction", "retrieval", EXAMPLES / "data" / "xquad.en.json.xz", (0.005,), limit=600
    )
    if options.stsb is not None:
        yield Subject("minilm-stsb", minilm, "feature-extraction", "sentence-similarity", options.stsb, (0.001,))


def build(subject: Subject, folder: Path) -> Path:
    subject.build(folder / "source")
    export(folder / "source", folder / "onnx", task=subject.export_task, local_only=True)
    return folder / "onnx" / "model.onnx"


def measure(subject: Subject, folder: Path, jobs: int) -> Iterator[str]:
    model = build(subject, folder)
    task = load_task(subject.task, subject.data, max_length=subject.max_length, limit=subject.limit)
    loss = TaskLoss(model, task, load_tokenizer(model.parent), RunSettings(threads=jobs))
    default = folder / "default.onnx"
    compress(model, default, verification=False)
    yield f"| {subject.title}, default scheme | | | {shown(loss.measure(default, Part.CALIBRATION))} | {shown(loss.measure(default, Part.CONFIRMATION))} | |"
    samples = loss.samples(model, 8)
    for bound in subject.bounds:
        tuner = Tuner(model, samples, loss, Goal(bound), Effort(jobs=jobs))
        plan = folder / "plan.json"
        with progress_bar(subject.title) as bar:
            found = tuner.run(plan, resume=True, progress=bar)
        yield (
            f"| {subject.title}, at most {bound:.1%} | {found.choice.pruned:.1%} | {found.choice.bits:.2f} | "
            f"{shown(found.calibration)} | {shown(found.confirmation)} | {found.seconds:.0f} s |"
        )


def shown(measured: Measured) -> str:
    parts = [f"{name} {interval(figure)}" for name, figure in measured.figures.items()]
    return f"{', '.join(parts)}; n = {measured.count}"


def interval(figure: Interval) -> str:
    return f"{100 * figure.estimate:+.2f} % ({100 * figure.low:+.2f} to {100 * figure.high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the subject of this name")
    parser.add_argument("--stsb", type=Path, help="STS-B as CSV")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    print("| model | pruned | bits | loss, calibration | loss, confirmation | time |\n|---|---|---|---|---|---|")
    for subject in subjects(options):
        if options.only in (None, subject.title):
            with tempfile.TemporaryDirectory() as folder:
                for row in measure(subject, Path(folder), options.jobs):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
