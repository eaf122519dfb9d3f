"""Tune a model: the schemes per head that gain most and lose no more than was allowed.

1. measure what each candidate does to the outputs when one head gets it (`sensitivity`), unit by unit, written down;
2. order whole plans by the sum of these (`choice.frontier`);
3. find the plan that compresses most with a true loss within the bound (`search`).
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
from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load, sha256
from onnx_attnq.progress import Parts, Progress, no_progress
from onnx_attnq.rewriting import refuse_rewritten, save_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, left_alone, preset
from onnx_attnq.tune.apply import plan_of, untouched
from onnx_attnq.tune.choice import Alternative, Choice, alternatives, frontier
from onnx_attnq.tune.fastest import fastest
from onnx_attnq.tune.journal import Journal, Purpose
from onnx_attnq.tune.loss import Loss
from onnx_attnq.tune.search import Files, Found, Goal, Search
from onnx_attnq.tune.sensitivity import Trial, Unit, family, measure_unit, units


def _each(name: str, bits: int, *thresholds: float) -> tuple[QuantScheme, ...]:
    return tuple(preset(name, bits=bits, threshold=threshold) for threshold in thresholds)


CANDIDATES: Final = (
    *_each("row-log-mean", 1, 0.3, 0.5, 0.7),
    *_each("row-log-mean", 2, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    *_each("row-log-mean", 3, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5),
    *_each("row-log-mean", 4, 0.02, 0.05, 0.1, 0.2),
    left_alone(preset("row-log-mean")),
    *_each("log-mean", 2, 0.02, 0.05, 0.1, 0.2),
    *_each("log-mean", 3, 0.02, 0.05, 0.1),
    *_each("log-mean", 4, 0.01, 0.02, 0.05, 0.1),
    left_alone(preset("log-mean")),
    *_each("row-log", 2, 0.03, 0.1),
    *_each("row-log", 3, 0.01, 0.03),
    preset("ji2021"),
    preset("ji2021", bits=2),
)
"""What each head may get: 1 to 4 bits with shared mass, measured against the row's maximum or against 1, or to be left
alone. Pruned values of zero and the paper's levels are tried, too; they are dropped after the first sample where shared
mass beats them. With 1 bit a threshold below .3 moves outputs further and prunes less: .1 lost to another candidate on
all of 96 heads of two models, .2 on 92.
"""

MEASURING: Final = 0.7
"""Share of a time budget for the heads; the rest is for the losses of plans."""

PLANS: Final = 10
"""About how many plans are measured in the end."""

NOT_YET: Final = "not tuned yet: no plan was accepted before the run ended"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long and on what to work.

    Attributes:
        seconds: Budget of the run. Heads that were not reached in 70 % of it are left alone; a unit or a loss that has
            begun is finished. None: no limit.
        jobs: Processes, or what the backend makes of the number; -1 for all processors.
        run: How heads are measured, but for the threads, of which each unit has one. On a cluster, every worker has the
            libraries of custom ops at these paths.
    """

    seconds: float | None = None
    jobs: int = -1
    run: RunSettings = RunSettings()


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of a tuning run.

    Attributes:
        found: The plan that was chosen, with its losses.
        won: What could have been chosen in place of it, at the same divergence.
        trials: What each candidate did to the outputs, head by head.
        complete: False when the time ran out before every head was measured.
        seconds: Wall time.
    """

    found: Found
    won: tuple[Alternative, ...]
    trials: tuple[Trial, ...]
    complete: bool
    seconds: float

    @property
    def choice(self) -> Choice:
        """The plan that was chosen."""
        return self.found.choice

    @property
    def accepted(self) -> bool:
        """Whether the plan is within the bound on both parts of the data."""
        return self.found.accepted

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes."""
        return {
            "pruned": self.choice.pruned,
            "bits": self.choice.bits,
            "heads": {site: [s.to_json() for s in schemes] for site, schemes in self.choice.schemes.items()},
            "left": {site: {str(head): why for head, why in heads} for site, heads in self.choice.left.items()},
            "won": [alternative.to_json() for alternative in self.won],
            "calibration": self.found.calibration.to_json(),
            "confirmation": self.found.confirmation.to_json(),
            "steps": [step.to_json() for step in self.found.steps],
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
        candidates: What each head may get; those of the first family are preferred.
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
            output: The plan, there at any moment: first one that leaves every site alone, then every better one that is
                accepted. What heads were measured is beside it, as ``OUTPUT.journal``.
            resume: Use what an earlier run has measured.
            progress: Called after each measurement: a few heads of one site, or the loss of a plan.

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
        sites = find_sites(expose(load(self.source)))
        if not (resume and output.exists()):
            save_plan(untouched(sites, NOT_YET), output)
        parts = Parts(progress)
        complete = self._measure_heads(wanted, journal, parts.next(after=lambda _: PLANS))
        if not journal.done:
            raise NothingToRewrite(f"{self.source}: no head was measured in the time that was given; give more")
        trials = [trial for unit in wanted for trial in journal.done.get(unit) or self._not_reached(unit)]
        until = None if self.effort.seconds is None else started + self.effort.seconds
        with tempfile.TemporaryDirectory(prefix="onnx-attnq-") as folder:
            files = Files(self.source, Path(folder) / "model.onnx", output)
            found = self._search(trials, files, sites, until, parts)
        won = alternatives(trials, found.choice, self.goal.objective.searched[-1])
        return Tuning(found, won, tuple(trials), complete, time.monotonic() - started)

    def _search(self, trials: Sequence[Trial], files: Files, sites: Sites, until: float | None, parts: Parts) -> Found:
        """The plan for the objective; of several that are searched, the fastest that is within the bound."""
        every = [
            Search(frontier(trials, one), self.loss, self.goal, files, sites, until, parts.next()).run()
            for one in self.goal.objective.searched
        ]
        accepted = [found for found in every if found.accepted] or every[-1:]
        chosen = accepted[fastest([found.choice for found in accepted], files, self.samples[0], self._alone)]
        save_plan(plan_of(sites, chosen.choice), files.plan)
        return dataclasses.replace(chosen, steps=tuple(step for found in every for step in found.steps))

    def _not_reached(self, unit: Unit) -> list[Trial]:
        families = {family(scheme): left_alone(scheme) for scheme in self.candidates}
        return [Trial(unit.site, h, s, 0.0, 0.0) for h in range(unit.first, unit.stop) for s in families.values()]

    @property
    def _alone(self) -> RunSettings:
        """How heads are measured: one thread gives the same sums whatever machine runs the unit."""
        return dataclasses.replace(self.effort.run, threads=1).absolute()

    def _measure_heads(self, wanted: Sequence[Unit], journal: Journal, report: Progress) -> bool:
        """Measure the units that the journal lacks; returns whether all are done."""
        require("tune")
        import joblib

        missing = [unit for unit in wanted if unit not in journal.done]
        deadline = None if self.effort.seconds is None else time.monotonic() + MEASURING * self.effort.seconds
        source = str(self.source.absolute())

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


def _unit(
    source: str, unit: Unit, samples: Sequence[Sample], candidates: Sequence[QuantScheme], run: RunSettings
) -> tuple[Unit, tuple[Trial, ...]]:
    return unit, measure_unit(source, unit, samples, candidates, run)


__all__ = ["CANDIDATES", "Effort", "Tuner", "Tuning"]
