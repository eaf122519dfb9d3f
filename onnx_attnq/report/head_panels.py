"""One panel for each head: where it attends on the example, how its values are distributed, what schemes cost it.

Needs matplotlib (extra ``analyze``). The page shows the panel that its address names, by CSS alone.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.image import imsave

from onnx_attnq.report.picture_style import SEQUENTIAL
from onnx_attnq.study import EDGES, FloatArray, Study, scheme_label

_LOWEST = 1e-4
"""Of the map's colours: this and below is darkest."""

_HEIGHT = 60
"""Of the curve, in the units of its drawing, in which it is as wide as there are bins."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """What the page shows of one head.

    Attributes:
        name: Its anchor.
        layer: Number of the site, from 0.
        head: Number of the head, from 0.
        site: Id of the site.
        error: Mean context error under the study's first scheme; NaN where there is none.
        shade: The error on a scale from 0 to 1, for the colour of its cell.
        image: Its map as an address that holds a PNG; empty without an example.
        curve: Points of the histogram's curve, as SVG has them.
        costs: For each scheme its label, share of pruned values, divergence in bits and context error.
    """

    name: str
    layer: int
    head: int
    site: str
    error: float
    shade: float
    image: str
    curve: str
    costs: tuple[tuple[str, float, float, float], ...]


def panels(study: Study, limit: float) -> Iterator[Panel]:
    """A panel for each head, layer by layer.

    Args:
        study: Any study.
        limit: The criterion for a safe head: the middle of the colour scale.
    """
    for layer, site in enumerate(study.sites):
        maps = None if study.example is None else study.example.maps.get(site.site)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = site.histogram[:, 1:-1] / site.values[:, None]
        for head in range(site.heads):
            costs = tuple(
                (
                    scheme_label(stats.scheme),
                    float(stats.pruned_share[head]),
                    float(stats.mean_divergence[head]),
                    float(stats.mean_context_error[head]),
                )
                for stats in site.schemes
            )
            error = costs[0][3] if costs else float("nan")
            yield Panel(
                name=f"head-{layer}-{head}",
                layer=layer,
                head=head,
                site=site.site,
                error=error,
                shade=min(1.0, error / (2.0 * limit)) if np.isfinite(error) else 0.0,
                image="" if maps is None else _map(maps[head]),
                curve=_curve(shares[head]),
                costs=costs,
            )


def _map(p: FloatArray) -> str:
    stream = io.BytesIO()
    shade = 1.0 - np.log10(np.clip(p, _LOWEST, 1.0)) / np.log10(_LOWEST)
    # A fixed text replaces matplotlib's version.
    imsave(stream, mpl.colormaps[SEQUENTIAL](shade), format="png", metadata={"Software": "onnx-attnq"})
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _curve(shares: FloatArray) -> str:
    """Points from the lowest bin to the highest, the fullest at the top."""
    top = max(float(np.nanmax(shares, initial=0.0)), 1e-9)
    return " ".join(f"{x},{_HEIGHT - _HEIGHT * y / top:.0f}" for x, y in enumerate(np.nan_to_num(shares)))


assert len(EDGES) == 101  # the drawing of the page is 100 wide

__all__ = ["Panel", "panels"]
