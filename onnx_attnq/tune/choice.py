"""From what each scheme does to each head, the plan that gains most at one price of divergence.

The divergences of single heads add up well enough to order plans (see `sensitivity`), so for a price λ each head takes
the scheme that minimizes cost + λ · divergence, whatever the others take: a Lagrangian, as rate-distortion optimization
uses it. Every λ gives a plan that is best at its own divergence; a larger λ gives a milder plan. Heads of one site
share one op, whose schemes are of one family, so a site takes the family with the lowest total cost of its heads.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Final

from onnx_attnq.scheme import QuantScheme, left_alone, spell_scheme
from onnx_attnq.tune.sensitivity import Trial, family, spread

BIT_PRICE: Final = 1.0 / 16.0
"""What a bit of a head's codes costs, in shares of its values kept: with `Objective.SPARSE_AND_NARROW`, going from 2 to
1 bits is worth as much as pruning 6 % of the values more."""

MOST_PLANS: Final = 256
"""Plans of a frontier; neighbours differ in a few heads."""

_SAME: Final = 1e-9
"""Divergences that differ by less are rounding."""


class Objective(enum.StrEnum):
    """What a plan should be small in."""

    SPARSE = "sparse"
    """The share of values kept, which is that of the products with V that remain."""
    NARROW = "narrow"
    """The bits of a code."""
    SPARSE_AND_NARROW = "sparse-and-narrow"
    """Both, at `BIT_PRICE`."""
    FASTEST = "fastest"
    """The measured time, of the plans that each of the others finds."""

    @property
    def searched(self) -> tuple[Objective, ...]:
        """What plans are searched for; the last is what single heads are compared by."""
        several = (Objective.SPARSE, Objective.NARROW, Objective.SPARSE_AND_NARROW)
        return several if self is Objective.FASTEST else (self,)

    def cost(self, trial: Trial) -> float:
        """What a head costs with a scheme."""
        kept, bits = 1.0 - trial.pruned, float(trial.scheme.bits or 0)
        match self:
            case Objective.SPARSE:
                return kept + 1e-3 * bits  # among equals the narrower
            case Objective.NARROW:
                return bits + 1e-3 * kept
            case _:
                return kept + BIT_PRICE * bits


@dataclasses.dataclass(frozen=True)
class Choice:
    """A scheme for each head, and what that adds up to.

    Attributes:
        schemes: By site id, a scheme for each head.
        pruned: Share of values pruned, mean over heads, as measured head by head; a head that is left alone counts 0.
        bits: Mean over heads; a head that is left alone counts as 8 bits.
        divergence: Sum over heads.
        left: By site id, the numbers of heads that are left alone, and why.
    """

    schemes: Mapping[str, tuple[QuantScheme, ...]]
    pruned: float
    bits: float
    divergence: float
    left: Mapping[str, tuple[tuple[int, str], ...]] = dataclasses.field(default_factory=dict)


def choose(trials: Sequence[Trial], price: float, objective: Objective = Objective.SPARSE_AND_NARROW) -> Choice:
    """The plan that is cheapest at a price of divergence.

    Args:
        trials: Each head's, as `sensitivity.measure_unit` gives them.
        price: λ: cost that one nat (or one unit of relative energy) of divergence is worth; 0 and more.
        objective: What the cost is.

    >>> from onnx_attnq.scheme import preset
    >>> mild, harsh = preset(), preset(bits=1, threshold=0.5)
    >>> trials = [Trial("a", 0, mild, 0.5, 0.01), Trial("a", 0, harsh, 0.9, 0.2)]
    >>> [choose(trials, price).bits for price in (0.0, 100.0)]
    [1.0, 3.0]
    """
    return _cheapest(_offers(trials, objective), price)


_Offers = Sequence[Sequence[Sequence[tuple[float, Trial]]]]
"""By family that all heads of a site have, by head: what each trial costs, and the trial."""


def _offers(trials: Sequence[Trial], objective: Objective) -> dict[str, _Offers]:
    by_site: dict[str, list[list[Trial]]] = {}
    for (site, _), own in spread([trial for trial in trials if not trial.screened]):
        by_site.setdefault(site, []).append(own)
    return {
        site: [
            offers
            for one in dict.fromkeys(family(trial.scheme) for own in heads for trial in own)
            if all(offers := [[(objective.cost(t), t) for t in own if family(t.scheme) == one] for own in heads])
        ]
        for site, heads in by_site.items()
    }


def _cheapest(offers: Mapping[str, _Offers], price: float) -> Choice:
    taken: list[Trial] = []
    left: dict[str, tuple[tuple[int, str], ...]] = {}
    for site, families in offers.items():
        best = []
        for heads in families:
            picked = [
                min((cost + price * t.divergence, t.divergence, i) for i, (cost, t) in enumerate(own)) for own in heads
            ]
            best.append(
                (
                    sum(whole for whole, _, _ in picked),
                    [own[i][1] for own, (_, _, i) in zip(heads, picked, strict=True)],
                    heads,
                )
            )
        _, chosen, heads = min(best, key=lambda found: found[0])
        taken += chosen
        alone = [(t.head, _why(own)) for t, own in zip(chosen, heads, strict=True) if t.scheme == left_alone(t.scheme)]
        if alone:
            left[site] = tuple(alone)
    schemes: dict[str, list[QuantScheme]] = {}
    for trial in taken:
        schemes.setdefault(trial.site, []).append(trial.scheme)
    return Choice(
        {site: tuple(own) for site, own in schemes.items()},
        sum(t.pruned for t in taken) / len(taken),
        sum(float(t.scheme.bits or 0) for t in taken) / len(taken),
        sum(t.divergence for t in taken),
        left,
    )


def _why(own: Sequence[tuple[float, Trial]]) -> str:
    others = [trial for _, trial in own if trial.scheme != left_alone(trial.scheme)]
    if not others:
        return "it was not measured"
    mildest = min(others, key=lambda trial: trial.divergence)
    return f"it moves the outputs by {mildest.divergence:.1e} even with {spell_scheme(mildest.scheme)}"


def frontier(trials: Sequence[Trial], objective: Objective = Objective.SPARSE_AND_NARROW) -> tuple[Choice, ...]:
    """Plans from the harshest to the mildest, each different from the one before it.

    The prices are those at which some head changes its scheme, thinned to at most `MOST_PLANS`.
    """
    prices = {0.0}
    for _, own in spread([trial for trial in trials if not trial.screened]):
        for a in own:
            for b in own:
                saved, moved = objective.cost(b) - objective.cost(a), a.divergence - b.divergence
                if saved > 0.0 and moved > _SAME:
                    prices.add(saved / moved)
    ordered = sorted(prices)
    step = max(1, len(ordered) // MOST_PLANS)
    found: list[Choice] = []
    offers = _offers(trials, objective)
    for price in [*ordered[::step], ordered[-1] * 1.001]:
        made = _cheapest(offers, price)
        if not found or found[-1].schemes != made.schemes:
            found.append(made)
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Alternative:
    """What could have been chosen in place of a plan, at the same divergence or less.

    Attributes:
        name: In words.
        choice: The best plan of this kind; None where none moves the outputs as little.
    """

    name: str
    choice: Choice | None

    def to_json(self) -> dict[str, Any]:
        """JSON values; null for a plan that does not exist."""
        found = self.choice
        return {"name": self.name, "pruned": found and found.pruned, "bits": found and found.bits}


def alternatives(trials: Sequence[Trial], choice: Choice, objective: Objective) -> tuple[Alternative, ...]:
    """What each degree of freedom of a choice gains: the best plans without it, at the same divergence or less.

    Candidates that were left out after the first sample count by what they did there.
    """
    everything = [dataclasses.replace(trial, screened=False) for trial in trials]
    heads = {(t.site, t.head) for t in everything}

    def best(allowed: Sequence[Trial]) -> Choice | None:
        if {(t.site, t.head) for t in allowed} != heads:
            return None
        try:
            plans = frontier(allowed, objective)
        except ValueError:  # a site whose heads have no family in common
            return None
        return next((plan for plan in plans if plan.divergence <= choice.divergence + _SAME), None)

    uniform = (best([t for t in everything if t.scheme == one]) for one in dict.fromkeys(t.scheme for t in everything))
    fitting = [plan for plan in uniform if plan is not None]
    cost = objective.cost
    cheapest = min(
        fitting, key=lambda p: cost(Trial("", 0, next(iter(p.schemes.values()))[0], p.pruned, 0.0)), default=None
    )
    found = [Alternative("one scheme for all heads", cheapest)]
    measured = [trial for trial in trials if not trial.screened]
    for bits in sorted({s.bits for own in choice.schemes.values() for s in own if s.bits and s != left_alone(s)}):
        without = [t for t in measured if t.scheme.bits != bits]
        found.append(Alternative(f"without {bits} bit{'s'[: bits > 1]}", best(without)))
    for one in dict.fromkeys(family(t.scheme) for t in everything):
        own = [t for t in everything if family(t.scheme) == one]
        if len(own) < len(everything):
            name = f"{own[0].scheme.name} only"
            found.append(Alternative(name, best(own)))
    return tuple(found)


__all__ = ["BIT_PRICE", "MOST_PLANS", "Alternative", "Choice", "Objective", "alternatives", "choose", "frontier"]
