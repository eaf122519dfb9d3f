"""The pictures of a study: the paper's, and what is useful beyond.

Every function returns a matplotlib figure, which notebooks show and `picture_style.save_figure` writes as SVG or PNG.
A layer is an attention site, in the order of the graph; layers and heads count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from onnx_attnq.report.picture_style import LINES, SEQUENTIAL, legend_above, log_scale, new_figure, provenance, styled
from onnx_attnq.scheme import QuantScheme, Reference, numerics
from onnx_attnq.study import (
    CONTEXT_ERROR,
    DIVERGENCE,
    EDGES,
    MAJORITIES,
    FloatArray,
    HeadMetric,
    SchemeMetric,
    Study,
    scheme_label,
)

_MOST_ANNOTATED = 16  # heads up to which the cells of a heat map are wide enough for their number
_MOST_LABELLED = 48  # tokens up to which an attention map is large enough for their labels


@styled
def distribution(study: Study, layer: int, *, relative: bool = False) -> Figure:
    """Histogram and cumulative histogram of log10 p of one layer, a line per head (Ji et al. 2021, section 3).

    Args:
        study: Any study.
        layer: Index of the site.
        relative: Take p / row maximum in place of p.
    """
    site = study.sites[layer]
    what = "p / row maximum" if relative else "p"
    counts = site.relative_histogram if relative else site.histogram
    shares = counts[:, 1:].astype(float)
    shares[:, -2] += shares[:, -1]  # p = 1 belongs to the last bin that has a width
    with np.errstate(invalid="ignore"):
        shares = shares[:, :-1] / site.values[:, None]
    title = f"Layer {layer}: distribution of {what} in its {site.heads} heads"
    figure, (above, below) = new_figure(title, provenance(study), panels=2, height=4.6)
    colours = _sequence(site.heads)
    for head in range(site.heads):
        above.plot(np.sqrt(EDGES[:-1] * EDGES[1:]), shares[head], color=colours(head))
        below.plot(EDGES, site.share_below(relative=relative)[head], color=colours(head))
    above.set_ylabel("share of the values\nper tenth of a decade")
    below.set_ylabel(f"share of the values\nwith {what} below x")
    below.set_xlabel(f"{what} (log scale)")
    log_scale(below.xaxis)
    below.set_xlim(EDGES[0], EDGES[-1])
    below.set_ylim(0.0, 1.0)
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _colour_bar(figure, [above, below], site.heads, "head", first=0)
    return figure


@styled
def sparsity(study: Study, *, relative: bool = False) -> Figure:
    """What pruning at a threshold removes, a line per head coloured by layer: values above, row mass below."""
    what = "p / row maximum" if relative else "p"
    title = f"Values and mass below a threshold on {what}, per head"
    figure, (above, below) = new_figure(title, provenance(study), panels=2, height=4.6)
    lowest = int(np.searchsorted(EDGES, 1e-6))
    colours = _sequence(len(study.sites))
    shares = [site.share_below(relative=relative)[:, lowest:] for site in study.sites]
    masses = [site.mass_lost(relative=relative)[:, lowest:] for site in study.sites]
    for axes, curves in ((above, shares), (below, masses)):
        for layer, lines in enumerate(curves):
            for line in lines:
                axes.plot(EDGES[lowest:], line, color=colours(layer), linewidth=0.6, alpha=0.6)
        mean = _over_heads(np.mean, np.concatenate(curves).T)
        axes.plot(EDGES[lowest:], mean, color="black", linewidth=1.8, label="mean of all heads")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0.0, 1.0)
    above.legend(loc="upper left")
    above.set_ylabel("values pruned")
    below.set_ylabel("row mass lost")
    below.set_xlabel(f"threshold on {what} (log scale)")
    log_scale(below.xaxis)
    below.set_xlim(EDGES[lowest], 1.0)
    _colour_bar(figure, [above, below], len(study.sites), "layer", first=0)
    return figure


@styled
def heatmap(study: Study, metric: HeadMetric) -> Figure:
    """A number of every head, layer by head, such as its entropy."""
    grid = _grid([metric.of(site) for site in study.sites])
    return _heat(study, grid, metric.title, metric.unit, provenance(study))


@styled
def scheme_heatmap(study: Study, metric: SchemeMetric, scheme: QuantScheme) -> Figure:
    """What a scheme does to every head, layer by head, such as the share of its values that is pruned."""
    grid = _grid([metric.of(site.of(scheme)) for site in study.sites])
    title = f"{metric.title}, {scheme_label(scheme)}"
    return _heat(study, grid, title, metric.unit, provenance(study, scheme))


@styled
def safe_heads(study: Study, scheme: QuantScheme, limit: float) -> Figure:
    """Which heads keep the mean relative error of their context within a limit under a scheme."""
    grid = _grid([site.of(scheme).mean_context_error for site in study.sites])
    safe = np.where(np.isnan(grid), np.nan, (grid <= limit).astype(float))
    title = f"Heads whose context error stays within {limit:g}: {int(np.nansum(safe))} of {_heads_in(study)}"
    figure, (axes,) = new_figure(title, provenance(study, scheme), height=_heat_height(grid))
    colours = ListedColormap([LINES[1], LINES[5]])
    image = axes.imshow(safe, cmap=colours, norm=BoundaryNorm([-0.5, 0.5, 1.5], 2), aspect="auto")
    _label_heat(axes, grid)
    _annotate(axes, grid, lambda value: {"fontweight": "normal" if value <= limit else "bold"})
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1], location="top", shrink=0.6, aspect=40)
    bar.ax.set_xticklabels([f"error > {limit:g} (bold)", f"safe: error ≤ {limit:g}"])
    return figure


@styled
def per_layer(study: Study, metric: SchemeMetric = DIVERGENCE) -> Figure:
    """A number of every scheme, layer by layer: the mean of the heads, and a bar from the lowest to the highest."""
    title = f"{metric.title[0].upper()}{metric.title[1:]}, per layer and scheme"
    figure, (axes,) = new_figure(title, provenance(study, *study.schemes))
    layers = np.arange(len(study.sites))
    width = 0.6 / max(1, len(study.schemes))
    for index, scheme in enumerate(study.schemes):
        grid = _grid([metric.of(site.of(scheme)) for site in study.sites])
        mean, low, high = (_over_heads(reduce, grid) for reduce in (np.mean, np.min, np.max))
        at = layers + width * (index - (len(study.schemes) - 1) / 2)
        axes.errorbar(
            at,
            mean,
            yerr=[np.maximum(mean - low, 0.0), np.maximum(high - mean, 0.0)],  # rounding
            marker="osD^vP*X"[index % 8],
            linestyle="-" if index < len(LINES) else "--",
            markersize=3.5,
            color=LINES[index % len(LINES)],
            elinewidth=0.6,
            label=scheme_label(scheme),
        )
    axes.set_xlabel("layer (bars: lowest to highest head)")
    axes.set_ylabel(metric.unit)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if study.schemes:
        legend_above(axes, columns=2)
    return figure


@styled
def majority(study: Study, index: int = 0) -> Figure:
    """How many tokens hold a majority of a row's mass: a point per head with its deviation over rows, by layer.

    Args:
        study: Any study.
        index: Which of `MAJORITIES`.
    """
    percent = round(100 * MAJORITIES[index])
    title = f"Tokens that hold {percent} % of a row's mass: mean and standard deviation over rows"
    figure, (axes,) = new_figure(title, provenance(study))
    for layer, site in enumerate(study.sites):
        at = layer + 0.8 * ((np.arange(site.heads) + 0.5) / site.heads - 0.5)
        mean, deviation = site.tokens_to_majority[:, index], site.tokens_to_majority_std[:, index]
        colour = LINES[layer % 2]
        axes.errorbar(
            at, mean, yerr=[np.minimum(deviation, mean - 1.0), deviation], fmt="none", ecolor=colour, alpha=0.4
        )
        axes.scatter(at, mean, s=9, color=colour, marker="os"[layer % 2], zorder=3)
    keys = np.nanmean([np.nanmean(site.mean_keys) for site in study.sites]) if study.sites else np.nan
    axes.axhline(keys, color="black", linewidth=0.8, linestyle="--", label=f"mean number of valid keys, {keys:.0f}")
    legend_above(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("tokens (log scale)")
    axes.set_xlabel("layer (its heads from left to right)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def diversity(study: Study) -> Figure:
    """How differently the heads of a layer, and the rows of a head, attend; by layer."""
    title = "Diversity: of the heads of a layer (left axis), of the rows of a head (right axis)"
    figure, (axes,) = new_figure(title, provenance(study))
    layers = np.arange(len(study.sites))
    heads = [site.head_diversity for site in study.sites]
    histograms = [site.histogram_diversity for site in study.sites]
    axes.plot(layers, heads, marker="o", color=LINES[0], label="heads: where they attend (JSD / log2 H)")
    axes.plot(
        layers, histograms, marker="s", color=LINES[2], label="heads: how their values are distributed (JSD / log2 H)"
    )
    axes.set_ylabel("0: alike, 1: nothing in common")
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right = axes.twinx()
    right.grid(visible=False)
    spread = _over_heads(np.mean, _grid([site.spread for site in study.sites]))
    right.plot(
        layers, spread, marker="^", linestyle="--", color=LINES[1], label="rows: spread of the median value (right)"
    )
    right.set_ylabel("standard deviation (decades)")
    right.set_ylim(bottom=0.0)
    right.spines["right"].set_visible(True)
    legend_above(axes, right)
    return figure


@styled
def transfer(schemes: Sequence[QuantScheme]) -> Figure:
    """What each scheme makes of a value before rows are normalized: its transfer curve, on log axes."""
    figure, (axes,) = new_figure(
        "What becomes of an attention value: transfer curves",
        "by definition, no data · scheme: " + "; ".join(map(scheme_label, schemes)),
        height=3.6,
    )
    x = np.geomspace(1e-5, 1.0, 4001)
    axes.plot(x, x, color="#999999", linewidth=0.8, linestyle=":", label="unchanged")
    for index, scheme in enumerate(schemes):
        y = numerics.values(x, scheme)
        reference = "p / row maximum" if scheme.reference is Reference.ROW_MAX else "p"
        axes.plot(
            x,
            np.where(y > 0.0, y, np.nan),
            color=LINES[index % len(LINES)],
            linestyle=("-", "--", "-.", (0, (1, 1)))[index % 4],
            label=f"{scheme_label(scheme)} (x = {reference})",
        )
        axes.plot(scheme.threshold, x[0], marker="|", markersize=9, color=LINES[index % len(LINES)], clip_on=False)
    log_scale(axes.xaxis)
    log_scale(axes.yaxis)
    axes.set_xlim(x[0], 1.0)
    axes.set_ylim(x[0], 1.2)
    axes.set_xlabel("x before (log scale)\nticks on the axis: below them x becomes 0")
    axes.set_ylabel("x after (log scale)")
    legend_above(axes)
    return figure


@styled
def attention_map(study: Study, layer: int, head: int, *, log: bool = False) -> Figure:
    """The probabilities of one head on the study's example, on a linear or a log scale."""
    p = _example(study, layer)[head]
    scale = "log scale" if log else "linear scale"
    title = f"Layer {layer}, head {head}: attention probabilities, {scale}"
    norm: Normalize = LogNorm(1e-4, 1.0, clip=True) if log else Normalize(0.0, 1.0)
    shown = np.ma.masked_equal(p, 0.0) if log else p
    figure, (axes,) = new_figure(title, provenance(study), height=4.2)
    image = axes.imshow(shown, cmap=SEQUENTIAL, norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, label="p" + (" (1e-4 and below: darkest)" if log else ""))
    if log:
        log_scale(bar.ax.yaxis)
    _label_tokens(axes, study, p.shape)
    return figure


@styled
def code_map(study: Study, layer: int, head: int, scheme: QuantScheme) -> Figure:
    """The codes that a scheme gives to the probabilities of one head on the study's example; 0 is pruned."""
    p = _example(study, layer)[head]
    codes = numerics.codes(numerics.relative(p, scheme), scheme)
    count = 2 if scheme.bits is None else scheme.levels + 1
    title = f"Layer {layer}, head {head}: codes, {np.mean(codes == 0):.0%} of the map is 0"
    figure, (axes,) = new_figure(title, provenance(study, scheme), height=4.2)
    colours = mpl.colormaps[SEQUENTIAL].resampled(count)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    image = axes.imshow(codes, cmap=colours, norm=norm, interpolation="nearest")
    ticks = np.unique(np.linspace(0, count - 1, min(count, 16)).round())
    figure.colorbar(image, ax=axes, shrink=0.8, ticks=ticks, label="code (0: pruned)")
    _label_tokens(axes, study, p.shape)
    return figure


def _annotate(axes: Axes, grid: FloatArray, look: Callable[[float], Mapping[str, Any]]) -> None:
    """Write the values into the cells of a heat map, where there are few."""
    if grid.shape[1] > _MOST_ANNOTATED:
        return
    for (layer, head), value in np.ndenumerate(grid):
        if not np.isnan(value):
            cell = axes.text(head, layer, short(value), ha="center", va="center", fontsize=6.5, **look(value))
            cell.set_in_layout(False)  # it is inside of the axes; measuring a hundred texts is slow


def _heat(study: Study, grid: FloatArray, title: str, unit: str, source: str) -> Figure:
    figure, (axes,) = new_figure(f"{title[0].upper()}{title[1:]}", source, height=_heat_height(grid))
    norm = Normalize(0.0, 1.0 if unit == "share" else _largest(grid))
    image = axes.imshow(grid, cmap=SEQUENTIAL, norm=norm, aspect="auto")
    figure.colorbar(image, ax=axes, label=unit or None, shrink=0.9)
    _label_heat(axes, grid)
    _annotate(axes, grid, lambda value: {"color": "black" if value > 0.55 * float(norm.vmax or 1.0) else "white"})
    return figure


def _largest(grid: FloatArray) -> float:
    """The top of a colour scale from 0."""
    positive = grid[grid > 0.0]
    return max(map(float, positive), default=1.0)


def short(value: float) -> str:
    """A number in at most three digits, without a zero before the point."""
    if value >= 100.0:
        return f"{value:.0f}"
    return (f"{value:.1f}" if value >= 1.0 else f"{value:.2f}").removeprefix("0")


def _label_heat(axes: Axes, grid: FloatArray) -> None:
    axes.grid(visible=False)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    step = max(1, grid.shape[0] // 24)
    axes.set_yticks(np.arange(0, grid.shape[0], step), [str(i) for i in range(0, grid.shape[0], step)])


def _heat_height(grid: FloatArray) -> float:
    return min(6.0, 0.9 + 0.22 * len(grid))


def _grid(rows: Sequence[FloatArray]) -> FloatArray:
    """Layer by head; NaN where a layer has fewer heads than another."""
    grid = np.full((len(rows), max((row.size for row in rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        grid[index, : row.size] = row
    return grid


def _over_heads(reduce: Callable[[FloatArray], np.floating], grid: FloatArray) -> FloatArray:
    """A reduction over the heads of each layer that leaves NaN out; NaN where nothing is left."""
    return np.array([reduce(row[~np.isnan(row)]) if (~np.isnan(row)).any() else np.nan for row in grid])


def _heads_in(study: Study) -> int:
    return sum(site.heads for site in study.sites)


def _sequence(count: int) -> Colormap:
    """``count`` colours of a sequential map, without its lightest end, which is invisible on white."""
    source = mpl.colormaps["viridis"]
    return ListedColormap([source(x) for x in np.linspace(0.0, 0.9, max(1, count))])


def _colour_bar(figure: Figure, axes: list[Axes], count: int, label: str, first: int) -> None:
    """A legend for lines that are coloured by number."""
    norm = BoundaryNorm(np.arange(count + 1) + first - 0.5, max(1, count))
    bar = figure.colorbar(ScalarMappable(norm, _sequence(count)), ax=axes, label=label, aspect=40)
    bar.set_ticks(list(range(first, first + count, max(1, count // 12))))
    bar.minorticks_off()


def _example(study: Study, layer: int) -> FloatArray:
    if study.example is None or study.sites[layer].site not in study.example.maps:
        raise ValueError(f"the study of {study.model} holds no example of layer {layer}")
    return study.example.maps[study.sites[layer].site]


def _label_tokens(axes: Axes, study: Study, shape: tuple[int, ...]) -> None:
    axes.grid(visible=False)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    assert study.example is not None
    labels = study.example.tokens
    if len(labels) > _MOST_LABELLED:
        return
    size = min(6.0, 240.0 / max(1, len(labels)))
    if shape[1] == len(labels):
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    if shape[0] == len(labels):
        axes.set_yticks(range(len(labels)), labels, fontsize=size)


__all__ = [
    "CONTEXT_ERROR",
    "DIVERGENCE",
    "attention_map",
    "code_map",
    "distribution",
    "diversity",
    "heatmap",
    "majority",
    "per_layer",
    "safe_heads",
    "scheme_heatmap",
    "short",
    "sparsity",
    "transfer",
]
