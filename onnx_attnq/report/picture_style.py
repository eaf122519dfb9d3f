"""How every picture looks, what it says about itself, and how it becomes SVG or PNG.

Needs matplotlib (extra ``analyze``). Figures are as wide as a phone, so that a page can lay them out in one
column or several; no global state of pyplot is touched.
"""

from __future__ import annotations

import functools
import io
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from onnx_attnq.atomic import replacing
from onnx_attnq.counted import counted
from onnx_attnq.errors import CannotWrite
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.study import Study, scheme_label

WIDTH: Final = 3.9
"""Width of a figure in inches: 374 CSS pixels, so that a phone shows its text at full size."""

LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's palette, which people with any colour vision can tell apart."""

SEQUENTIAL: Final = "cividis"
"""A colour map that is monotonic in lightness and reads the same with colour-vision deficiency."""

FORMATS: Final = ("svg", "png")

_PATH: Final = re.compile(rb' d="[^"]*"')
_LONG_NUMBER: Final = re.compile(rb"(\d\.\d{2})\d+")

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "legend.fontsize": 7.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a token may be a dollar sign; formulas are slow, too
    "svg.hashsalt": "onnx-attnq",
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(plot: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a function that draws with this module's style, whatever the user's own is."""

    @functools.wraps(plot)
    def inner(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return plot(*args, **kwargs)

    return inner


def new_figure(title: str, source: str, *, panels: int = 1, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with its title above, where it comes from below, and panels one below the other.

    Args:
        title: What is shown.
        source: Model, data and scheme; see `provenance`.
        panels: Number of axes; they share x.
        height: Of all panels, in inches.
    """
    head = textwrap.wrap(title, 48)
    foot = textwrap.wrap(source, 68)
    figure = Figure(figsize=(WIDTH, height + 0.17 * len(head) + 0.14 * len(foot)), layout="constrained")
    figure.suptitle("\n".join(head), x=0.01, ha="left", fontsize=9.0, fontweight="bold")
    figure.supxlabel("\n".join(foot), x=0.01, ha="left", fontsize=7.0, color="#555555")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def log_scale(axis: Axis) -> None:
    """A log scale whose labels read 1e-4, as thresholds are written."""
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("1e+00", "1")))
    axis.set_minor_formatter(NullFormatter())


def provenance(study: Study, *schemes: QuantScheme) -> str:
    """The line below every figure: model, data, number of tokens, and scheme."""
    what = "; ".join(map(scheme_label, schemes)) if schemes else "none (original probabilities)"
    size = f"{counted(study.samples, 'sample')}, {counted(study.tokens, 'token')}"
    return f"{study.model} · {study.data}, {size} · scheme: {what}"


@styled
def to_bytes(figure: Figure, form: str) -> bytes:
    """The figure as an SVG or PNG file; equal figures give equal bytes.

    Args:
        figure: Any figure.
        form: ``svg`` or ``png`` (200 dots per inch).
    """
    if form not in FORMATS:
        raise ValueError(f"form must be one of {', '.join(FORMATS)}, not {form!r}")
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    figure.savefig(stream, format=form, dpi=200, metadata=metadata)
    content = stream.getvalue()
    # Matplotlib writes coordinates to a millionth of a point; a hundredth makes the file a third smaller.
    return _PATH.sub(lambda path: _LONG_NUMBER.sub(rb"\1", path[0]), content) if form == "svg" else content


def legend_above(axes: Axes, *more: Axes, columns: int = 1) -> None:
    """A legend between title and panel, where it hides nothing; ``more`` axes add their lines."""
    entries = [pair for each in (axes, *more) for pair in zip(*each.get_legend_handles_labels(), strict=True)]
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the name's ending, .svg or .png, says as what.

    Raises:
        CannotWrite: Another ending, or the folder is missing or not writable.
    """
    form = Path(path).suffix.removeprefix(".")
    if form not in FORMATS:
        raise CannotWrite(f"cannot write {path}: a figure is .svg or .png")
    with replacing(path) as file:
        file.write(to_bytes(figure, form))


__all__ = [
    "FORMATS",
    "LINES",
    "SEQUENTIAL",
    "WIDTH",
    "legend_above",
    "log_scale",
    "new_figure",
    "provenance",
    "save_figure",
    "styled",
    "to_bytes",
]
