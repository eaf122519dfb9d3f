"""Tune a model: the schemes per head that gain most and lose no more than was allowed.

1. measure what each candidate does to the outputs when one head gets it (`sensitivity`), unit by unit, written down;
2. order whole plans by the sum of these (`choice.frontier`);
3. find by bisection the furthest plan whose loss, measured with the rewritten model, is within the bound;
4. measure that plan on the other part of the data, and step back towards the mild end while it fails there.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from onnx_attnq.errors import InvalidData, NothingToRewrite
from onnx_attnq.extras import require
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load, sha256
from onnx_attnq.progress import Progress, no_progress
from onnx_attnq.rewriting import refuse_rewritten, save_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.tune.apply import plan_of, write_model
from onnx_attnq.tune.choice import Choice, Objective, frontier
from onnx_attnq.tune.journal import Journal, Purpose
from onnx_attnq.tune.loss import Loss, Measured, Part
from onnx_attnq.tune.sensitivity import Trial, Unit, measure_unit, units

CANDIDATES: Final = tuple(
    preset("row-log-mean", bits=bits, threshold=threshold)
    for bits, highest in ((1, 0.7), (2, 0.7), (3, 0.3))
    for threshold in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    if threshold <= highest
)
"""What each head may get: from 3 bits that prune little to 1 bit that prunes nearly all."""

STEPS_BACK: Final = 4
"""Milder plans to try when the confirmation part exceeds the bound."""


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
class Effort:
    """How long and on what to work.

    Attributes:
        seconds: Budget of the measurements per head; heads that were not reached by then get the mildest scheme
            that any head was given. None: no limit.
        jobs: Processes, or what the backend makes of the number; -1 for all processors.
        custom_ops: Libraries with custom ops that the model needs; on a cluster, every worker has them at this path.
    """

    seconds: float | None = None
    jobs: int = -1
    custom_ops: tuple[Path, ...] = ()


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
class Tuning:
    """What came of a tuning run.

    Attributes:
        choice: The plan that was chosen.
        calibration: Its loss on the part of the data that it was chosen by.
        confirmation: Its loss on the part that it was not chosen by.
        steps: Every plan whose loss was measured, in order.
        accepted: Whether the chosen plan is within the bound on both parts.
        complete: False when the time ran out before every head was measured.
        seconds: Wall time.
    """

    choice: Choice
    calibration: Measured
    confirmation: Measured
    steps: tuple[Step, ...]
    accepted: bool
    complete: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes."""
        return {
            "pruned": self.choice.pruned,
            "bits": self.choice.bits,
            "heads": {site: [s.to_json() for s in schemes] for site, schemes in self.choice.schemes.items()},
            "calibration": self.calibration.to_json(),
            "confirmation": self.confirmation.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "accepted": self.accepted,
            "complete": self.complete,
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Tuner:
    """A model, what it may lose, and what to reach.

    Attributes:
        source: The original model.
        samples: Inputs for the measurements per head; a handful of a few hundred tokens is enough.
        loss: What may be lost.
        goal: How much may be lost, or has to be pruned.
        effort: How long to work, and on how many processors.
        candidates: What each head may get, all of one family.
    """

    source: Path
    samples: Sequence[Sample]
    loss: Loss
    goal: Goal = Goal()
    effort: Effort = Effort()
    candidates: tuple[QuantScheme, ...] = CANDIDATES

    def run(self, output: Path, *, resume: bool = False, progress: Progress = no_progress) -> Tuning:
        """Choose a scheme for each head, and write the plan.

        Args:
            output: The plan. It is written as soon as a plan has been accepted, and again for every better one. What
                heads were measured is beside it, as ``OUTPUT.journal``.
            resume: Use what an earlier run has measured.
            progress: Called after each unit and each measured plan.

        Raises:
            NothingToRewrite: The model has no attention that can be tuned, or no head was measured in time.
            InvalidData: There is no sample, or the journal is of something else.
            CannotWrite: There is a journal already that is not to be resumed.
        """
        started = time.monotonic()
        if not self.samples:
            raise InvalidData("there are no samples to tune with")
        refuse_rewritten(load(self.source))
        wanted = units(str(self.source), self.samples[0], self._alone)
        purpose = Purpose.of(sha256(self.source), self.samples, self.candidates)
        journal = Journal(output.with_name(f"{output.name}.journal"), purpose, resume=resume)
        complete = self._measure_heads(wanted, journal, progress)
        trials = [trial for unit in wanted for trial in journal.done.get(unit, ())]
        if not trials:
            raise NothingToRewrite(f"{self.source}: no head was measured in the time that was given; give more")
        mildest = min(self.candidates, key=lambda scheme: scheme.threshold - (scheme.bits or 0))
        for unit in wanted:
            if unit not in journal.done:
                trials += [Trial(unit.site, head, mildest, 0.0, 0.0) for head in range(unit.first, unit.stop)]
        with tempfile.TemporaryDirectory(prefix="onnx-attnq-") as folder:
            search = _Search(self, frontier(trials, self.goal.objective), Path(folder) / "model.onnx", output, progress)
            chosen = search.run()
        return dataclasses.replace(chosen, complete=complete, seconds=time.monotonic() - started)

    @property
    def _alone(self) -> RunSettings:
        """How heads are measured: one thread gives the same sums whatever machine runs the unit."""
        return RunSettings(threads=1, custom_ops=tuple(path.resolve() for path in self.effort.custom_ops))

    def _measure_heads(self, wanted: Sequence[Unit], journal: Journal, report: Progress) -> bool:
        """Measure the units that the journal lacks; returns whether all are done."""
        require("tune")
        import joblib

        missing = [unit for unit in wanted if unit not in journal.done]
        deadline = None if self.effort.seconds is None else time.monotonic() + self.effort.seconds
        source = str(self.source.resolve())

        def jobs() -> Iterator[Any]:
            for unit in missing:
                if deadline is not None and time.monotonic() > deadline:
                    return
                yield joblib.delayed(_unit)(source, unit, self.samples, self.candidates, self._alone)

        report("heads", len(journal.done), len(wanted))
        # With a time limit units are sent one ahead of the processes, and no more.
        ahead = "all" if deadline is None else "1.5*n_jobs"
        work = joblib.Parallel(n_jobs=self.effort.jobs, return_as="generator_unordered", pre_dispatch=ahead)
        for unit, trials in work(jobs()):
            journal.add(unit, trials)
            report("heads", len(journal.done), len(wanted))
        return len(journal.done) >= len(wanted)


class _Search:
    """The search along a frontier: plans from the harshest to the mildest, whose losses are taken to fall."""

    def __init__(self, tuner: Tuner, plans: Sequence[Choice], model: Path, output: Path, report: Progress) -> None:
        self.tuner, self.plans, self.model, self.output, self.report = tuner, plans, model, output, report
        self.sites = find_sites(expose(load(tuner.source)))
        self.steps: list[Step] = []

    def run(self) -> Tuning:
        """The harshest plan that holds on both parts, or the mildest that was tried."""
        index = self._furthest()
        while True:
            calibration = self._measure(index, Part.CALIBRATION)
            confirmation = self._measure(index, Part.CONFIRMATION)
            accepted = calibration.accepted and confirmation.accepted
            back = sum(step.part is Part.CONFIRMATION for step in self.steps) - 1
            milder = min(len(self.plans) - 1, index + max(1, len(self.plans) // 32))
            if accepted or back >= STEPS_BACK or milder == index or self._prunes_too_little(milder):
                break
            index = milder
        self._write(index)
        return Tuning(self.plans[index], calibration.loss, confirmation.loss, tuple(self.steps), accepted, True, 0.0)

    def _furthest(self) -> int:
        """The index of the harshest plan that the calibration part accepts; of the mildest if it accepts none."""
        allowed = [i for i in range(len(self.plans)) if not self._prunes_too_little(i)] or [0]
        if self.tuner.goal.max_loss is None:
            return allowed[-1]  # the mildest that prunes enough
        low, high = allowed[0], allowed[-1]
        while low < high:
            middle = (low + high) // 2
            if self._measure(middle, Part.CALIBRATION).accepted:
                high = middle
                self._write(middle)
            else:
                low = middle + 1
        return low

    def _measure(self, index: int, part: Part) -> Step:
        known = next((s for s in self.steps if s.choice is self.plans[index] and s.part is part), None)
        if known is not None:
            return known
        self.report(f"loss of a plan ({part})", len(self.steps), len(self.steps) + 1)
        if not self.steps or self.steps[-1].choice is not self.plans[index]:  # else it is there already
            write_model(self.tuner.source, self.plans[index], self.model)
        found = self.tuner.loss.measure(self.model, part)
        bound = self.tuner.goal.max_loss
        self.steps.append(Step(self.plans[index], part, found, bound is None or found.worst <= bound))
        return self.steps[-1]

    def _write(self, index: int) -> None:
        save_plan(plan_of(self.sites, self.plans[index]), self.output)

    def _prunes_too_little(self, index: int) -> bool:
        least = self.tuner.goal.min_pruned
        return least is not None and self.plans[index].pruned < least


def _unit(
    source: str, unit: Unit, samples: Sequence[Sample], candidates: Sequence[QuantScheme], run: RunSettings
) -> tuple[Unit, tuple[Trial, ...]]:
    return unit, measure_unit(source, unit, samples, candidates, run)


__all__ = ["CANDIDATES", "Effort", "Goal", "Step", "Tuner", "Tuning"]
