"""`onnx-attnq sweep MODEL`: schemes, bits and thresholds against loss, sparsity and time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import json_option, max_length_option, no_report_option, path_type, run_options
from onnx_attnq.cli.output import console, plain_table, progress_bar, require_pictures, write_json
from onnx_attnq.cli.tuning import Cluster, Lossy, backend_options, limit_option, loss_and_samples, sweep_loss_options

if TYPE_CHECKING:
    from onnx_attnq.run import RunSettings
    from onnx_attnq.tune import Swept


@command()
@click.argument("model", type=path_type)
@click.option(
    "--data",
    type=path_type,
    required=True,
    help="Samples of real inputs (.npz, .npy or a folder), or with --task a file in the format of the task.",
)
@click.option("-o", "--output", type=path_type, help="Folder to write.  [default: MODEL.sweep beside MODEL]")
@click.option(
    "--scheme",
    "schemes",
    multiple=True,
    metavar="NAME",
    help="Preset to try; may be repeated.  [default: row-log-mean, row-log, ji2021, prune-only-row-max]",
)
@click.option(
    "--bits",
    multiple=True,
    type=click.IntRange(1, 8),
    metavar="COUNT",
    help="Bits to try; may be repeated.  [default: 1 to 4]",
)
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    help="Threshold to try; may be repeated.  [default: 0.01, 0.03, 0.1, 0.3 of the row's maximum; "
    "1e-4, 1e-3, 1e-2 for absolute ones]",
)
@click.option(
    "--pruned",
    multiple=True,
    type=click.Choice(["zero", "mean"]),
    help="What becomes of pruned values; may be repeated.  [default: as the scheme has it]",
)
@sweep_loss_options
@max_length_option
@limit_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    metavar="COUNT",
    help="Number of inputs on which pruned values are counted.",
)
@click.option(
    "--repeats",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="COUNT",
    help="Timed runs of each model, in turn with the original; 0 measures no times.",
)
@click.option("--resume", is_flag=True, help="Continue an earlier run.")
@no_report_option
@backend_options("Where points are measured.")
@run_options
@json_option
def sweep(
    model: Path,
    data: Path,
    output: Path | None,
    lossy: Lossy,
    run: RunSettings,
    cluster: Cluster,
    json_path: str | None,
    **options: Any,
) -> None:
    """Try schemes on MODEL; report loss, share pruned and speed.

    All heads get the same scheme, as in the paper; `tune` chooses one for each head. Writes points.csv, points.json,
    report.html and the pictures as SVG. What was measured is in points.journal; --resume continues from there.
    """
    from onnx_attnq.scheme import Pruned
    from onnx_attnq.tune import Sweep, Swept, grid

    if not options["no_report"]:
        require_pictures()
    wanted = grid(
        options["schemes"],
        options["bits"],
        options["thresholds"],
        [Pruned(treatment) for treatment in options["pruned"]],
    )
    counts = {"max_length": options["max_length"], "limit": options["limit"]}
    loss, samples = loss_and_samples(model, data, lossy, run, options["samples"], **counts)
    folder = model.with_name(f"{model.stem}.sweep") if output is None else output
    with cluster(model, [samples, loss]), progress_bar("Sweeping", "schemes") as progress:
        job = Sweep(model, samples, loss, wanted, options["repeats"], lossy.jobs, run)
        points = job.run(folder / "points.journal", resume=options["resume"], progress=progress)
    swept = Swept(model.name, data.name, loss.name, points)
    _write(swept, folder, report=not options["no_report"])
    if json_path is not None:
        write_json(swept.to_json(), json_path)
    if json_path != "-":
        _show(swept, folder)


def _write(swept: Swept, folder: Path, *, report: bool) -> None:
    write_json(swept.to_json(), str(folder / "points.json"))
    with replacing(folder / "points.csv") as file:
        file.write(swept.to_csv().encode())
    if not report:
        return
    from onnx_attnq.report.picture_style import to_bytes
    from onnx_attnq.tune import sweep_page, sweep_pictures

    drawn = [(name, caption, to_bytes(figure, "svg")) for name, caption, figure in sweep_pictures(swept)]
    for name, _, svg in drawn:
        with replacing(folder / f"{name}.svg") as file:
            file.write(svg)
    with replacing(folder / "report.html") as file:
        file.write(sweep_page(swept, drawn).encode())


def _show(swept: Swept, folder: Path) -> None:
    from onnx_attnq.scheme import spell_scheme

    out = console()
    out.print(f"{len(swept.points)} schemes; no other beats these in loss and share pruned:")
    names = list(swept.points[0].loss.figures)
    table = plain_table("scheme", "pruned", "times as fast", *(f"loss of {name}" for name in names))
    for point in reversed(swept.by_pruned):
        speed = "-" if point.speed != point.speed else f"{point.speed:.2f}"
        losses = (f"{point.loss.figures[name].estimate:+.2%}" for name in names)
        table.add_row(spell_scheme(point.scheme), f"{point.pruned:.1%}", speed, *losses)
    out.print(table)
    out.print(f"Wrote {folder}")
