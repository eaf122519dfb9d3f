"""`onnx-attnq analyze`: how the attention values of a model are distributed, and what schemes do to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    SchemeType,
    data_option,
    exclude_option,
    input_shape_option,
    json_option,
    no_report_option,
    path_type,
    run_options,
    samples_for,
    samples_option,
    scheme_of,
    seed_option,
)
from onnx_attnq.cli.output import console, progress_bar, require_pictures, show_refused, write_json
from onnx_attnq.errors import CannotWrite
from onnx_attnq.progress import Parts

_MOST_EXPLAINED: Final = 3
"""Heads whose resistance is explained in the terminal; the report and the JSON explain all."""

if TYPE_CHECKING:
    from onnx_attnq.find import Sites
    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.run import RunSettings
    from onnx_attnq.study import PlanFinding, Study


@command()
@click.argument("model", type=path_type, required=False)
@data_option
@click.option("--data-name", metavar="TEXT", help="Name of the data in the report.  [default: the name of --data]")
@click.option(
    "-o",
    "--output",
    type=path_type,
    help="Folder to write.  [default: MODEL.analysis beside MODEL]",
)
@click.option(
    "--scheme",
    "schemes",
    type=SchemeType(),
    multiple=True,
    help="Scheme to measure; may be repeated.  [default: row-log-mean at 3 and 2 bits, "
    "row-log at 3, ji2021 at 3 and 2]",
)
@click.option(
    "--plan",
    "plan_path",
    type=path_type,
    help="Plan to measure, too, each head with its own scheme.",
)
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Observe only sites whose id matches; may be repeated.  [default: all]",
)
@exclude_option
@click.option(
    "--tokenizer",
    type=path_type,
    help="File tokenizer.json, vocab.json or vocab.txt, or a folder with one: labels the tokens of the pictures, and "
    "says which tokens are separators.",
)
@click.option(
    "--separator-id",
    multiple=True,
    type=int,
    metavar="ID",
    help="Token id of a separator; may be repeated.  [default: those of --tokenizer]",
)
@click.option(
    "--safe-error",
    type=click.FloatRange(0.0, min_open=True),
    default=0.25,
    show_default=True,
    help="Largest mean relative error of its context at which a head is called safe.",
)
@click.option(
    "--figures",
    type=click.Choice(["svg", "png"]),
    help="Format to write each picture in, as a file of its own.  [default: none]",
)
@no_report_option
@click.option(
    "--combine",
    multiple=True,
    type=path_type,
    metavar="STUDY",
    help="Merge saved studies (study.npz) of parts of the data, in place of observing MODEL; may be repeated.",
)
@click.option(
    "--write-plan",
    type=path_type,
    help="File to write the advised plan to, for `onnx-attnq MODEL --plan`; heads that are not safe are left "
    "unchanged.",
)
@samples_option
@seed_option
@input_shape_option
@run_options
@json_option
def analyze(
    model: Path | None,
    data: Path | None,
    data_name: str | None,
    output: Path | None,
    schemes: tuple[str, ...],
    plan_path: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    tokenizer: Path | None,
    separator_id: tuple[int, ...],
    safe_error: float,
    figures: str | None,
    no_report: bool,
    combine: tuple[Path, ...],
    write_plan: Path | None,
    samples: int,
    seed: int,
    input_shapes: InputShapes,
    run: RunSettings,
    json_path: str | None,
) -> int:
    """Measure the attention values of MODEL, and the cost of schemes.

    Writes report.html, numbers.json, heads.csv and study.npz.
    """
    from onnx_attnq.find import expose, find_sites
    from onnx_attnq.model import load
    from onnx_attnq.report.tables import study_json
    from onnx_attnq.rewriting import load_plan, save_plan
    from onnx_attnq.study import (
        DEFAULT_SCHEMES,
        Study,
        StudySettings,
        advised_plan,
        load_token_labels,
        plan_finding,
        planned_schemes,
        separator_ids,
    )
    from onnx_attnq.study import analyze as observe

    if (model is None) != bool(combine):
        raise click.UsageError("give either a MODEL or --combine STUDY")
    if combine and write_plan is not None:
        raise click.UsageError("--write-plan is for the graph of MODEL; it does not go with --combine")
    if combine and plan_path is not None:
        raise click.UsageError("--plan is for the graph of MODEL; it does not go with --combine")
    if not no_report:
        require_pictures()
    plan = None if plan_path is None else load_plan(plan_path)
    sites: Sites | None = None  # of the graph, for a plan
    if combine:
        if output is None:
            raise click.UsageError("--combine needs -o, a folder to write to")
        study = functools.reduce(Study.merge, map(Study.load, combine))
    else:
        assert model is not None
        folder = model.with_name(f"{model.stem}.analysis")
        output = folder if output is None else output
        original = load(model)
        if plan is not None or write_plan is not None:
            sites = find_sites(expose(original.clone()))  # in place, and samples are made up for the original
        if plan is not None and sites is not None:
            plan.check(sites.exposed.structure_hash, [site.id for site in sites.sites])
        labels = None if tokenizer is None else load_token_labels(tokenizer)
        measured = tuple(scheme_of(text, None, None) for text in schemes) + (planned_schemes(plan) if plan else ())
        with progress_bar("Observing") as progress:
            runs = Parts(progress)
            given = samples_for(original, data, samples, seed, input_shapes, run, runs.next())
            study = observe(
                model,
                given.samples,
                _describe(data, data_name, seed),
                settings=StudySettings(
                    tuple(dict.fromkeys(measured)) or DEFAULT_SCHEMES,
                    include,
                    exclude,
                    separator_id or separator_ids(labels or {}),
                    labels,
                ),
                run=run,
                progress=runs.next(),
            )
        if json_path != "-":
            show_refused(console(), given)
    if write_plan is not None and sites is not None:
        save_plan(advised_plan(study, sites, safe_error), write_plan)
    of_plan = None if plan is None else plan_finding(study, plan, safe_error)
    numbers = study_json(study, safe_error, of_plan)
    written = _write(study, output, numbers, safe_error, figures, report=not no_report)
    if json_path is not None:
        write_json(numbers, json_path)
    if json_path != "-":
        _show(study, safe_error, output, written, write_plan, of_plan)
    return 0


def _write(
    study: Study, folder: Path, numbers: Mapping[str, Any], limit: float, figures: str | None, *, report: bool
) -> list[str]:
    """Write the study; the names of what was written in the folder."""
    from onnx_attnq.report.tables import study_csv

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {folder}: {error.strerror}") from None
    _remove_earlier(folder)
    study.save(folder / "study.npz")
    write_json(numbers, str(folder / "numbers.json"))
    with replacing(folder / "heads.csv") as file:
        file.write(study_csv(study).encode())
    written = ["heads.csv", "numbers.json", "study.npz"]
    if not report:
        return written
    # matplotlib is an extra, and slow to import: only who draws pays for it.
    from onnx_attnq.report.html_report import pictures, report_html
    from onnx_attnq.report.picture_style import save_figure

    with progress_bar("Drawing", "pictures") as progress:
        page = report_html(study, limit, progress)
    with replacing(folder / "report.html") as file:
        file.write(page.encode())
    if figures is not None:
        (folder / "figures").mkdir(exist_ok=True)
        for picture in pictures(study, limit):
            save_figure(picture.draw(), folder / "figures" / f"{picture.name}.{figures}")
        written.append("figures")
    return sorted([*written, "report.html"])


def _describe(data: Path | None, name: str | None, seed: int) -> str:
    """The data in words, which never hide that it was made up."""
    from onnx_attnq.study import MADE_UP

    if data is not None:
        return name or data.name
    return f"{MADE_UP} (seed {seed})" + (f", {name}" if name else "")


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier run wrote: its pictures must not be beside the numbers of this one."""
    try:
        for name in ("report.html", "numbers.json", "heads.csv", "study.npz"):
            (folder / name).unlink(missing_ok=True)
        for form in ("svg", "png"):
            for picture in (folder / "figures").glob(f"*.{form}"):
                picture.unlink()
    except OSError as error:
        raise CannotWrite(f"cannot replace {error.filename}: {error.strerror}") from None


def _show(
    study: Study,
    limit: float,
    folder: Path,
    written: Sequence[str],
    plan: Path | None,
    of_plan: PlanFinding | None,
) -> None:
    from onnx_attnq.scheme import spell_scheme
    from onnx_attnq.study import is_made_up, resistances, summary, verdict

    out = console()
    for line in summary(study, limit).splitlines():
        out.print(line)
    if of_plan is not None:
        out.print(str(of_plan))
    advice = verdict(study, limit)
    if advice is not None:
        worst = resistances(study, advice.finding)[:_MOST_EXPLAINED]
        if worst:
            out.print(f"Not safe with {spell_scheme(advice.finding.scheme)}, and why:")
        for resisting in worst:
            out.print(f"  {resisting}", soft_wrap=True)
        out.print(f"Next: {advice.command}", soft_wrap=True)
        if plan is not None:
            out.print(f"  or: onnx-attnq {study.model} --plan {plan}", soft_wrap=True)
    if is_made_up(study):
        out.print("The inputs are made up: give real ones with --data before you believe the numbers.", style="yellow")
    out.print(f"Wrote {folder}: {', '.join(written)}")
