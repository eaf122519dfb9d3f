"""`onnx-attnq analyze`: how the attention values of a model are distributed, and what schemes do to them."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.cli.options import data_option, json_option, samples_for, samples_option, seed_option, threads_option
from onnx_attnq.cli.output import console, progress_bar, show_refused, write_json
from onnx_attnq.errors import CannotWrite, InvalidScheme, MissingExtra
from onnx_attnq.model import load
from onnx_attnq.report.tables import study_csv, study_json
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.study import DEFAULT_SCHEMES, SAFE_ERROR, Study, load_token_labels, separator_ids, summary
from onnx_attnq.study import analyze as run


def _scheme(text: str) -> QuantScheme:
    """NAME, or NAME:bits=N,threshold=T."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, _, number = item.partition("=")
        try:
            options[key] = {"bits": int, "threshold": float}[key](number)
        except (KeyError, ValueError):
            raise InvalidScheme(f"--scheme {text!r}: write NAME, or NAME:bits=N,threshold=T") from None
    return preset(name, **options)


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@data_option
@click.option("--data-name", help="What the samples are, for the record.  [default: the name of --data]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write to.  [default: MODEL.analysis beside MODEL]",
)
@click.option(
    "--scheme",
    "schemes",
    type=_scheme,
    multiple=True,
    metavar="NAME[:bits=N,threshold=T]",
    help="A scheme to measure; may be repeated.  [default: row-log and ji2021 at 3 and 2 bits]",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Observe only sites whose id matches; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave sites out whose id matches; may be repeated.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="tokenizer.json, vocab.json, vocab.txt or a folder with one: labels tokens, and tells which are separators.",
)
@click.option("--separator-id", multiple=True, type=int, help="Token id of a separator; may be repeated.")
@click.option(
    "--safe-error",
    type=click.FloatRange(0.0, min_open=True),
    default=SAFE_ERROR,
    show_default=True,
    help="A head is safe when the mean relative error of its context is at most this.",
)
@click.option("--figures", type=click.Choice(["svg", "png"]), help="Write each picture as a file, too.")
@click.option("--no-report", is_flag=True, help="Numbers only; needs neither matplotlib nor jinja2.")
@click.option(
    "--combine",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="STUDY",
    help="Merge saved studies (study.npz) of parts of the data in place of observing MODEL; may be repeated.",
)
@samples_option
@seed_option
@threads_option
@json_option
def analyze(
    model: Path | None,
    data: Path | None,
    data_name: str | None,
    output: Path | None,
    schemes: tuple[QuantScheme, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    tokenizer: Path | None,
    separator_id: tuple[int, ...],
    safe_error: float,
    figures: str | None,
    no_report: bool,
    combine: tuple[Path, ...],
    samples: int,
    seed: int,
    threads: int | None,
    json_path: str | None,
) -> int:
    """Study the attention values of MODEL: distribution, sparsity, and what quantizing them does.

    Writes report.html, numbers.json, heads.csv and study.npz.
    """
    if (model is None) != bool(combine):
        raise click.UsageError("give either a MODEL or --combine STUDY")
    if not no_report:
        _require_extra()
    if combine:
        if output is None:
            raise click.UsageError("--combine needs -o, a folder to write to")
        study = functools.reduce(Study.merge, map(Study.load, combine))
    else:
        assert model is not None
        folder = model.with_name(f"{model.stem}.analysis")
        output = folder if output is None else output
        original = load(model)
        labels = None if tokenizer is None else load_token_labels(tokenizer)
        given = samples_for(original, data, samples, seed, threads=threads)
        if json_path != "-":
            show_refused(console(), given)
        with progress_bar("Observing") as progress:
            study = run(
                model,
                given.samples,
                data_name or (f"made-up inputs (seed {seed})" if data is None else data.name),
                schemes=tuple(dict.fromkeys(schemes)) or DEFAULT_SCHEMES,
                include=include,
                exclude=exclude,
                separator_ids=separator_id or separator_ids(labels or {}),
                labels=labels,
                threads=threads,
                progress=progress,
            )
    _write(study, output, safe_error, figures, report=not no_report)
    if json_path is not None:
        write_json(study_json(study, safe_error), json_path)
    if json_path != "-":
        _show(study, safe_error, output, made_up=model is not None and data is None)
    return 0


def _require_extra() -> None:
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(
                f"the report needs {package}: pip install 'onnx-attnq[analyze]', or take the numbers with --no-report"
            )


def _write(study: Study, folder: Path, limit: float, figures: str | None, *, report: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"cannot make the folder {folder}: {error.strerror}") from None
    study.save(folder / "study.npz")
    write_json(study_json(study, limit), str(folder / "numbers.json"))
    with replacing(folder / "heads.csv") as file:
        file.write(study_csv(study).encode())
    if not report:
        return
    # matplotlib is an extra, and slow to import: only who draws pays for it.
    from onnx_attnq.report.html_report import pictures, report_html
    from onnx_attnq.report.picture_style import save_figure

    with progress_bar("Drawing") as progress:
        page = report_html(study, limit, progress)
    with replacing(folder / "report.html") as file:
        file.write(page.encode())
    if figures is not None:
        (folder / "figures").mkdir(exist_ok=True)
        for picture in pictures(study, limit):
            save_figure(picture.draw(), folder / "figures" / f"{picture.name}.{figures}")


def _show(study: Study, limit: float, folder: Path, *, made_up: bool) -> None:
    out = console()
    out.print(summary(study, limit))
    if made_up:
        out.print("The inputs are made up: give real ones with --data before you believe the numbers.", style="yellow")
    out.print(f"Wrote {folder}: {', '.join(sorted(entry.name for entry in folder.iterdir()))}")
