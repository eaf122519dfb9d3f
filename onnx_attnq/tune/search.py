"""The plan of a frontier that compresses most with a true loss within a bound, measured with the rewritten model.

By bisection on the calibration part of the data; then the plan is measured on the confirmation part, and a milder one,
which leaves alone the heads with the least gain for their divergence, is taken while it fails there: each time twice
as far along the frontier, as a calibration part that cannot tell a loss from noise may accept the harshest plan of all;
then, by bisection, the harshest that holds on both parts.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from onnx_attnq.find import Sites
from onnx_attnq.progress import Progress
from onnx_attnq.rewriting import save_plan
from onnx_attnq.tune.apply import plan_of, write_model
from onnx_attnq.tune.choice import Choice, Objective
from onnx_attnq.tune.loss import Loss, Measured, Part

FIRST_STEP_BACK: Final = 1 / 32
"""Share of the frontier to go back first when the confirmation part exceeds the bound, and how near to end to that."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What to reach: one of the two, or both.

    Attributes:
        max_loss: The largest loss of any figure, as a share: 0.005 is 0.5 %. None: whatever ``min_pruned`` costs.
        min_pruned: The least share of attention values to prune, 0 to 1. None: as much as ``max_loss`` allows.
        objective: What to be small in.
    """

    max_loss: float | None = 0.005
    min_pruned: float | None = None
    objective: Objective = Objective.SPARSE_AND_NARROW


@dataclasses.dataclass(frozen=True)
class Step:
    """One plan whose loss was measured.

    Attributes:
        choice: The plan.
        part: On which part of the data.
        loss: What it lost there.
        accepted: Whether that is within the bound.
    """

    choice: Choice
    part: Part
    loss: Measured
    accepted: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values; of the plan what it adds up to."""
        return {
            "part": str(self.part),
            "pruned": self.choice.pruned,
            "bits": self.choice.bits,
            "divergence": self.choice.divergence,
            "loss": self.loss.to_json(),
            "accepted": self.accepted,
        }


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        choice: The plan that was chosen.
        calibration: Its loss on the part of the data that it was chosen by.
        confirmation: Its loss on the part that it was not chosen by.
        steps: Every plan whose loss was measured, in order.
        accepted: Whether the chosen plan is within the bound on both parts.
    """

    choice: Choice
    calibration: Measured
    confirmation: Measured
    steps: tuple[Step, ...]
    accepted: bool


@dataclasses.dataclass(frozen=True)
class Files:
    """Where models and plans are.

    Attributes:
        source: The original model.
        trial: Where to write models that are measured.
        plan: Where to write plans that were accepted.
    """

    source: Path
    trial: Path
    plan: Path


class Search:
    """The search along a frontier: plans from the harshest to the mildest, whose losses are taken to fall.

    Args:
        plans: The frontier.
        loss: What is measured.
        goal: What is within the bound.
        files: Where models and plans are.
        sites: Of the original model.
        until: When to end, by `time.monotonic`; None for no limit. The confirmation is measured all the same.
        report: Called before and after each measurement.
    """

    def __init__(
        self,
        plans: Sequence[Choice],
        loss: Loss,
        goal: Goal,
        files: Files,
        sites: Sites,
        until: float | None,
        report: Progress,
    ) -> None:
        self.plans, self.loss, self.goal, self.files, self.sites = plans, loss, goal, files, sites
        self.until, self.report = until, report
        self.steps: list[Step] = []
        self._expected_steps = math.ceil(math.log2(len(plans) + 1)) + 2
        self._best: Choice | None = None

    def run(self) -> Found:
        """The harshest plan that holds on both parts, or the mildest that was tried."""
        index = refused = self._furthest()
        nearest = step = max(1, int(FIRST_STEP_BACK * len(self.plans)))
        while not self._holds(index) and not self._late():
            milder = max(i for i in (index, *self._allowed()) if i <= index + step)
            if milder == index:
                break
            refused, index, step = index, milder, 2 * step
        while self._holds(index) and index - refused > nearest and not self._late():
            between = [i for i in self._allowed() if refused < i < index]
            if not between:
                break
            middle = between[len(between) // 2]
            refused, index = (refused, middle) if self._holds(middle) else (middle, index)
        calibration, confirmation = (self._measure(index, part) for part in (Part.CALIBRATION, Part.CONFIRMATION))
        self._write(index)
        accepted = calibration.accepted and confirmation.accepted
        return Found(self.plans[index], calibration.loss, confirmation.loss, tuple(self.steps), accepted)

    def _holds(self, index: int) -> bool:
        found = all(self._measure(index, part).accepted for part in (Part.CALIBRATION, Part.CONFIRMATION))
        if found:
            self._write(index)
        return found

    def _furthest(self) -> int:
        """The index of the harshest plan that the calibration part accepts; of the mildest if it accepts none."""
        allowed = self._allowed()
        if self.goal.max_loss is None:
            return allowed[-1]  # the mildest that prunes enough
        low, high = allowed[0], allowed[-1]
        while low < high and not self._late():
            middle = (low + high) // 2
            if self._measure(middle, Part.CALIBRATION).accepted:
                high = middle
                self._write(middle)
            else:
                low = middle + 1
        return high

    def _measure(self, index: int, part: Part) -> Step:
        plan = self.plans[index]
        known = next((s for s in self.steps if s.choice is plan and s.part is part), None)
        if known is not None:
            return known
        best = "" if self._best is None else f"; best so far {_summary(self._best)}"
        self._report(f"{part} loss of {_summary(plan)}{best}")
        if not self.steps or self.steps[-1].choice is not plan:  # else it is there already
            write_model(self.files.source, self.files.trial, lambda sites: plan_of(sites, plan))
        found = self.loss.measure(self.files.trial, part)
        bound = self.goal.max_loss
        self.steps.append(Step(plan, part, found, bound is None or found.within(bound)))
        self._report(f"{part} loss of {_summary(plan)}{best}")
        return self.steps[-1]

    def _report(self, what: str) -> None:
        done = len(self.steps)
        self.report(what, done, max(done + 1, self._expected_steps))

    def _write(self, index: int) -> None:
        self._best = self.plans[index]
        save_plan(plan_of(self.sites, self._best), self.files.plan)

    def _late(self) -> bool:
        return self.until is not None and time.monotonic() > self.until

    def _allowed(self) -> list[int]:
        """The plans that prune enough; the harshest if none does."""
        least = self.goal.min_pruned or 0.0
        return [i for i, plan in enumerate(self.plans) if plan.pruned >= least] or [0]


def _summary(plan: Choice) -> str:
    return f"{plan.pruned:.1%} pruned, {plan.bits:.2f} bits"


__all__ = ["FIRST_STEP_BACK", "Files", "Found", "Goal", "Search", "Step"]
