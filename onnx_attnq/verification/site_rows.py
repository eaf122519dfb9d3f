"""What enters and leaves the quantization of a site, in onnxruntime.

The probabilities of an attention op stay inside of it, but with an identity matrix for V, they are its context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.find import Form
from onnx_attnq.graph import END_ROW, FIRST_ROW, Dataflow, probe, some_rows
from onnx_attnq.inputs import Sample
from onnx_attnq.rewriting import RewrittenSite, opened
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.verification.attention_alone import AloneSessions, AttentionAlone
from onnx_attnq.verification.row_blocks import Place, blocks

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """What entered and what left the quantization of one site, in one run; the keys are on the last axis.

    Attributes:
        source: Scores or probabilities, (..., L_q, L_k).
        result: Quantized probabilities, float32, of the same shape.
        is_scores: Whether ``source`` are scores.
        score_error: How far the scores that the op saw may be from ``source``.
        tail_error: How far those may be that it took for what the pruned keys sum to.
        wrong: Elements of an attention's context that are not the product of ``result`` and V.
        place: Which of the site's rows these are.
        shape: Shape of all of them.
    """

    source: Array
    result: Array
    is_scores: bool
    score_error: Array
    tail_error: Array
    wrong: int
    place: Place
    shape: tuple[int, ...]


class SiteRows:
    """A model with some of its rewritten sites, which are in one graph, as outputs.

    Args:
        model: A rewritten model.
        sites: Sites of its record, of one scope.
        run: Threads and custom ops.
        native: Run the native library's kernels in place of the ops' standard bodies.
        outputs: Names of outputs of the model to give as well; only for sites in the main graph.
        queries: Of the only site, which is in the main graph, how many rows of queries a run may return; None for all.
        frugal: As for `Session`.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[RewrittenSite],
        run: RunSettings = RunSettings(),
        *,
        native: bool = False,
        outputs: Sequence[str] = (),
        queries: int | None = None,
        frugal: bool = True,
    ) -> None:
        # Each opens all of them, under the same names.
        models, found = zip(*(opened(model, site) for site in sites), strict=True)
        model = next((inlined for inlined in models if inlined is not model), model)
        self._sites: tuple[RewrittenSite, ...] = found
        self._outputs = tuple(outputs)
        scope = self._sites[0].scope
        taps = (name for site in self._sites for name in (*site.inputs, site.output))
        self._names = list(dict.fromkeys((*outputs, *taps)))  # key and value may be one, masks are shared
        flow = Dataflow(model)
        values = flow.values_in(scope)
        shown = probe(model, self._names, scope)
        self._queries = queries
        self._session = Session(shown if queries is None else some_rows(shown), run, native=native, frugal=frugal)
        self._loops = {name: flow.loops_around(values[name]) for name in self._names}
        sessions = AloneSessions(run, native)
        attentions = (site for site in self._sites if site.form is Form.ATTENTION)
        self._alone = {site.id: AttentionAlone(model, site, values, sessions) for site in attentions}

    def run(self, sample: Sample) -> tuple[dict[str, Array], dict[str, Iterator[Rows]]]:
        """One run, or more where not all queries are asked for at once: outputs, and the rows of each site.

        The rows are computed as they are asked for: those of each iteration of a loop, none where a branch of an If
        was not taken.
        """
        if self._queries is not None:
            (site,) = self._sites
            return {}, {site.id: self._rows_of_queries(site, sample, self._queries)}
        found = dict(zip(self._names, self._session.run(sample).values(), strict=True))
        # Each iterator has the arrays of its site alone, so that those of sites that were looked at are freed.
        arrays = {site.id: {name: found[name] for name in (*site.inputs, site.output)} for site in self._sites}
        return {name: found[name] for name in self._outputs}, {s.id: self._rows(s, arrays[s.id]) for s in self._sites}

    def _rows(self, site: RewrittenSite, found: dict[str, Array]) -> Iterator[Rows]:
        loops = {name: self._loops[name] for name in found}
        for arrays in _iterations(found, loops):
            inputs, output = [arrays[name] for name in site.inputs], arrays[site.output]
            if output.size == 0:
                continue
            if (alone := self._alone.get(site.id)) is None:
                yield from _blocks(site, inputs[0], output)
                continue
            for r in alone.rows(inputs, output):
                yield Rows(r.scores, r.probabilities, True, r.error, r.tail_error, r.wrong, r.place, r.shape)

    def _rows_of_queries(self, site: RewrittenSite, sample: Sample, queries: int) -> Iterator[Rows]:
        """A run for every so many rows of queries."""
        first, count = 0, 1
        while first < count:
            bounds = {FIRST_ROW: np.array([first]), END_ROW: np.array([first + queries])}
            source, result, counted = self._session.run({**sample, **bounds}).values()
            count = int(counted[0])
            for rows in _blocks(site, source, result):
                here = rows.place[-1]
                stop = result.shape[-2] if here.stop is None else here.stop
                place = (*rows.place[:-1], slice(first + (here.start or 0), first + stop))
                yield dataclasses.replace(rows, place=place, shape=(*rows.shape[:-1], count))
            first += queries


def _blocks(site: RewrittenSite, source: Array, result: Array) -> Iterator[Rows]:
    for place in blocks(result.shape, site.scheme):
        exact = np.zeros(())
        is_scores = site.form is Form.SOFTMAX
        yield Rows(source[place], result[place], is_scores, exact, exact, 0, place, result.shape[:-1])


def _iterations(arrays: dict[str, Array], loops: Mapping[str, int]) -> Iterator[dict[str, Array]]:
    """The values of each iteration, where what is inside of loops has an axis of iterations for each of them."""
    deepest = max(loops.values())
    if deepest == 0:
        yield arrays
        return
    inside = [name for name, depth in loops.items() if depth == deepest]
    outer = {name: min(depth, deepest - 1) for name, depth in loops.items()}
    for index in range(len(arrays[inside[0]])):
        yield from _iterations({**arrays, **{name: arrays[name][index] for name in inside}}, outer)


__all__ = ["Rows", "SiteRows"]
