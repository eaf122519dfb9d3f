"""What commands share: progress bars, tables, and JSON to a file or standard output."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.errors import MissingExtra
from onnx_attnq.one_line import one_line
from onnx_attnq.progress import no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnx_attnq.inputs import MadeUp
    from onnx_attnq.progress import Progress as Callback
    from onnx_attnq.scheme import SiteScheme
    from onnx_attnq.verification import Deviation

_UNLIMITED: Final = 100_000
"""Columns of a pipe or a file: a row stays one line, which `grep` finds."""


def console() -> Console:
    """For people, on standard output: as wide as the terminal or COLUMNS says; lines are not wrapped in a pipe.

    Each text is a line of its own, in which names of files and nodes stay as they are as far as they are printable.
    """
    from onnx_attnq.cli.lines import Lines

    return Lines(width=None if sys.stdout.isatty() else _UNLIMITED)


@contextlib.contextmanager
def progress_bar(title: str, steps: str = "runs") -> Iterator[Callback]:
    """A callback that draws a bar on standard error; one that does nothing where that is not a terminal.

    Args:
        title: What the job does.
        steps: What it counts.
    """
    if not sys.stderr.isatty():
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{steps},"),
        TimeRemainingColumn(),
        TextColumn("left:"),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=one_line(what), completed=done, total=total)


def write_json(data: Mapping[str, Any], path: str) -> None:
    """Write JSON to a file, or to standard output for ``-``."""
    text = json.dumps(data, indent=2) + "\n"
    if path == "-":
        click.echo(text, nl=False)
        return
    with replacing(Path(path)) as file:
        file.write(text.encode())


def plain_table(*headers: str) -> Table:
    """A table without a frame, the first column on the left and the rest on the right."""
    from onnx_attnq.cli.lines import Cells

    table = Cells(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", overflow="fold")
    return table


def compared(d: Deviation) -> tuple[str, str, str, str]:
    """Relative error, cosine, top-1 agreement and KL of an output for a table; - for what it does not have."""
    cosine = f"{d.cosine:.6f}" if d.cosine_tells else "-"
    top1 = "-" if d.top1_agreement is None else f"{d.top1_agreement:.2%}"
    return f"{d.relative_error:.2e}", cosine, top1, "-" if d.kl is None else f"{d.kl:.2e}"


def scheme_text(scheme: SiteScheme) -> str:
    """The name, bits and threshold of a scheme, or the least and the most of the heads' schemes."""
    from onnx_attnq.scheme import schemes_of

    bits = sorted({one.bits for one in schemes_of(scheme) if one.bits is not None})
    thresholds = sorted({one.threshold for one in schemes_of(scheme)})
    of_bits = f"{_range(bits)} bits, " if bits else ""
    return f"{scheme.name} ({of_bits}threshold {_range(thresholds)})"


def _range(numbers: Sequence[float]) -> str:
    low, high = f"{numbers[0]:g}", f"{numbers[-1]:g}"
    return low if low == high else f"{low} to {high}"


def show_refused(out: Console, samples: MadeUp) -> None:
    """Say which of the samples that were made up had to be left out."""
    if samples.refused:
        made = len(samples.samples) + len(samples.refused)
        out.print(f"{len(samples.refused)} of {made} made-up samples left out, on which the original does not run:")
        for line in samples.refused:
            out.print(f"  {line}", soft_wrap=True)


def require_pictures() -> None:
    """Check that the packages of a report are there, before anything is measured for it.

    Raises:
        MissingExtra: One is not.
    """
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(
                f"the report needs {package}: pip install 'onnx-attnq[analyze]', or take the numbers with --no-report"
            )


def in_megabytes(size: int) -> str:
    """Such as 22.9 MB.

    >>> in_megabytes(22_850_000)
    '22.9 MB'
    """
    return f"{size / 1e6:.1f} MB"
