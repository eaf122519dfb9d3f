"""`onnx-attnq tune MODEL`: a scheme for each head, so that as much is pruned as a loss allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import json_option, max_length_option, path_type, run_options
from onnx_attnq.cli.output import console, write_json
from onnx_attnq.cli.tuning import (
    TUNING_SAMPLES,
    Cluster,
    Lossy,
    backend_options,
    limit_option,
    loss_and_samples,
    loss_options,
    run_tuning,
    show_tuning,
)

if TYPE_CHECKING:
    from onnx_attnq.run import RunSettings


@command()
@click.argument("model", type=path_type)
@click.option(
    "--data",
    type=path_type,
    required=True,
    help="Samples of real inputs (.npz, .npy or a folder), or with --task a file in the format of the task. One half "
    "chooses the plan, the other confirms it.",
)
@loss_options("0.5%, or no limit with --min-pruned")
@click.option(
    "--objective",
    type=click.Choice(("sparse", "narrow", "sparse-and-narrow", "fastest")),
    default="sparse-and-narrow",
    show_default=True,
    help="What to optimize: more pruned values, fewer bits, both, or time: fastest searches a plan for each of the "
    "others, and takes the one whose model is measured to be the fastest.",
)
@click.option(
    "--metric",
    metavar="MODULE:FUNCTION",
    help="Your own function, which returns a number that should stay high, as said above.  [default: none]",
)
@max_length_option
@limit_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=TUNING_SAMPLES,
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
    help="Longest time of the whole run; heads not reached in 70 % of it are left unchanged.  [default: no limit]",
)
@backend_options("Where heads are measured: processes of this machine, or a dask cluster.")
@run_options
@json_option
def tune(
    model: Path,
    data: Path,
    lossy: Lossy,
    run: RunSettings,
    cluster: Cluster,
    resume: bool,
    json_path: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Choose a scheme for each head of MODEL, and write the plan.

    Each candidate scheme is tried on one head at a time; candidates are ranked by how much they change the outputs.
    Plans are measured on one half of --data and confirmed on the other. The plan is for `onnx-attnq MODEL --plan`.
    Without --max-loss and --min-pruned the largest loss is 0.5%.

    A run that is interrupted leaves what it has measured beside the plan, and the best plan so far; --resume continues.

    MODULE:FUNCTION of --metric is called with the path of a model and "calibration" or "confirmation", and returns a
    number that is higher for a better model.
    """
    from onnx_attnq.model import load
    from onnx_attnq.tune import Effort, Goal, Objective, first_rows

    max_loss = lossy.max_loss if lossy.has_goal else 0.005
    goal = Goal(max_loss, lossy.min_pruned, Objective(options["objective"]))
    loss, samples = loss_and_samples(
        model,
        data,
        lossy,
        run,
        options["samples"],
        metric=options["metric"],
        max_length=options["max_length"],
        limit=options["limit"],
    )
    plan = output or model.with_name(f"{model.stem}.plan.json")
    of_heads = first_rows(load(model), samples)
    with cluster(model, [of_heads]):
        effort = Effort(options["time_budget"], lossy.jobs, run)
        found = run_tuning(model, plan, loss, of_heads, goal, effort, resume=resume)
    if json_path is not None:
        write_json(found.to_json(), json_path)
    if json_path != "-":
        show_tuning(found)
        console().print(f"Wrote {plan}; apply it with `onnx-attnq {model} --plan {plan}`", soft_wrap=True)
    if not found.accepted:
        raise click.exceptions.Exit(1)
