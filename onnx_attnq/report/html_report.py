"""The report of a study: one HTML file that needs no network and no scripts.

Needs jinja2 and matplotlib (extra ``analyze``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from onnx_attnq.progress import Progress, no_progress
from onnx_attnq.report import plots
from onnx_attnq.report.head_panels import panels
from onnx_attnq.report.page import page, svg_address
from onnx_attnq.report.picture_style import to_bytes
from onnx_attnq.study import (
    MAJORITIES,
    SAFE_ERROR,
    Study,
    fewer_safe_with_less_error,
    findings,
    is_made_up,
    resistances,
    scheme_label,
    verdict,
)
from onnx_attnq.study import head_metrics as metrics
from onnx_attnq.version import __version__

_COLUMNS = (
    metrics.METRICS[3],  # keys
    metrics.ENTROPY,
    metrics.BELOW_UNIFORM,
    metrics.share_below(-3),
    metrics.tokens_to_majority(0),
    metrics.tokens_to_majority(1),
    metrics.TO_FIRST,
    metrics.TO_SELF,
    metrics.TO_SEPARATOR,
)
"""What the table of heads shows; JSON and CSV have everything."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report, drawn when it is asked for.

    Attributes:
        name: Short and unique: the name of its file.
        section: Title of its section.
        caption: One sentence: what to see in it.
        draw: Makes it.
    """

    name: str
    section: str
    caption: str
    draw: Callable[[], Figure]


def pictures(study: Study, limit: float = SAFE_ERROR) -> tuple[Picture, ...]:
    """Every picture of the report, in its order.

    Args:
        study: Any study.
        limit: The criterion for a safe head.
    """
    return (
        *_of_sparsity(study),
        *_of_schemes(study, limit),
        *_of_structure(study),
        *_of_the_example(study, limit),
        *_of_layers(study),
    )


def report_html(study: Study, limit: float = SAFE_ERROR, progress: Progress = no_progress) -> str:
    """The report as one HTML page, pictures included.

    Args:
        study: Any study.
        limit: The criterion for a safe head.
        progress: Called after each picture.
    """
    planned = pictures(study, limit)
    drawn = []
    for index, picture in enumerate(planned):
        drawn.append((picture, svg_address(to_bytes(picture.draw(), "svg"))))
        progress(picture.name, index + 1, len(planned))
    return page_html(study, limit, drawn)


def page_html(study: Study, limit: float, drawn: Iterable[tuple[Picture, str]]) -> str:
    """The page around pictures that are drawn already, which take nearly all of the report's time.

    Args:
        study: Any study.
        limit: The criterion for a safe head.
        drawn: Pictures with their addresses, in the order of the page.
    """
    sections: dict[str, list[dict[str, str]]] = {}
    for picture, address in drawn:
        shown = {"name": picture.name, "caption": picture.caption, "source": address}
        sections.setdefault(picture.section, []).append(shown)
    return page(
        "analysis.html",
        study=study,
        findings=(found := findings(study, limit)),
        verdict=(advice := verdict(study, limit)),
        resisting=resistances(study, advice.finding) if advice else (),
        made_up=is_made_up(study),
        odd=fewer_safe_with_less_error(found),
        panels=(heads := list(panels(study, limit))),
        worst=max(heads, key=lambda p: (np.isfinite(p.error), p.error)).name if heads else "",
        short=lambda value: plots.short(value) if np.isfinite(value) else "-",
        limit=limit,
        label=scheme_label,
        sections=sections,
        columns=_COLUMNS,
        rows=list(_rows(study)),
        number=_number,
        version=__version__,
    )


def _of_sparsity(study: Study) -> Iterator[Picture]:
    section = "How sparse is attention?"
    yield Picture(
        "sparsity",
        section,
        "Share of the values below a threshold, and the share of the rows' mass that pruning them loses. "
        "Where the upper curve is high and the lower one still flat, pruning is cheap.",
        partial(plots.sparsity, study),
    )
    yield Picture(
        "sparsity-relative",
        section,
        "The same for a threshold that is relative to the row's maximum, which does not depend on the length.",
        partial(plots.sparsity, study, relative=True),
    )
    for index in (0, 1):
        percent = round(100 * MAJORITIES[index])
        yield Picture(
            f"majority-{percent}",
            section,
            f"How many tokens hold {percent} % of a row's mass: few, far below the dashed line, is a sparse head.",
            partial(plots.majority, study, index),
        )
    for metric in (metrics.share_below(-3), metrics.share_below(-2, relative=True)):
        yield Picture(
            metric.key.replace("_", "-"),
            section,
            f"Share of each head's {metric.title}.",
            partial(plots.heatmap, study, metric),
        )


def _of_schemes(study: Study, limit: float) -> Iterator[Picture]:
    section = "What do the schemes do?"
    if not study.schemes:
        return
    yield Picture(
        "transfer",
        section,
        "What a value becomes under each scheme, before rows are normalized.",
        partial(plots.transfer, study.schemes),
    )
    yield Picture(
        "divergence",
        section,
        "How far a quantized row is from the original one as a distribution: 0 is equal, 1 bit has no key in common.",
        partial(plots.per_layer, study, metrics.DIVERGENCE),
    )
    if not any(np.isfinite(stats.mean_context_error).any() for site in study.sites for stats in site.schemes):
        return
    yield Picture(
        "context-error",
        section,
        "How far the attention's result is from the original one, relative to its length.",
        partial(plots.per_layer, study, metrics.CONTEXT_ERROR),
    )
    yield Picture(
        "context-error-heads",
        section,
        "The same for each head under the first scheme: the bright ones resist.",
        partial(plots.scheme_heatmap, study, metrics.CONTEXT_ERROR, study.schemes[0]),
    )
    for index, scheme in enumerate(study.schemes):
        if scheme.bits == 2:
            yield Picture(
                f"safe-{index}",
                section,
                f"Safe at 2 bits by this criterion: mean |QV - PV| / |PV| of at most {limit:g}.",
                partial(plots.safe_heads, study, scheme, limit),
            )


def _of_structure(study: Study) -> Iterator[Picture]:
    section = "What do the heads attend to?"
    yield Picture(
        "entropy",
        section,
        "Low entropy is a focused head; log2 of the number of keys is a flat one.",
        partial(plots.heatmap, study, metrics.ENTROPY),
    )
    yield Picture(
        "diversity",
        section,
        "How alike the heads of a layer are, and how much the rows of a head differ in scale (the paper's distribution "
        "diversity).",
        partial(plots.diversity, study),
    )
    for metric, caption in (
        (metrics.TO_FIRST, "A sink is a head that gives the first token much attention from everywhere."),
        (metrics.TO_SEPARATOR, "Separator tokens are the other usual sink."),
        (metrics.TO_SELF, "Attention of each token to itself."),
    ):
        if any(np.isfinite(metric.of(site)).any() for site in study.sites):
            yield Picture(
                metric.key.replace("_", "-"),
                section,
                caption,
                partial(plots.heatmap, study, metric),
            )


def _of_the_example(study: Study, limit: float) -> Iterator[Picture]:
    """Raw, log scale and codes of the head that resists most, and of the one that resists least."""
    if study.example is None or not study.schemes:
        return
    scheme = study.schemes[0]
    numbers = {site.site: index for index, site in enumerate(study.sites)}
    ranked = [head for head in findings(study, limit)[0].heads if head.site in study.example.maps]
    for head, what in zip(ranked[:1] + ranked[1:][-1:], ("most", "least"), strict=False):
        layer = numbers[head.site]
        caption = f"The head whose context {scheme_label(scheme)} changes {what}"
        section = "One sample, up close"
        at = (study, layer, head.head)
        for kind, draw in (
            ("probabilities", partial(plots.attention_map, *at)),
            ("log", partial(plots.attention_map, *at, log=True)),
            ("codes", partial(plots.code_map, *at, scheme)),
        ):
            shown = "codes" if kind == "codes" else "probabilities"
            yield Picture(f"example-{what}-{kind}", section, f"{caption}: its {shown}.", draw)


def _of_layers(study: Study) -> Iterator[Picture]:
    for layer, site in enumerate(study.sites):
        for relative, name in ((False, "p"), (True, "p / row maximum")):
            yield Picture(
                f"layer-{layer}{'-relative' * relative}",
                "Layer by layer",
                f"Site {site.site}: how log10 of {name} is distributed.",
                partial(plots.distribution, study, layer, relative=relative),
            )


def _rows(study: Study) -> Iterator[dict[str, Any]]:
    """The lines of the table of heads."""
    for layer, site in enumerate(study.sites):
        columns = [column.of(site) for column in _COLUMNS]
        errors = [(stats.pruned_share, stats.mean_context_error) for stats in site.schemes]
        for head in range(site.heads):
            yield {
                "layer": layer,
                "head": head,
                "numbers": [column[head] for column in columns],
                "schemes": [(pruned[head], error[head]) for pruned, error in errors],
            }


def _number(value: float, unit: str = "") -> str:
    """A number for a table: shares as percent, a dash for what does not exist."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.1%}" if unit == "share" else f"{value:.3g}"


__all__ = ["Picture", "page_html", "pictures", "report_html"]
