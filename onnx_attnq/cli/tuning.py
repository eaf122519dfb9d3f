"""What `tune` and `onnx-attnq MODEL --max-loss` share: the loss that is asked for, the run, and what is shown of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnx_attnq.cli.evaluate import TASKS
from onnx_attnq.cli.options import path_type
from onnx_attnq.cli.output import console, plain_table, progress_bar
from onnx_attnq.errors import InvalidData

if TYPE_CHECKING:
    from onnx_attnq.evaluate import Interval
    from onnx_attnq.inputs import Sample
    from onnx_attnq.run import RunSettings
    from onnx_attnq.tune import Effort, Goal, Loss, Tuning

BACKENDS: Final = ("local", "dask")

TUNING_SAMPLES: Final = 6
"""Number of inputs on which every head is measured with every candidate, where it is not given."""


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


@dataclasses.dataclass(frozen=True)
class Lossy:
    """What may be lost, as options say it.

    Attributes:
        max_loss: The largest loss, a share; None where none was given.
        min_pruned: The least share to prune; None where none was given.
        task: Name of a task of `evaluate`.
        figures: Which figures count; all if empty.
        tokenizer: Its folder; the model's if None.
        jobs: Processes; -1 is one a core.
    """

    task: str | None
    figures: tuple[str, ...]
    tokenizer: Path | None
    jobs: int
    max_loss: float | None = None
    min_pruned: float | None = None

    @property
    def has_goal(self) -> bool:
        """Whether it was said what to reach."""
        return self.max_loss is not None or self.min_pruned is not None


Cluster = Callable[[Path, Sequence[Any]], contextlib.AbstractContextManager[None]]
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_LOSS: Final[tuple[_Decorator, ...]] = (
    click.option(
        "--task",
        type=click.Choice(TASKS),
        metavar="TASK",
        help="Loss of the metrics of a task: one of those of `evaluate`; --data is a file in its format.  [default: "
        "agreement with the original]",
    ),
    click.option(
        "--figure",
        "figures",
        multiple=True,
        metavar="NAME",
        help="Figure of the loss that counts: a metric of --task, or cosine, kl, top-1; may be repeated.  [default: "
        "all metrics; cosine and kl]",
    ),
    click.option(
        "--tokenizer", type=path_type, help="Folder with the tokenizer, for --task.  [default: MODEL's folder]"
    ),
    click.option(
        "--jobs",
        type=click.IntRange(-1),
        default=-1,
        show_default=True,
        metavar="COUNT",
        help="Processes that measure; -1 is one a core.",
    ),
)


def loss_options(default: str) -> _Decorator:
    """--max-loss, --min-pruned, --task, --figure, --tokenizer and --jobs, which reach the command as ``lossy``.

    Args:
        default: What happens without --max-loss, for help.
    """
    goal = (
        click.option(
            "--max-loss",
            type=Share(),
            help="Largest loss of any figure, such as 0.5%: each head gets a scheme of its own, so that most is pruned "
            f"in the fewest bits within this loss.  [default: {default}]",
        ),
        click.option(
            "--min-pruned",
            type=Share(),
            help="Least share of the attention values to prune, such as 80%; each head gets a scheme of its own, so "
            "that least is lost.  [default: no least share]",
        ),
    )
    return lambda command: _lossy(command, (*goal, *_LOSS))


def sweep_loss_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same without a goal."""
    return _lossy(command, _LOSS)


def _lossy(command: Callable[..., Any], options: Sequence[_Decorator]) -> Callable[..., Any]:
    @functools.wraps(command)
    def with_loss(**given: Any) -> Any:
        own = {field.name: given.pop(field.name) for field in dataclasses.fields(Lossy) if field.name in given}
        return command(lossy=Lossy(**own), **given)

    return _decorated(with_loss, options)


limit_option = click.option(
    "--limit", type=click.IntRange(4), metavar="COUNT", help="Use only the first examples of --task.  [default: all]"
)


def backend_options(where: str) -> _Decorator:
    """--backend and --address, which reach the command as ``cluster``.

    That is a function of what the workers share: it gives the place where joblib works while it is open, and a cluster
    gets these objects once.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_backend(*, backend: str, address: str | None, **given: Any) -> Any:
            if backend == "local" and address is not None:
                raise InvalidData("--address is of a dask cluster; add --backend dask, or leave it out")
            return command(cluster=functools.partial(_cluster, backend, address), **given)

        return _decorated(
            with_backend,
            (
                click.option("--backend", type=click.Choice(BACKENDS), default="local", show_default=True, help=where),
                click.option(
                    "--address",
                    metavar="HOST:PORT",
                    help="Scheduler of the dask cluster, which --backend dask needs.  [default: none]",
                ),
            ),
        )

    return decorate


def _decorated(command: Callable[..., Any], options: Sequence[_Decorator]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def loss_and_samples(
    model: Path,
    data: Path,
    lossy: Lossy,
    run: RunSettings,
    count: int,
    *,
    metric: str | None = None,
    max_length: int = 320,
    limit: int | None = None,
) -> tuple[Loss, Sequence[Sample]]:
    """The loss that is asked for, and that many samples of the calibration half to measure heads on."""
    from onnx_attnq.inputs import load_samples
    from onnx_attnq.model import load
    from onnx_attnq.tune import AGREEMENT, Agreement, FunctionLoss, TaskLoss, load_function

    if lossy.task is not None and metric is not None:
        raise InvalidData("--task and --metric are two losses; give one of them")
    if lossy.task is not None:
        from onnx_attnq.evaluate import load_task, load_tokenizer

        words = load_tokenizer(lossy.tokenizer or model.parent)
        task = load_task(lossy.task, data, max_length=max_length, limit=limit)
        of_task = TaskLoss(model, task, words, run, lossy.figures)
        return of_task, of_task.samples(model, count)
    samples = load_samples(data, load(model))
    if metric is not None:
        return FunctionLoss(model, load_function(metric), metric), samples[:count]
    return Agreement(model, samples, run, lossy.figures or AGREEMENT[:2]), samples[::2][:count]


def _cluster(
    backend: str, address: str | None, model: Path, shared: Sequence[Any]
) -> contextlib.AbstractContextManager[None]:
    if backend == "local":
        return contextlib.nullcontext()
    from onnx_attnq.tune import dask_cluster, memory_of_worker

    return dask_cluster(address, shared, memory_of_worker(model))


def run_tuning(
    model: Path, plan: Path, loss: Loss, samples: Sequence[Sample], goal: Goal, effort: Effort, *, resume: bool
) -> Tuning:
    """Tune with a bar, which has the time that remains and the best plan so far."""
    from onnx_attnq.tune import Tuner

    with progress_bar("Tuning", "measurements") as bar:
        return Tuner(model, samples, loss, goal, effort).run(plan, resume=resume, progress=bar)


def tune_first(
    model: Path, data: Path, plan: Path, lossy: Lossy, run: RunSettings, *, resume: bool, quiet: bool
) -> tuple[Tuning, Sequence[Sample]]:
    """Tune, write the plan, and say what came of it; and the samples that the heads were measured on, whole."""
    from onnx_attnq.model import load
    from onnx_attnq.tune import Effort, Goal, first_rows

    loss, samples = loss_and_samples(model, data, lossy, run, TUNING_SAMPLES)
    goal = Goal(lossy.max_loss, lossy.min_pruned)
    of_heads = first_rows(load(model), samples)
    found = run_tuning(model, plan, loss, of_heads, goal, Effort(jobs=lossy.jobs, run=run), resume=resume)
    if not quiet:
        show_tuning(found)
        console().print(f"Wrote the plan {plan}")
        if not found.accepted:
            console().print("No model was written: no plan is within the bound.", style="red")
    return found, samples


def show_tuning(found: Tuning) -> None:
    """The plan, its losses, and what each freedom has won."""
    out = console()
    choice, chosen = found.choice, found.found
    out.print(
        f"{choice.pruned:.1%} pruned at {choice.bits:.2f} bits a head, chosen among {len(chosen.steps)} measured plans"
    )
    table = plain_table("site", "bits of each head", "thresholds")
    for site, schemes in choice.schemes.items():
        left = dict(choice.left.get(site, ()))
        bits = " ".join("-" if head in left else str(s.bits) for head, s in enumerate(schemes))
        thresholds = " ".join("-" if head in left else f"{s.threshold:g}" for head, s in enumerate(schemes))
        table.add_row(site, bits, thresholds)
    out.print(table)
    for site, heads in choice.left.items():
        for head, why in heads:
            out.print(f"  left alone: {site} head {head}: {why}")
    losses = plain_table("loss", "calibration", "confirmation")
    for name in chosen.calibration.figures:
        losses.add_row(
            name,
            *(_interval(part.figures[name], name in part.noise) for part in (chosen.calibration, chosen.confirmation)),
        )
    out.print(losses)
    won = plain_table("instead, at the same divergence", "pruned", "bits")
    for other in found.won:
        made = other.choice
        won.add_row(other.name, *(("none", "-") if made is None else (f"{made.pruned:.1%}", f"{made.bits:.2f}")))
    out.print(won)
    if not found.complete:
        out.print("Not every head was measured in the time; those are left alone. --resume goes on.")
    verdict = (
        "within the bound on both halves" if found.accepted else "beyond the bound: no plan that was measured holds it"
    )
    out.print(f"{chosen.calibration.count} and {chosen.confirmation.count} examples, {verdict}")


def _interval(figure: Interval, noise: bool) -> str:
    if figure.low != figure.low:
        return f"{figure.estimate:+.2%}"
    return f"{figure.estimate:+.2%} ({figure.low:+.2%} to {figure.high:+.2%}){', noise' if noise else ''}"
