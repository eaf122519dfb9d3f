"""`onnx-attnq evaluate MODEL`: a task's metric before and after compression."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    bits_option,
    json_option,
    max_length_option,
    path_type,
    run_options,
    scheme_of,
    scheme_option,
    threshold_option,
    weights_option,
)
from onnx_attnq.cli.output import console, plain_table, progress_bar, write_json
from onnx_attnq.errors import InvalidData

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_attnq.evaluate import Evaluation, Interval
    from onnx_attnq.run import RunSettings

TASKS: Final = (
    "question-answering",
    "text-classification",
    "fill-mask",
    "text-generation",
    "sentence-similarity",
    "retrieval",
)
"""The names of `onnx_attnq.evaluate.TASKS`, without its imports."""


@command()
@click.argument("model", type=path_type)
@click.option(
    "--compressed",
    type=path_type,
    multiple=True,
    help="A model that was made from MODEL, by any tool; may be repeated.  [default: MODEL is compressed into a "
    "temporary file]",
)
@click.option("--task", "task_name", type=click.Choice(TASKS), required=True, help="Task to measure, see above.")
@click.option("--data", type=path_type, help="File in the format of the task, plain, .xz or .gz; or give --dataset.")
@click.option("--dataset", help="Data set of the hub, NAME or NAME:CONFIGURATION, or a folder; or give --data.")
@click.option("--split", default="validation", show_default=True, help="Split of --dataset to use.")
@click.option("--tokenizer", type=path_type, help="Folder with the tokenizer.  [default: MODEL's folder]")
@scheme_option
@bits_option
@threshold_option
@weights_option
@max_length_option
@click.option("--limit", type=click.IntRange(1), metavar="COUNT", help="Use only the first examples.  [default: all]")
@click.option(
    "--resamples",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="COUNT",
    help="Number of bootstrap samples that the intervals are computed from.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed for the bootstrap.")
@run_options
@json_option
def evaluate(
    model: Path,
    compressed: tuple[Path, ...],
    task_name: str,
    data: Path | None,
    dataset: str | None,
    split: str,
    tokenizer: Path | None,
    scheme: str | None,
    bits: int | None,
    threshold: float | None,
    weights: str | None,
    max_length: int,
    limit: int | None,
    resamples: int,
    seed: int,
    run: RunSettings,
    json_path: str | None,
) -> None:
    """Measure MODEL and its compressed form on a task.

    Prints the metrics of both side by side, with 95 % bootstrap intervals. Tasks, with the format of --data:

    \b
    question-answering   SQuAD v1.1 JSON                       EM, F1
    text-classification  SST-2: TSV with sentence and label    accuracy, NLL
    fill-mask            plain text, one example a line        pseudo-perplexity, accuracy
    text-generation      plain text                            perplexity, accuracy
    sentence-similarity  STS-B: CSV sentence, sentence, score  Spearman
    retrieval            SQuAD v1.1 JSON, such as XQuAD        accuracy@1, MRR
    """  # noqa: D301 - click takes the character itself, and leaves the table as it is
    from onnx_attnq.evaluate import Bootstrap, load_task, load_tokenizer, task_from_hub
    from onnx_attnq.evaluate import evaluate as measure
    from onnx_attnq.job import compress, compress_weights
    from onnx_attnq.rewriting import RewriteSettings
    from onnx_attnq.run import quantize_weights

    if weights and compressed:
        raise click.UsageError("--weights makes the models to compare; it does not go with --compressed")
    if (data is None) == (dataset is None):
        raise InvalidData("give the examples by --data FILE or by --dataset NAME, one of the two")
    words = load_tokenizer(model.parent if tokenizer is None else tokenizer)
    if data is not None:
        task = load_task(task_name, data, max_length=max_length, limit=limit)
    else:
        task = task_from_hub(task_name, str(dataset), split, max_length=max_length, limit=limit)
    with tempfile.TemporaryDirectory() as folder:
        if not compressed:
            chosen = scheme_of(scheme, bits, threshold)
            made = Path(folder) / f"{model.stem}.{_label(chosen.name, bits, threshold)}.onnx"
            compress(model, made, rewriting=RewriteSettings(chosen, keep_fused=False), verification=None)
            compressed = (made,)
            if weights is not None:
                alone = Path(folder) / f"{model.stem}.{weights}.onnx"
                quantize_weights(model, alone, weights)
                both = made.with_name(f"{made.stem}.{weights}.onnx")
                compress_weights(model, both, weights, rewriting=RewriteSettings(scheme=chosen), verification=None)
                compressed = (alone, made, both)
        with progress_bar("Evaluating") as progress:
            found = measure(
                task,
                model,
                compressed,
                words,
                run=run,
                bootstrap=Bootstrap(resamples, seed),
                progress=progress,
            )
    if json_path is not None:
        write_json(found.to_json(), json_path)
    if json_path != "-":
        _show(found, console())


def _show(found: Evaluation, out: Console) -> None:
    out.print(f"{found.task}, {found.count} {found.unit}, 95 % intervals; a loss is relative, negative for a gain")
    table = plain_table("model", "metric", "value", "loss", "pruned", "row mass")
    for name, value in found.metrics.items():
        table.add_row(found.original.name, name, _interval(value), "", "", "")
    for model in found.compressed:
        seen = model.attention
        kept = ("", "") if seen is None else (f"{seen.pruned:.1%}", f"{seen.row_mass:.3f}")
        for comparison in model.comparisons:
            loss = comparison.relative_loss
            spread = f"{loss.estimate:+.2%} ({loss.low:+.2%} to {loss.high:+.2%})"
            table.add_row(model.path.name, comparison.metric, _interval(comparison.compressed), spread, *kept)
    out.print(table)


def _interval(value: Interval) -> str:
    return f"{value.estimate:.4g} ({value.low:.4g}-{value.high:.4g})"


def _label(name: str, bits: int | None, threshold: float | None) -> str:
    """A file name that says how it was made, such as row-log-2bit."""
    return name + ("" if bits is None else f"-{bits}bit") + ("" if threshold is None else f"-{threshold:g}")
