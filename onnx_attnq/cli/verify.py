"""`onnx-attnq verify A B`: do two models compute the same?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    data_option,
    input_shape_option,
    json_option,
    limits_options,
    path_type,
    run_options,
    samples_for,
    seed_option,
)
from onnx_attnq.cli.output import compared, console, plain_table, progress_bar, show_refused, write_json
from onnx_attnq.counted import counted
from onnx_attnq.progress import Parts

if TYPE_CHECKING:
    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.run import RunSettings
    from onnx_attnq.verification import Limits, Verification


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
@input_shape_option
@limits_options
@run_options
@json_option
def verify(
    a: Path,
    b: Path,
    data: Path | None,
    samples: int,
    seed: int,
    input_shapes: InputShapes,
    limits: Limits,
    run: RunSettings,
    json_path: str | None,
) -> int:
    """Compare what models A and B compute.

    Exits with 1 when they differ by more than is allowed.

    Without a tolerance, the elements must agree within rtol 1e-4 and atol 1e-5. When B was rewritten by this tool, its
    codes are checked too, on standard ops and in the native library, and it may deviate unless a tolerance says
    how far.
    """
    from onnx_attnq.model import load
    from onnx_attnq.verification import verify as compare

    model_a, model_b = load(a), load(b)
    with progress_bar("Verifying") as progress:
        runs = Parts(progress)
        given = samples_for(model_a, data, samples, seed, input_shapes, run, runs.next(), edges=True)
        result = compare(
            model_a, model_b, given.samples, expected=given.outputs, limits=limits, run=run, progress=runs.next()
        )
    if json_path is not None:
        write_json(result.to_json(), json_path)
    if json_path != "-":
        show_refused(console(), given)
        _show(result)
    return 0 if result.passed else 1


def _show(result: Verification) -> None:
    out = console()
    table = plain_table("output", "run", "max abs", "mean", "median", "p99", "relative", "cosine", "top-1", "KL")
    for way, run in result.runs.items():
        for name, output in run.outputs.items():
            d = output.deviation
            figures = (d.max_abs, d.mean_abs, output.quantiles["median_abs"], output.quantiles["p99_abs"])
            table.add_row(name, way, *(f"{figure:.2e}" for figure in figures), *compared(d))
    out.print(table)
    for way, run in result.runs.items():
        if run.sites:
            sites = counted(len(run.sites), "site")
            out.print(f"{way}: {sites}, {run.codes.codes:,} codes checked, {run.codes.errors:,} wrong")
    for note in result.notes:
        out.print(f"note: {note}")
    for failure in result.failures:
        out.print(f"failed: {failure}", style="red")
    out.print("Verified" if result.passed else "Not verified", style="green" if result.passed else "red")
