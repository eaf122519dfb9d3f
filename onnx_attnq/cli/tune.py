"""`onnx-attnq tune MODEL`: a scheme for each head, so that as much is pruned as a loss allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.evaluate import TASKS
from onnx_attnq.cli.options import json_option, max_length_option, path_type, run_options
from onnx_attnq.cli.output import console, plain_table, progress_bar, write_json
from onnx_attnq.errors import InvalidData

if TYPE_CHECKING:
    from onnx_attnq.run import RunSettings
    from onnx_attnq.tune import Loss, Tuning

BACKENDS: Final = ("local", "dask")


class Share(click.ParamType["float | str"]):
    """A share as a percentage, such as 0.5%, or as a number, such as 0.005."""

    name = "share"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """As help shows it."""
        return "PERCENT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share, 0 to 1."""
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
        except ValueError:
            self.fail(f"{value!r} is not a share; write 0.5% or 0.005", param, ctx)
        if not 0.0 <= number <= 1.0:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return number


@command()
@click.argument("model", type=path_type)
@click.option(
    "--data",
    type=path_type,
    required=True,
    help="Samples of real inputs (.npz, .npy or a folder), or with --task a file in the format of the task. One half "
    "chooses the plan, the other confirms it.",
)
@click.option("--max-loss", type=Share(), help="Largest loss of any figure, such as 0.5%.  [default: 0.5%]")
@click.option(
    "--min-pruned", type=Share(), help="Least share of the attention values to prune, such as 80%.  [default: none]"
)
@click.option(
    "--objective",
    type=click.Choice(("sparse", "narrow", "sparse-and-narrow")),
    default="sparse-and-narrow",
    show_default=True,
    help="What to gain most of: pruned values, fewer bits, or both.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="Loss of the metrics of a task, as of `evaluate`.  [default: agreement with the original]",
)
@click.option(
    "--metric",
    metavar="MODULE:FUNCTION",
    help="Loss of a number that a function of yours gives, see below.  [default: none]",
)
@click.option("--tokenizer", type=path_type, help="Folder with the tokenizer, for --task.  [default: MODEL's folder]")
@max_length_option
@click.option(
    "--limit", type=click.IntRange(4), metavar="COUNT", help="Use only the first examples of --task.  [default: all]"
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    metavar="COUNT",
    help="Number of inputs on which every head is measured with every candidate.",
)
@click.option("-o", "--output", type=path_type, help="Plan to write.  [default: MODEL.plan.json]")
@click.option("--resume", is_flag=True, help="Continue an earlier run with the same options.")
@click.option(
    "--time-budget",
    type=click.FloatRange(0.0),
    metavar="SECONDS",
    help="Longest time to measure heads for.  [default: no limit]",
)
@click.option("--jobs", type=int, default=-1, show_default=True, metavar="COUNT", help="Processes; -1 is one a core.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="local",
    show_default=True,
    help="Where heads are measured: processes of this machine, or a dask cluster.",
)
@click.option(
    "--address", metavar="HOST:PORT", help="Scheduler of the dask cluster, which --backend dask needs.  [default: none]"
)
@run_options
@json_option
def tune(
    model: Path, data: Path, run: RunSettings, resume: bool, json_path: str | None, output: Path | None, **options: Any
) -> None:
    """Choose a scheme for each head of MODEL, and write the plan.

    Every candidate is tried on every head alone; what that does to the outputs tells which heads can bear what. Plans
    are measured on one half of --data and confirmed on the other. The plan is for `onnx-attnq MODEL --plan`.

    A run that is interrupted leaves what it has measured beside the plan, and the best plan so far; --resume goes on.

    MODULE:FUNCTION of --metric is called with the path of a model and "calibration" or "confirmation", and returns a
    number that is higher for a better model.
    """
    from onnx_attnq.tune import Effort, Goal, Objective, Tuner

    if options["backend"] == "local" and options["address"] is not None:
        raise InvalidData("--address goes with --backend dask")
    max_loss, min_pruned = options["max_loss"], options["min_pruned"]
    if max_loss is None and min_pruned is None:
        max_loss = 0.005
    loss, samples = _loss(model, data, run, options)
    tuner = Tuner(
        model,
        samples,
        loss,
        Goal(max_loss, min_pruned, Objective(options["objective"])),
        Effort(options["time_budget"], options["jobs"], run.custom_ops),
    )
    plan = output or model.with_name(f"{model.stem}.plan.json")
    with _cluster(options["backend"], options["address"]), progress_bar("Tuning") as bar:
        found = tuner.run(plan, resume=resume, progress=bar)
    if json_path is not None:
        write_json(found.to_json(), json_path)
    if json_path != "-":
        _show(model, plan, found)
    if not found.accepted:
        raise click.exceptions.Exit(1)


def _loss(model: Path, data: Path, run: RunSettings, options: dict[str, Any]) -> tuple[Loss, Any]:
    """What --task, --metric and --data ask for: a loss, and the samples that heads are measured on."""
    from onnx_attnq.inputs import load_samples
    from onnx_attnq.model import load
    from onnx_attnq.tune import Agreement, FunctionLoss, TaskLoss, load_function

    if options["task"] is not None and options["metric"] is not None:
        raise InvalidData("--task and --metric are two losses; give one of them")
    count = options["samples"]
    if options["task"] is not None:
        from onnx_attnq.evaluate import load_task, load_tokenizer

        words = load_tokenizer(options["tokenizer"] or model.parent)
        task = load_task(options["task"], data, max_length=options["max_length"], limit=options["limit"])
        of_task = TaskLoss(model, task, words, run)
        return of_task, of_task.samples(model, count)
    samples = load_samples(data, load(model))
    if options["metric"] is not None:
        return FunctionLoss(model, load_function(options["metric"]), options["metric"]), samples[:count]
    return Agreement(model, samples, run), samples[: min(count, (len(samples) + 1) // 2)]


def _cluster(backend: str, address: str | None) -> Any:
    import contextlib

    if backend == "local":
        return contextlib.nullcontext()
    from onnx_attnq.tune import dask_cluster

    return dask_cluster(address)


def _show(model: Path, plan: Path, found: Tuning) -> None:
    out = console()
    choice = found.choice
    out.print(
        f"{choice.pruned:.1%} pruned at {choice.bits:.2f} bits a head, chosen among {len(found.steps)} measured plans"
    )
    table = plain_table("site", "bits of each head", "thresholds")
    for site, schemes in choice.schemes.items():
        table.add_row(site, " ".join(str(s.bits) for s in schemes), " ".join(f"{s.threshold:g}" for s in schemes))
    out.print(table)
    losses = plain_table("loss", "calibration", "confirmation")
    for name, figure in found.calibration.figures.items():
        losses.add_row(name, _interval(figure), _interval(found.confirmation.figures[name]))
    out.print(losses)
    if not found.complete:
        out.print("Not every head was measured in the time; those keep the mildest candidate. --resume goes on.")
    verdict = (
        "within the bound on both halves" if found.accepted else "beyond the bound: no plan that was measured holds it"
    )
    out.print(f"{found.calibration.count} and {found.confirmation.count} examples, {verdict}")
    out.print(f"Wrote {plan}; apply it with `onnx-attnq {model} --plan {plan}`", soft_wrap=True)


def _interval(figure: Any) -> str:
    if figure.low != figure.low:
        return f"{figure.estimate:+.2%}"
    return f"{figure.estimate:+.2%} ({figure.low:+.2%} to {figure.high:+.2%})"
