"""Which sites of a model share a session, so that one run gives no more than the memory allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.find import Form
from onnx_attnq.inputs import Sample, ShapeCheck
from onnx_attnq.rewriting import RewrittenSite


@dataclasses.dataclass(frozen=True)
class SiteGroup:
    """Sites that share a session.

    Attributes:
        sites: Sites of one graph.
        queries: Of one site that is too large alone, how many rows of queries a run may return; None for all.
        runs: How many runs a sample takes.
    """

    sites: tuple[RewrittenSite, ...]
    queries: int | None = None
    runs: int = 1


def site_groups(
    model: ir.Model, sites: Sequence[RewrittenSite], samples: Sequence[Sample], memory: int
) -> tuple[SiteGroup, ...]:
    """Spread the sites of a record over as few runs as the memory allows.

    How large their values are follows from shape inference for the largest sample. A site of which that cannot be told
    is alone.

    Args:
        model: The rewritten model.
        sites: Sites of its record.
        samples: Inputs.
        memory: Bytes that one run may return.
    """
    if not sites:
        return ()
    largest = max(samples, key=lambda sample: sum(array.nbytes for array in sample.values()), default={})
    shapes = _shapes(model, largest)
    groups: list[SiteGroup] = []
    pending: list[RewrittenSite] = []
    free = 0
    for site in sites:
        size = _size(site, shapes)
        if pending and (size is None or size > free or pending[0].scope != site.scope):
            groups.append(SiteGroup(tuple(pending)))
            pending, free = [], 0
        if size is None or size > memory:
            groups.append(_alone(site, size, shapes, memory))
            continue
        free = (free if pending else memory) - size
        pending.append(site)
    return (*groups, *([SiteGroup(tuple(pending))] if pending else ()))


def _shapes(model: ir.Model, sample: Sample) -> dict[str, tuple[int, ...]]:
    """The shapes of values of the main graph, as far as they can be told."""
    inlined = model.clone()
    # Inference follows nodes whose attributes are values, not those that refer to a call's.
    opsets = inlined.opset_imports
    InlinePass(lambda f: all(opsets.get(domain, version) == version for domain, version in f.opset_imports.items()))(
        inlined
    )
    inputs = {name: (array.dtype, array.shape) for name, array in sample.items()}
    found = ShapeCheck(inlined).shapes(inputs, sample)
    shapes = {str(value.name): shape for value, shape in found.items() if value.graph is inlined.graph}
    for name, value in inlined.graph.initializers.items():
        if value.const_value is not None:
            shapes.setdefault(name, tuple(value.const_value.shape.numpy()))
    return shapes


def _size(site: RewrittenSite, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    names = {*site.inputs, site.output}
    if site.scope != "main" or not names <= shapes.keys():
        return None
    return sum(4 * math.prod(shapes[name]) for name in names)


def _alone(site: RewrittenSite, size: int | None, shapes: Mapping[str, tuple[int, ...]], memory: int) -> SiteGroup:
    # Of an attention op, what is large stays inside of it.
    if size is None or site.form is Form.ATTENTION or len(shapes[site.output]) < 2:
        return SiteGroup((site,))
    rows = shapes[site.output][-2]
    queries = max(1, rows * memory // size)
    return SiteGroup((site,), queries, -(-rows // queries))


__all__ = ["SiteGroup", "site_groups"]
