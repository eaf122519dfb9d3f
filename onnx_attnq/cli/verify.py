"""`onnx-attnq verify A B`: do two models compute the same?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    atol_option,
    data_option,
    json_option,
    path_type,
    rtol_option,
    samples_for,
    seed_option,
    threads_option,
)
from onnx_attnq.cli.output import console, plain_table, progress_bar, show_refused, write_json

if TYPE_CHECKING:
    from onnx_attnq.verification import Comparison


@command()
@click.argument("a", type=path_type)
@click.argument("b", type=path_type)
@data_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    metavar="COUNT",
    help="Number of samples to make up where --data is not given; one with a fully masked row and one with a NaN are "
    "added.",
)
@seed_option
@atol_option
@rtol_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="[OUTPUT:]METRIC>=VALUE",
    help="Bound on a figure of one output or all: cosine>=, top1_agreement>=, max_abs<=, mean_abs<=, median_abs<=, "
    "p90_abs<=, p99_abs<=, p999_abs<=, kl<=; may be repeated.",
)
@threads_option
@json_option
def verify(
    a: Path,
    b: Path,
    data: Path | None,
    samples: int,
    seed: int,
    atol: float | None,
    rtol: float | None,
    metrics: tuple[str, ...],
    threads: int | None,
    json_path: str | None,
) -> int:
    """Compare what models A and B compute.

    Exits with 1 when they differ by more than they may.

    Without a tolerance, the elements must agree within rtol 1e-4 and atol 1e-5. When B was rewritten by this tool, its
    codes are checked too, on standard ops and in the native library, and it may deviate unless a tolerance says
    how far.
    """
    from onnx_attnq.model import load
    from onnx_attnq.verification import Bounds, Tolerance, compare_models

    model_a, model_b = load(a), load(b)
    given = samples_for(model_a, data, samples, seed, edges=True, threads=threads)
    bounds = Bounds(tuple(Tolerance.parse(text) for text in metrics), rtol, atol)
    with progress_bar("Verifying") as progress:
        result = compare_models(
            model_a,
            model_b,
            given.samples,
            bounds=bounds,
            threads=threads,
            progress=progress,
        )
    if json_path is not None:
        write_json(result.to_json(), json_path)
    if json_path != "-":
        show_refused(console(), given)
        _show(result)
    return 0 if result.passed else 1


def _show(result: Comparison) -> None:
    out = console()
    table = plain_table("output", "run", "max abs", "mean", "median", "p99", "cosine", "top-1", "KL")
    for way, run in result.runs.items():
        for name, output in run.outputs.items():
            d = output.deviation
            top1 = "-" if d.top1_agreement is None else f"{d.top1_agreement:.2%}"
            kl = "-" if d.kl is None else f"{d.kl:.2e}"
            figures = (d.max_abs, d.mean_abs, output.quantiles["median_abs"], output.quantiles["p99_abs"])
            table.add_row(name, way, *(f"{figure:.2e}" for figure in figures), f"{d.cosine:.6f}", top1, kl)
    out.print(table)
    for way, run in result.runs.items():
        if run.sites:
            codes, wrong = (sum(getattr(check, n) for check in run.sites.values()) for n in ("codes", "errors"))
            out.print(f"{way}: {len(run.sites)} sites, {codes:,} codes checked, {wrong:,} wrong")
    for failure in result.failures:
        out.print(f"failed: {failure}", style="red")
    out.print("Verified" if result.passed else "Not verified", style="green" if result.passed else "red")
