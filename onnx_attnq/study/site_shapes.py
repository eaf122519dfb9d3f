"""Heads and shapes of sites where the file does not say them."""

from __future__ import annotations

import dataclasses
import math
import re

import onnx_ir as ir

from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.find import AttentionSite, Exposed, Sites
from onnx_attnq.inputs import Dim, InputShapes, inner_shapes
from onnx_attnq.run import RunSettings

_NO_NAME = re.compile(r"unk__\d+|.*_dim_\d+|s\d+")
"""What shape inference and exporters put for a size that they have no name for."""


def with_shapes(
    original: ir.Model, exposed: Exposed, found: Sites, input_shapes: InputShapes, run: RunSettings | None
) -> tuple[Sites, str | None]:
    """The same sites with heads and shapes, as far as shape inference or a run on made-up inputs can tell.

    Args:
        original: The model as it is in the file.
        exposed: The model that the sites were found in.
        found: What was found.
        input_shapes: The whole shape of some inputs, by name.
        run: How to run the model; None to leave open what shape inference cannot tell.

    Returns:
        The sites, and why some have no shape, in a line; None if that was no problem.
    """
    unclear = [site for site in found.sites if site.heads is None or not is_clear(site.shape)]
    if not unclear:
        return found, None
    values = [site.probabilities for site in unclear]
    try:
        shapes, problem = inner_shapes(original, exposed.model, values, input_shapes=input_shapes, run=run), None
    except (InvalidModel, InvalidData) as error:
        if input_shapes:
            raise
        problem = str(error)
        try:
            shapes = inner_shapes(original, exposed.model, values, run=None)
        except (InvalidModel, InvalidData):
            shapes = {}
    named = inner_shapes(original, exposed.model, values, run=None) if input_shapes else shapes
    sites = [_described(site, shapes.get(site.probabilities), named.get(site.probabilities)) for site in found.sites]
    return dataclasses.replace(found, sites=tuple(sites)), problem


def is_clear(shape: tuple[Dim, ...] | None) -> bool:
    """Whether a shape has a size for each axis, or a name that tells something."""
    return shape is not None and all(
        dim is not None and not (isinstance(dim, str) and _NO_NAME.fullmatch(dim)) for dim in shape
    )


def _described(site: AttentionSite, shape: tuple[Dim, ...] | None, named: tuple[Dim, ...] | None) -> AttentionSite:
    """The site with a shape; ``named`` is the same with the names of open sizes, which tell more about heads."""
    if not shape:
        return site
    declared = site.shape if site.shape is not None and len(site.shape) == len(shape) else (None,) * len(shape)
    # What the file calls a size is better than what follows from the inputs.
    dims = tuple(old if is_clear((old,)) else new for old, new in zip(declared, shape, strict=True))
    return dataclasses.replace(site, shape=dims, heads=site.heads or _heads(dims, named or shape))


def _heads(dims: tuple[Dim, ...], shape: tuple[Dim, ...]) -> int | None:
    """The axes between batch and queries; or what is in one axis with the batch, or with the queries.

    >>> _heads(("batch", 2, 3, "tokens", "tokens"), ("batch", 2, 3, "tokens", "tokens"))  # grouped
    6
    >>> _heads(("batch", 12, "tokens", "tokens"), ("batch", 12, "tokens", "tokens"))
    12
    >>> _heads(("12 * batch", "tokens", "tokens"), ("12 * batch", "tokens", "tokens"))
    12
    """
    if len(dims) >= 5:
        sizes = [dim for dim in dims[1:-2] if isinstance(dim, int)]
        return math.prod(sizes) if len(sizes) == len(dims) - 3 else None
    if len(dims) == 4:
        return next((dim for dim in (dims[-3], dims[-2]) if isinstance(dim, int)), None)
    if len(dims) != 3:
        return None
    factors = [re.match(r"(\d+) \* ", str(dim)) for dim in shape[:2]]
    together = next((int(factor[1]) for factor in factors if factor is not None), None)
    return 1 if together is None and isinstance(shape[0], str) else together


__all__ = ["is_clear", "with_shapes"]
