"""What each scheme does to a model's outputs when only one head gets it.

The sum of these divergences over the heads orders whole plans well, which the error of a head's own context does not.
Only what follows a head is run again: the probabilities of a site are quantized by `numerics`, one head at a time, and
fed to the part of the model behind them. A unit of work is some heads of one site; units are independent, so that they
can be spread over processes and machines, and each is written down when it is done.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import AttentionSite, expose, find_sites
from onnx_attnq.graph import Suffix, probe, suffix
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import QuantScheme, Reference, left_alone, numerics
from onnx_attnq.tune.divergence import Divergence
from onnx_attnq.verification import FloatOutputs

HEADS_OF_A_UNIT: Final = 4
"""Few enough that an interruption loses little, enough that running what precedes a site costs little beside them."""

SCREENED_WITH: Final = 1
"""Samples on which every candidate is tried; those that cannot become part of a plan are left out of the others."""

CLEARLY: Final = 2.0
"""How many times the divergence of one family has to be that of another to count as clearly more on one sample."""

ONE_THREAD: Final = RunSettings(threads=1)

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Some heads of one site.

    Attributes:
        site: Id of the site.
        first: The first head.
        stop: The head after the last.
    """

    site: str
    first: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """One head with one scheme, over the samples.

    Attributes:
        site: Id of the site.
        head: Which head, from 0.
        scheme: What its probabilities were quantized with.
        pruned: Share of its values above zero that were pruned, 0 to 1.
        divergence: How far the outputs moved: KL in nats, summed over the outputs that are logits or probabilities; of
            a model without such, the squared error relative to an output's energy, summed over the outputs. Mean over
            the samples; 0 and more.
        screened: Whether it was measured on the first sample only, where others beat it.
    """

    site: str
    head: int
    scheme: QuantScheme
    pruned: float
    divergence: float
    screened: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**dataclasses.asdict(self), "scheme": self.scheme.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of `to_json`."""
        return cls(**{**data, "scheme": QuantScheme.from_json(data["scheme"])})


def units(path: str, sample: Sample, run: RunSettings = ONE_THREAD) -> tuple[Unit, ...]:
    """The work for a model, in the order of its graph.

    Args:
        path: The original model.
        sample: Run once, since shapes often do not tell the number of heads.
        run: How to run the model.

    Raises:
        NothingToRewrite: No site is in the main graph with a known number of heads.
    """
    opened = _opened(path)
    names = {site: str(found.probabilities.name) for site, found in opened.sites.items()}
    arrays = Session(probe(opened.model, list(names.values())), run).run(sample) if names else {}
    found = []
    for site in opened.sites.values():
        heads = _head_count(arrays[names[site.id]])
        found += [Unit(site.id, h, min(h + HEADS_OF_A_UNIT, heads)) for h in range(0, heads, HEADS_OF_A_UNIT)]
    if not found:
        raise NothingToRewrite(f"{path}: no attention in the main graph; there is nothing to tune per head")
    return tuple(found)


def measure_unit(
    path: str, unit: Unit, samples: Sequence[Sample], candidates: Sequence[QuantScheme], run: RunSettings = ONE_THREAD
) -> tuple[Trial, ...]:
    """Try every candidate on each head of a unit.

    Args:
        path: The original model. A process that measures several units of one model loads it once.
        unit: As `units` gives them.
        samples: Inputs, all of one meaning; each is run once for what precedes the site.
        candidates: Schemes to try.
        run: How to run the model. One thread gives the same sums whatever machine runs the unit.

    Returns:
        A trial for each head and each candidate. Those that another beats in bits, pruning and divergence at once on
        the first samples are not run on the others.
    """
    opened = _opened(path)
    site, part = opened.sites[unit.site], _part(path, unit.site)
    behind = Session(part.model, run)
    before = Session(probe(opened.model, [part.start, *part.boundary]), run)
    kept = {head: list(candidates) for head in range(unit.first, unit.stop)}
    total: dict[tuple[int, QuantScheme], list[_Effect]] = {}
    for index, sample in enumerate(samples):
        feeds = before.run(sample)
        divergence = Divergence(behind.run(feeds), opened.outputs, sample)
        for head, schemes in kept.items():
            for scheme in schemes:
                changed, pruned, positive = _with_head(feeds[part.start], site, head, scheme)
                moved = behind.run({**feeds, part.start: changed})
                effect = _Effect(pruned, positive, divergence.of(moved))
                total.setdefault((head, scheme), []).append(effect)
        if index + 1 == SCREENED_WITH:
            kept = {head: _undominated(schemes, head, total) for head, schemes in kept.items()}
    return tuple(
        Trial(
            unit.site,
            head,
            scheme,
            sum(e.pruned for e in effects) / max(1, sum(e.positive for e in effects)),
            sum(e.divergence for e in effects) / len(effects),
            screened=scheme not in kept[head],
        )
        for (head, scheme), effects in total.items()
    )


def shares_pruned(
    path: str, samples: Sequence[Sample], schemes: Sequence[QuantScheme], run: RunSettings = ONE_THREAD
) -> dict[QuantScheme, float]:
    """The share of the original's probabilities above zero that each scheme prunes, of all heads in the main graph.

    Args:
        path: The original model.
        samples: Inputs. Each is run once for all schemes, and once more for each ``run.memory`` of probabilities.
        schemes: Each for all heads.
        run: How to run the model.

    Raises:
        NothingToRewrite: There is no attention in the main graph.
    """
    opened = _opened(path)
    if not opened.sites:
        raise NothingToRewrite(f"{path}: no attention in the main graph, whose pruned values could be counted")
    below: collections.Counter[tuple[Reference, float]] = collections.Counter()
    by_reference = {scheme.reference: scheme for scheme in schemes}
    thresholds = {(scheme.reference, scheme.threshold) for scheme in schemes}
    positive = 0
    for site, p in _probabilities(opened, samples, run):
        rows = np.moveaxis(p, site.axis, -1)
        above = rows > 0.0
        positive += int(above.sum())
        for reference, scheme in by_reference.items():
            x = numerics.relative(rows, scheme)
            for measured, threshold in thresholds:
                if measured is reference:
                    below[measured, threshold] += int((above & (x < threshold)).sum())
    return {scheme: below[scheme.reference, scheme.threshold] / max(1, positive) for scheme in schemes}


def _probabilities(
    opened: _Opened, samples: Sequence[Sample], run: RunSettings
) -> Iterator[tuple[AttentionSite, Array]]:
    """Those of each site on each sample, as many sites in a run as fit into the memory."""
    sites = {str(site.probabilities.name): site for site in opened.sites.values()}
    session = Session(probe(opened.model, list(sites)), run)
    together = 1  # until it is known how large they are
    for sample in samples:
        missing = list(sites)
        while missing:
            for name, p in session.run(sample, missing[:together]).items():
                size = max(1, p.nbytes)
                yield sites[name], p
            missing = missing[together:]
            together = max(1, run.memory // size)


@dataclasses.dataclass(frozen=True)
class _Effect:
    """Of one scheme on one head on one sample: values pruned, values above zero, and how far the outputs moved."""

    pruned: int
    positive: int
    divergence: float


@dataclasses.dataclass(frozen=True)
class _Opened:
    model: ir.Model
    sites: Mapping[str, AttentionSite]
    outputs: FloatOutputs


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> _Opened:
    model = load(path)
    outputs = FloatOutputs(model)
    exposed = expose(model)
    ShapeInferencePass()(model)  # the parts of a model need the types of what they read
    sites = {site.id: site for site in find_sites(exposed).sites if site.scope == "main"}
    return _Opened(model, sites, outputs)


@functools.lru_cache(maxsize=1)
def _part(path: str, site: str) -> Suffix:  # the same for every unit of the site
    opened = _opened(path)
    return suffix(opened.model, opened.sites[site].probabilities)


def _head_count(p: Array) -> int:
    """Heads of probabilities (…, H, L_q, L_k); 1 where batch and heads share an axis."""
    return p.shape[-3] if p.ndim > 3 else 1


def _with_head(p: Array, site: AttentionSite, head: int, scheme: QuantScheme) -> tuple[Array, int, int]:
    """The probabilities with one head quantized, and how many of its values above zero were pruned, of how many."""
    rows = np.moveaxis(p, site.axis, -1)
    chosen = (..., slice(head, head + 1), slice(None), slice(None)) if rows.ndim > 3 else (...,)
    before = rows[chosen]
    x = numerics.relative(before, scheme)
    codes = numerics.codes(x, scheme)
    changed = rows.copy()
    changed[chosen] = numerics.with_codes(before.astype(np.float64), x, codes, scheme)
    positive, kept = before > 0.0, codes > 0
    return np.moveaxis(changed, -1, site.axis), int((positive & ~kept).sum()), int(positive.sum())


def _undominated(
    schemes: Sequence[QuantScheme], head: int, total: Mapping[tuple[int, QuantScheme], Sequence[_Effect]]
) -> list[QuantScheme]:
    """The schemes that no other beats in bits, pruning and divergence at once, by what is known so far.

    Heads of one site have to share a family. So those of the first family, the preferred one, are compared with each
    other only; another family's is beaten by the first only at `CLEARLY` less divergence, since other heads may gain
    more by its family; and to leave a head alone is never beaten.
    """
    first = family(schemes[0])

    def figures(scheme: QuantScheme) -> tuple[int, int, float]:
        effects = total[head, scheme]
        return scheme.bits or 0, -sum(e.pruned for e in effects), sum(e.divergence for e in effects)

    def beats(other: QuantScheme, scheme: QuantScheme) -> bool:
        bits, kept, divergence = figures(other)
        same = family(other) == family(scheme)
        compared, own = (bits, kept, divergence * (1.0 if same else CLEARLY)), figures(scheme)
        return (same or family(other) == first) and compared != own and all(map(operator.le, compared, own))

    return [
        scheme
        for scheme in schemes
        if scheme == left_alone(scheme) or not any(beats(other, scheme) for other in schemes)
    ]


def family(scheme: QuantScheme) -> tuple[object, ...]:
    """What all heads of one site have in common: everything but bits and threshold."""
    return scheme.reference, scheme.normalize, scheme.spacing, scheme.rounding, scheme.pruned


def spread(trials: Sequence[Trial]) -> Iterator[tuple[tuple[str, int], list[Trial]]]:
    """The trials of each head, in the order in which they come."""
    by_head: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        by_head.setdefault((trial.site, trial.head), []).append(trial)
    yield from by_head.items()


__all__ = ["HEADS_OF_A_UNIT", "Trial", "Unit", "family", "measure_unit", "shares_pruned", "spread", "units"]
