"""`onnx-attnq bisect A B`: which sites make a rewritten model deviate?"""

from __future__ import annotations

import json
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
    samples_option,
    seed_option,
)
from onnx_attnq.cli.output import console, plain_table, progress_bar, show_refused, write_json
from onnx_attnq.progress import Parts

if TYPE_CHECKING:
    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.run import RunSettings
    from onnx_attnq.verification import Bisection, Limits


@command()
@click.argument("a", type=path_type)
@click.argument("b", type=path_type)
@data_option
@samples_option
@seed_option
@input_shape_option
@limits_options
@run_options
@json_option
def bisect(
    a: Path,
    b: Path,
    data: Path | None,
    samples: int,
    seed: int,
    input_shapes: InputShapes,
    limits: Limits,
    run: RunSettings,
    json_path: str | None,
) -> None:
    """Rank the sites of B by what they add to its deviation from A.

    B is a model that was rewritten from A. Says which sites to leave: as few as bring B within the tolerances, or,
    without any, the worst one.
    """
    from onnx_attnq.model import load
    from onnx_attnq.verification import bisect as rank_sites

    with progress_bar("Bisecting") as progress:
        runs = Parts(progress)
        given = samples_for(load(a), data, samples, seed, input_shapes, run, runs.next())
        result = rank_sites(a, b, given.samples, expected=given.outputs, limits=limits, run=run, progress=runs.next())
    if json_path is not None:
        write_json(result.to_json(), json_path)
    if json_path != "-":
        show_refused(console(), given)
        _show(result)


def _show(result: Bisection) -> None:
    out = console()
    table = plain_table("site", "contributes", "deviation without it", "error of its own context")
    for site in result.sites:
        table.add_row(site.site, f"{site.contribution:+.2e}", f"{site.without:.2e}", f"{site.local_error:.2e}")
    out.print(table)
    out.print(f"deviation of all: {result.deviation:.2e}, relative, of the output that deviates most")
    for note in result.notes:
        out.print(f"note: {note}")
    if not result.exclude:
        out.print("No site has to be left.")
        return
    out.print(f"{result.remaining:.2e} remain with {result.options}", soft_wrap=True)
    out.print("or, in a plan:")
    for line in result.plan_lines:
        out.print(f"  {json.dumps(line)}", soft_wrap=True)
