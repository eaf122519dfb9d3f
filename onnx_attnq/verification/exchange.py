"""One site exchanged between a model and its rewrite, without running what precedes it again.

Both models are run once, and show what enters and leaves each site. What the original's site makes of the values in the
rewritten model is then fed to what follows it there; and what the rewritten site makes of the values in the original is
the error that it has by itself. Only what lies between one site and the next runs again, and what follows a site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import AttentionSite, Form
from onnx_attnq.graph import Dataflow, Suffix, dtype_of, probe, suffix
from onnx_attnq.inputs import Sample
from onnx_attnq.rewriting import RewrittenSite
from onnx_attnq.run import Arrays, RunSettings, Session

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """The result for one site on one sample.

    Attributes:
        site: Its id.
        outputs: Of the rewritten model in which this site is the original's.
        before: The site's context in the original.
        after: The same with this site rewritten.
    """

    site: str
    outputs: Arrays
    before: Array
    after: Array


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What runs for one site: its own part of both models, and what follows it in the rewritten one."""

    site: str
    context: str
    original: Suffix
    rewritten: Suffix
    behind: Suffix


class Exchange:
    """Two models, ready to exchange the sites that allow it.

    Args:
        original: The model in which attention is exposed, with the types of its values.
        rewritten: What was made from it.
        sites: The sites in both, in the order of the graph.
        run: Threads, custom ops and memory.
        once: Sessions run one sample: those of random ops draw other numbers in their second run.
    """

    def __init__(
        self,
        original: ir.Model,
        rewritten: ir.Model,
        sites: Sequence[tuple[AttentionSite, RewrittenSite]],
        run: RunSettings,
        *,
        once: bool = False,
    ) -> None:
        self._original, self._rewritten, self._run = original, rewritten, run
        self._once = once
        values = Dataflow(original).values_in("main"), Dataflow(rewritten).values_in("main")
        for name, value in values[1].items():
            known = values[0].get(name)
            if value.type is None and known is not None and (dtype := dtype_of(known)) is not None:
                value.type = ir.TensorType(dtype)
        self._parts: list[_Parts] = []
        previous: str | None = None
        for site, record in sites:
            cut = _cut(site, record, values[1])
            if cut is None:
                previous = ""  # from which nothing starts
                continue
            parts = _parts(original, rewritten, site, cut, previous)
            if parts is not None and _shown(parts, 0) <= values[0].keys() and _shown(parts, 1) <= values[1].keys():
                self._parts.append(parts)
            previous = cut

    @property
    def sites(self) -> frozenset[str]:
        """The sites that can be exchanged; the others have to be rewritten, or left, and run with the whole model."""
        return frozenset(parts.site for parts in self._parts)

    def trials(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Arrays, Exchanged | None]]:
        """For each sample what the rewritten model gives, without an exchange first; then with one after the other.

        Gives the number of the sample, the model's outputs without an exchange, and the exchange.

        As many samples share their sessions as `RunSettings.memory` allows.
        """
        start, size = 0, 1
        while start < len(samples):
            taken = samples[start : start + size]
            before = self._show(self._original, 0, (), taken)
            after = self._show(self._rewritten, 1, [str(value.name) for value in self._rewritten.graph.outputs], taken)
            whole = [{str(v.name): found[str(v.name)] for v in self._rewritten.graph.outputs} for found in after]
            for number, outputs in enumerate(whole):
                yield start + number, outputs, None
            for parts in self._parts:
                for number, exchanged in enumerate(self._exchange(parts, taken, before, after, whole)):
                    yield start + number, whole[number], exchanged
            used = max(sum(array.nbytes for array in one.values()) for one in (*before, *after))
            start += len(taken)
            size = 1 if self._once else max(1, self._run.memory // max(1, 2 * used))

    def _show(self, model: ir.Model, side: int, outputs: Sequence[str], samples: Sequence[Sample]) -> list[Arrays]:
        inside = {name for parts in self._parts for name in _shown(parts, side)}
        names = dict.fromkeys((*outputs, *sorted(inside - {value.name for value in model.graph.inputs})))
        if not names:
            return [{} for _ in samples]
        session = Session(probe(model, list(names)), self._run, frugal=True)
        return [dict(zip(names, session.run(sample).values(), strict=True)) for sample in samples]

    def _exchange(
        self,
        parts: _Parts,
        samples: Sequence[Sample],
        before: Sequence[Arrays],
        after: Sequence[Arrays],
        whole: Sequence[Arrays],
    ) -> Iterator[Exchanged]:
        contexts = _run_part(parts.rewritten, samples, before, self._run)
        cuts = _run_part(parts.original, samples, after, self._run)
        fed = [{**found, parts.behind.start: next(iter(cut.values()))} for found, cut in zip(after, cuts, strict=True)]
        behind = _run_part(parts.behind, samples, fed, self._run)
        for place, outputs in enumerate(behind):
            (context,) = contexts[place].values()
            yield Exchanged(parts.site, {**whole[place], **outputs}, before[place][parts.context], context)


def _run_part(part: Suffix, samples: Sequence[Sample], values: Sequence[Arrays], run: RunSettings) -> list[Arrays]:
    session = Session(part.model, run, frugal=True)
    return [session.run({**sample, **found}) for sample, found in zip(samples, values, strict=True)]


def _cut(site: AttentionSite, record: RewrittenSite, rewritten: Mapping[str, ir.Value]) -> str | None:
    """The name, in both models, of what is another value once the site is rewritten; None where there is none."""
    if site.scope != "main" or (record.form is Form.ATTENTION and site.attention is None):
        return None
    value = site.attention.context if record.form is Form.ATTENTION and site.attention else site.probabilities
    found = rewritten.get(value.name or "")
    node = None if found is None else found.producer()
    while node is not None and node.outputs[0].name != record.output:
        source = node.inputs[0] if node.op_type in ("Cast", "Transpose", "QuantizeLinear") else None
        node = None if source is None else source.producer()
    return None if node is None else value.name


def _parts(
    original: ir.Model, rewritten: ir.Model, site: AttentionSite, cut: str, previous: str | None
) -> _Parts | None:
    product = site.attention.context if site.attention is not None else site.value_products[0].node.outputs[0]
    context = str(product.name)
    try:
        of_original, of_rewritten = _between(original, previous, cut), _between(rewritten, previous, context)
        behind = suffix(rewritten, Dataflow(rewritten).values_in("main")[cut])
    except (InvalidModel, KeyError):
        return None
    return _Parts(site.id, context, of_original, of_rewritten, behind)


def _between(model: ir.Model, start: str | None, end: str) -> Suffix:
    """What computes a value from an earlier one, or from the inputs."""
    shown = probe(model, [end])
    if start is None:
        return Suffix(shown, "", ())
    values = Dataflow(shown).values_in("main")
    return suffix(shown, values[start])


def _shown(parts: _Parts, side: int) -> set[str]:
    """What has to be known of one of the models: what the part of the other is fed, and more."""
    fed = parts.rewritten if side == 0 else parts.original
    names = {fed.start, *fed.boundary} if fed.start else set[str]()
    return names | ({parts.context} if side == 0 else {*parts.behind.boundary})


__all__ = ["Exchange", "Exchanged"]
