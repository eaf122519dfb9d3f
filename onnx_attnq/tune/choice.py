"""From what each scheme does to each head, the plan that gains most at one price of divergence.

The divergences of single heads add up well enough to order plans (see `sensitivity`), so for a price λ each head takes
the scheme that minimizes cost + λ · divergence, whatever the others take: a Lagrangian, as rate-distortion optimization
uses it. Every λ gives a plan that is best at its own divergence; a larger λ gives a milder plan.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Final

from onnx_attnq.scheme import QuantScheme
from onnx_attnq.tune.sensitivity import Trial, spread

BIT_PRICE: Final = 1.0 / 16.0
"""What a bit of a head's codes costs, in shares of its values kept: with `Objective.SPARSE_AND_NARROW`, going from 2 to
1 bits is worth as much as pruning 6 % of the values more."""

_SAME: Final = 1e-9
"""Divergences that differ by less are rounding."""


class Objective(enum.StrEnum):
    """What a plan should be small in."""

    SPARSE = "sparse"
    """The share of values kept: products with V that remain."""
    NARROW = "narrow"
    """The bits of a code."""
    SPARSE_AND_NARROW = "sparse-and-narrow"
    """Both, at `BIT_PRICE`."""

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
        pruned: Share of values pruned, mean over heads, as measured head by head.
        bits: Mean over heads.
        divergence: Sum over heads.
    """

    schemes: Mapping[str, tuple[QuantScheme, ...]]
    pruned: float
    bits: float
    divergence: float


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
    best = [
        min(own, key=lambda t: (objective.cost(t) + price * t.divergence, t.divergence)) for _, own in spread(trials)
    ]
    schemes: dict[str, list[QuantScheme]] = {}
    for trial in best:
        schemes.setdefault(trial.site, []).append(trial.scheme)
    return Choice(
        {site: tuple(heads) for site, heads in schemes.items()},
        sum(t.pruned for t in best) / len(best),
        sum(float(t.scheme.bits or 0) for t in best) / len(best),
        sum(t.divergence for t in best),
    )


def frontier(trials: Sequence[Trial], objective: Objective = Objective.SPARSE_AND_NARROW) -> tuple[Choice, ...]:
    """Plans from the harshest to the mildest, each different from the one before it.

    The prices are those at which some head changes its scheme, thinned to at most `MOST_PLANS`.
    """
    prices = {0.0}
    for _, own in spread(trials):
        for a in own:
            for b in own:
                saved, moved = objective.cost(b) - objective.cost(a), a.divergence - b.divergence
                if saved > 0.0 and moved > _SAME:
                    prices.add(saved / moved)
    ordered = sorted(prices)
    step = max(1, len(ordered) // MOST_PLANS)
    found: list[Choice] = []
    for price in [*ordered[::step], ordered[-1] * 1.001]:
        made = choose(trials, price, objective)
        if not found or found[-1].schemes != made.schemes:
            found.append(made)
    return tuple(found)


MOST_PLANS: Final = 256
"""Plans of a frontier; neighbours differ in a few heads."""


__all__ = ["BIT_PRICE", "MOST_PLANS", "Choice", "Objective", "choose", "frontier"]
