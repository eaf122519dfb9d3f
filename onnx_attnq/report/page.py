"""What the HTML pages share: their templates, and pictures that are part of the page.

Needs jinja2 (extra ``analyze``).
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import jinja2


def page(template: str, **values: Any) -> str:
    """A page by a template of this package; what a model is called cannot break out of it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnx_attnq.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def svg_address(svg: bytes) -> str:
    """An SVG as an address that holds it, which keeps its ids and styles apart from those of the others.

    >>> svg_address(b"<svg/>")
    'data:image/svg+xml,<svg/>'
    """
    return "data:image/svg+xml," + urllib.parse.quote(svg.decode(), safe=" /:;=,.()<>?!&'*+@[]{}|^`~-_$")


__all__ = ["page", "svg_address"]
