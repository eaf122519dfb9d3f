"""A sweep as JSON, CSV, pictures and a page: the paper's figures, and what no other scheme beats.

Pictures need matplotlib, and the page jinja2 (extra ``analyze``).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from onnx_attnq.scheme import Pruned, QuantScheme, spell_scheme
from onnx_attnq.tune.sweep import Point, pareto
from onnx_attnq.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS: Final = "osD^v<>P"


@dataclasses.dataclass(frozen=True)
class Swept:
    """The points of a sweep, and where they come from.

    Attributes:
        model: File name of the model.
        data: What was measured on, in words.
        loss: Name of the loss.
        points: The points.
    """

    model: str
    data: str
    loss: str
    points: tuple[Point, ...]

    @property
    def timed(self) -> bool:
        """Whether times were measured."""
        return any(not math.isnan(point.speed) for point in self.points)

    @property
    def by_pruned(self) -> tuple[Point, ...]:
        """The points that no other beats in loss and share pruned."""
        return pareto(self.points, lambda point: point.pruned)

    @property
    def by_speed(self) -> tuple[Point, ...]:
        """The points that no other beats in loss and time."""
        return pareto(self.points, lambda point: point.speed)

    def to_json(self) -> dict[str, Any]:
        """The points as JSON values, each with whether no other beats it."""
        pruned, speed = set(map(id, self.by_pruned)), set(map(id, self.by_speed))
        return {
            "model": self.model,
            "data": self.data,
            "loss": self.loss,
            "points": [
                {
                    **p.to_json(),
                    "spelled": spell_scheme(p.scheme),
                    "best_by_pruned": id(p) in pruned,
                    "best_by_speed": id(p) in speed,
                }
                for p in self.points
            ],
        }

    def to_csv(self) -> str:
        """A line for each point."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        names = list(self.points[0].loss.figures) if self.points else []
        bounds = [f"{name} {what}" for name in names for what in ("loss", "low", "high")]
        fixed = ["scheme", "bits", "threshold", "pruned values", "share pruned"]
        writer.writerow([*fixed, *bounds, "examples", "speed", "best by pruned", "best by speed"])
        for point, entry in zip(self.points, self.to_json()["points"], strict=True):
            s = point.scheme
            figures = [point.loss.figures[name] for name in names]
            losses = ["" if math.isnan(x) else repr(x) for f in figures for x in (f.estimate, f.low, f.high)]
            speed = "" if math.isnan(point.speed) else repr(point.speed)
            best = [int(entry["best_by_pruned"]), int(entry["best_by_speed"])]
            row = [s.name, "" if s.bits is None else s.bits, repr(s.threshold), s.pruned, repr(point.pruned)]
            writer.writerow([*row, *losses, point.loss.count, speed, *best])
        return stream.getvalue()


def sweep_pictures(swept: Swept) -> Iterator[tuple[str, str, Figure]]:
    """Each picture with a short name and a sentence about it."""
    for index, name in enumerate(swept.points[0].loss.figures):
        suffix = "" if index == 0 else f"-{index + 1}"

        def loss(point: Point, name: str = name) -> float:
            return point.loss.figures[name].estimate

        yield (
            f"threshold{suffix}",
            f"Loss of {name} against the threshold, a line for each scheme and number of bits.",
            _lines(swept, name, loss, "threshold", lambda p: p.scheme.threshold),
        )
        yield (
            f"sparsity{suffix}",
            f"Loss of {name} against the share of values that are pruned.",
            _lines(swept, name, loss, "share of the values pruned", lambda p: p.pruned),
        )
        yield (
            f"bits{suffix}",
            f"Loss of {name} against bits, a line for each scheme and threshold.",
            _lines(swept, name, loss, "bits", lambda p: float(p.scheme.bits or math.nan)),
        )
    yield (
        "front-pruned",
        "What no other scheme beats in loss and share pruned.",
        _front(swept, "share of the values pruned"),
    )
    if swept.timed:
        yield (
            "front-speed",
            "What no other scheme beats in loss and time.",
            _front(swept, "times as fast as the original"),
        )


def sweep_page(swept: Swept, drawn: Sequence[tuple[str, str, bytes]]) -> str:
    """The sweep as one HTML page, pictures included.

    Args:
        swept: Any sweep.
        drawn: Name, sentence and SVG of each picture.
    """
    from onnx_attnq.report.page import page, svg_address

    return page(
        "sweep.html",
        swept=swept,
        pictures=[{"name": name, "caption": caption, "source": svg_address(svg)} for name, caption, svg in drawn],
        spell=spell_scheme,
        figures=list(swept.points[0].loss.figures),
        isnan=math.isnan,
        version=__version__,
    )


def _lines(
    swept: Swept, name: str, loss: Callable[[Point], float], what: str, position: Callable[[Point], float]
) -> Figure:
    """A loss against one number, a line for each group of points that differ in nothing but the threshold or bits."""
    from onnx_attnq.report.picture_style import LINES, legend_above, log_scale, new_figure, styled

    by_bits = what == "bits"

    def group(s: QuantScheme) -> str:
        shared = ", shared" if s.pruned is Pruned.MEAN and not s.name.endswith("mean") else ""
        rest = (
            f"threshold {s.threshold:.2g}"
            if by_bits
            else "not quantized"
            if s.bits is None
            else f"{s.bits} bit{'s'[: s.bits > 1]}"
        )
        return f"{s.name}{shared}, {rest}"

    def draw() -> Figure:
        groups: dict[str, list[Point]] = {}
        for point in swept.points:
            if not math.isnan(position(point)) and not math.isnan(loss(point)):
                groups.setdefault(group(point.scheme), []).append(point)
        figure, (axes,) = new_figure(f"Loss of {name} against {what}", _source(swept), height=3.2 + 0.12 * len(groups))
        for index, (label, points) in enumerate(groups.items()):
            ordered = sorted(points, key=position)
            colour, marker = LINES[index % len(LINES)], _MARKERS[index // len(LINES) % len(_MARKERS)]
            (line,) = axes.plot([position(p) for p in ordered], [loss(p) for p in ordered], color=colour, label=label)
            line.set(marker=marker, markersize=3.0)
        _loss_axis(axes, f"loss of {name}")
        axes.set_xlabel(what)
        if what == "threshold" and all(position(p) > 0.0 for points in groups.values() for p in points):
            log_scale(axes.xaxis)
        if groups:
            legend_above(axes, columns=2)
        return figure

    return styled(draw)()


def _front(swept: Swept, what: str) -> Figure:
    from onnx_attnq.report.picture_style import LINES, new_figure, styled

    fast = what.startswith("times")

    def at(point: Point) -> float:
        return point.speed if fast else point.pruned

    def draw() -> Figure:
        best = swept.by_speed if fast else swept.by_pruned
        figure, (axes,) = new_figure(f"Largest loss against {what}", _source(swept), height=3.6)
        known = [p for p in swept.points if not math.isnan(at(p))]
        axes.plot([at(p) for p in known], [p.loss.worst for p in known], ".", color="#aaaaaa")
        axes.plot([at(p) for p in best], [p.loss.worst for p in best], "o-", color=LINES[0], markersize=3.0)
        for point in best:
            axes.annotate(spell_scheme(point.scheme), (at(point), point.loss.worst), fontsize=5.0, rotation=30)
        _loss_axis(axes, "largest loss of all figures")
        axes.set_xlabel(what)
        return figure

    return styled(draw)()


def _loss_axis(axes: Axes, label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylabel(label)
    axes.set_yscale("symlog", linthresh=0.01)  # losses of schemes that break a model would hide the others
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _source(swept: Swept) -> str:
    count = swept.points[0].loss.count if swept.points else 0
    return f"{swept.model} · {swept.data}, {swept.loss}, {count} examples"


__all__ = ["Swept", "sweep_page", "sweep_pictures"]
