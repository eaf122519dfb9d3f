"""Which sites of a rewritten model make it deviate, and which to leave so that it deviates less."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnx_attnq.counted import counted
from onnx_attnq.errors import InvalidModel, InvalidScheme
from onnx_attnq.find import AttentionSite, expose, find_sites
from onnx_attnq.graph import Dataflow, probe
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load, structure_hash
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.rewriting import Plan, Record, RewrittenSite, read_record, rewrite
from onnx_attnq.run import Arrays, RunSettings, Session
from onnx_attnq.scheme import SiteScheme
from onnx_attnq.verification.deviation import Deviation, deviation_of
from onnx_attnq.verification.exchange import Exchange
from onnx_attnq.verification.limits import Limits
from onnx_attnq.verification.outputs import OutputComparison, OutputDeviation, is_distribution, token_masks
from onnx_attnq.verification.random_ops import seed_note, with_seeds

Outputs: TypeAlias = Mapping[str, OutputDeviation]
"""Of one model, compared with the original's."""

Array: TypeAlias = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class SiteContribution:
    """How much one site contributes to the deviation of the outputs.

    Attributes:
        site: Its id.
        without: Deviation of the model in which this site alone is left as it was.
        contribution: By how much that is less than the deviation with all sites; negative where errors cancel out.
        local_error: Relative error of the site's context when only this site is rewritten.
    """

    site: str
    without: float
    contribution: float
    local_error: float


@dataclasses.dataclass(frozen=True)
class Bisection:
    """Where the deviation of a rewritten model comes from.

    A deviation is the largest over the outputs of ‖b − a‖ / ‖a‖, over all samples; infinite with new NaN.

    Attributes:
        deviation: With all sites.
        sites: The sites, those that contribute most first.
        exclude: Sites to leave; empty if none has to be or none would help.
        remaining: Deviation without them.
        samples: Number of samples.
        random_ops: Number of ops that draw random numbers; they got the same seeds in both models.
    """

    deviation: float
    sites: tuple[SiteContribution, ...]
    exclude: tuple[str, ...]
    remaining: float
    samples: int
    random_ops: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of the result, a sentence each."""
        return (seed_note(self.random_ops),) if self.random_ops else ()

    @property
    def options(self) -> str:
        """What to add to the command line.

        >>> Bisection(0.1, (), ("layer.0/Softmax", "softmax[1]"), 0.01, 4).options
        "--exclude 'layer.0/Softmax' --exclude 'softmax[[]1]'"
        """
        return " ".join(f"--exclude '{glob.escape(site)}'" for site in self.exclude)

    @property
    def plan_lines(self) -> tuple[dict[str, Any], ...]:
        """The entries that these sites should have in a plan."""
        return tuple({"id": site, "scheme": None, "reason": "harms most, says bisect"} for site in self.exclude)

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes."""
        return {
            "deviation": self.deviation,
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "exclude": list(self.exclude),
            "plan": list(self.plan_lines),
            "remaining": self.remaining,
            "samples": self.samples,
            "notes": list(self.notes),
        }


def bisect(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    samples: Sequence[Sample],
    *,
    expected: Sequence[Arrays] = (),
    limits: Limits = Limits(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> Bisection:
    """Rank the sites of a rewritten model by what they contribute to its deviation, and say which to leave.

    Both models run once, and show what enters and leaves each site. Then one site after the other is exchanged for the
    original's, and only what follows it runs again (see `Exchange`). A site that is not in the main graph is left out
    of the rewrite, and the whole model runs. There is one session at a time, whose weights onnxruntime maps from a
    file.

    With limits, ``exclude`` are the worst sites, as few as bring the model within them; their number is found by
    halving, and the result was run. Without, it is the worst site.

    Args:
        a: The original.
        b: The rewritten model.
        samples: Inputs.
        expected: What ``a`` gives on each of them, if it was run on them before and draws no random numbers.
        limits: What is asked of the outputs.
        run: Threads and custom ops.
        progress: Called after each run, of a model or of what follows a site in it.

    Raises:
        InvalidModel: ``b`` has no record, or was made from another model than ``a``.
        InvalidScheme: A limit on an output that the models do not have, or on a figure that the output does not have.
    """
    original, rewritten = load(a), load(b)
    record = read_record(rewritten)
    if record is None:
        raise InvalidModel(f"{b} carries no record of a rewrite; `verify` and `diff` compare any two models")
    if record.structure_hash != structure_hash(original):
        raise InvalidModel(f"{b} was made from another model than {a}")
    limits.check(original)
    (original, rewritten), random_ops = with_seeds(original, rewritten)
    if random_ops:
        expected = ()
    halvings = math.ceil(math.log2(len(record.sites))) + 1 if limits else 0
    known = len(expected) == len(samples)
    runs = Steps(len(samples) * ((not known) + 2 + len(record.sites) + halvings), progress)
    schemes = {site.id: site.scheme for site in record.sites}
    trials = _Trials(original, schemes, samples, run, limits, expected, runs, once=bool(random_ops))
    exchange = Exchange(trials.exposed, rewritten, trials.pairs(record), run, once=bool(random_ops))
    runs.total += 2 * len(samples) * (len(record.sites) - len(exchange.sites))
    total = trials.comparison()
    without: dict[str, _Compared] = {}
    local: dict[str, Deviation] = {}
    for number, whole, one in exchange.trials(samples):
        if one is None:
            total.add(number, whole)
            runs.advance("both models", 2)
            continue
        without.setdefault(one.site, trials.comparison()).add(number, one.outputs)
        local[one.site] = local.get(one.site, Deviation()).merge(deviation_of(one.before, one.after))
        runs.advance(one.site)
    deviation = _deviation(total.result())
    sites = []
    for site in record.sites:
        if site.id in exchange.sites:
            left, error = _deviation(without[site.id].result()), local[site.id].relative_error
        else:
            left, error = _deviation(trials.leave([site.id])), trials.local_error(site.id)
        # Infinite without the site too: it is not the one.
        contribution = 0.0 if math.isinf(left) else deviation - left
        sites.append(SiteContribution(site.id, left, contribution, error))
    sites.sort(key=lambda site: site.contribution, reverse=True)
    exclude, remaining = _mend(trials, total.result(), sites)
    return Bisection(deviation, tuple(sites), exclude, remaining, len(samples), random_ops)


def _mend(trials: _Trials, total: Outputs, sites: Sequence[SiteContribution]) -> tuple[tuple[str, ...], float]:
    """The sites to leave, those that contribute most first, and the deviation without them."""
    ranked = [site.site for site in sites]
    if not trials.limits:
        worst = sites[0]
        return ((worst.site,), worst.without) if worst.contribution > 0.0 else ((), _deviation(total))
    if missing := trials.limits.missing(total):
        raise InvalidScheme(missing[0])
    if trials.limits.hold(total):
        return (), _deviation(total)
    # Of the worst sites, `low` are too few and `high` are enough: without any, the model is the original.
    low, high, remaining = 0, len(ranked), trials.leave(ranked)
    while high - low > 1:
        middle = (low + high) // 2
        found = trials.leave(ranked[:middle])
        if trials.limits.hold(found):
            high, remaining = middle, found
        else:
            low = middle
    return tuple(ranked[:high]), _deviation(remaining)


class _Trials:
    """Rewrites of one model with some of the sites, compared with the model itself.

    Args:
        original: The model, its weights in a file.
        schemes: What each site gets.
        samples: Inputs.
        run: Threads and custom ops.
        limits: What is asked of the outputs.
        expected: What the model gives on each sample, if it was run before.
        runs: Counts those of whole models.
        once: Sessions run one sample, as those of `Exchange`.
    """

    def __init__(
        self,
        original: ir.Model,
        schemes: Mapping[str, SiteScheme],
        samples: Sequence[Sample],
        run: RunSettings,
        limits: Limits,
        expected: Sequence[Arrays],
        runs: Steps,
        *,
        once: bool = False,
    ) -> None:
        self.limits = limits
        self._runs = runs
        self._original = original
        self._schemes = schemes
        self._samples = samples
        self._settings = run
        self._once = once
        self._expected = list(expected) if len(expected) == len(samples) else self._run(original, "original")
        self._distributions = {value.name for value in original.graph.outputs if is_distribution(value)}
        self._masks = token_masks(original)
        self.exposed = original.clone()
        exposed = expose(self.exposed)
        ShapeInferencePass()(self.exposed)  # parts of the model need the types of what they read
        self._sites = {site.id: site for site in find_sites(exposed).sites}
        flow = Dataflow(self.exposed)
        self._contexts = {site.id: _context(site, flow) for site in self._sites.values()}

    def pairs(self, record: Record) -> list[tuple[AttentionSite, RewrittenSite]]:
        """The sites of a record, as they are in the original and in the rewritten model."""
        return [(self._sites[site.id], site) for site in record.sites if site.id in self._sites]

    def comparison(self) -> _Compared:
        """For outputs that are to be compared with the original's, sample by sample."""
        compared = {
            name: OutputComparison(name in self._distributions, self.limits.rtol, self.limits.atol, self._masks[name])
            for name in self._expected[0]
        }
        return _Compared(compared, self._samples, self._expected)

    def leave(self, sites: Sequence[str]) -> Outputs:
        """Compare the model in which all sites but these are rewritten."""
        model = self._rewrite({site: s for site, s in self._schemes.items() if site not in sites})
        compared = self.comparison()
        left = sites[0] if len(sites) == 1 else counted(len(sites), "site")
        for number, outputs in enumerate(self._run(model, f"all but {left}")):
            compared.add(number, outputs)
        return compared.result()

    def local_error(self, site: str) -> float:
        """Relative error of the context of a site that is the only one to be rewritten."""
        name, scope = self._contexts[site]
        expected = self._run(probe(self.exposed, [name], scope), site)
        actual = self._run(probe(self._rewrite({site: self._schemes[site]}), [name], scope), site)
        total = Deviation()
        for before, after in zip(expected, actual, strict=True):
            (x,), (y,) = before.values(), after.values()
            total = total.merge(deviation_of(x, y))
        return total.relative_error

    def _rewrite(self, schemes: Mapping[str, SiteScheme]) -> ir.Model:
        model = self._original.clone()
        sites = find_sites(expose(model))
        rewrite(model, sites, Plan.giving(sites, schemes, "left out on trial"))
        return model

    def _run(self, model: ir.Model, what: str) -> list[Arrays]:
        found = []
        session: Session | None = None
        for sample in self._samples:
            if session is None or self._once:
                session = Session(model, self._settings, frugal=True)
            found.append(session.run(sample))
            self._runs.advance(what)
        return found


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Outputs of one model, compared with the original's."""

    outputs: Mapping[str, OutputComparison]
    samples: Sequence[Sample]
    expected: Sequence[Arrays]

    def add(self, number: int, actual: Arrays) -> None:
        """What the model gives on the sample of a number."""
        for name, output in self.outputs.items():
            output.add(self.expected[number][name], actual[name], self.samples[number])

    def result(self) -> Outputs:
        """All samples together."""
        return {name: output.result() for name, output in self.outputs.items()}


def _context(site: AttentionSite, flow: Dataflow) -> tuple[str, str]:
    """Name and scope of the product with V, or of what the whole attention gives."""
    value = site.value_products[0].node.outputs[0] if site.attention is None else site.attention.context
    assert isinstance(value.graph, ir.Graph)
    return value.name or "", flow.scope(value.graph)


def _deviation(outputs: Outputs) -> float:
    return max(
        (math.inf if o.deviation.one_sided else o.deviation.relative_error for o in outputs.values()), default=0.0
    )


__all__ = ["Bisection", "SiteContribution", "bisect"]
