"""The paper's figures for any model: a metric against threshold, sparsity and bits, for one scheme for all heads.

Each point is a scheme: the model is rewritten with it, its loss measured on all of the data, the share of values that
it prunes counted, and its time taken in turn with the original's. Points are independent; each is written down when it
is done, so that a run that was stopped can be resumed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnx_attnq.errors import CannotWrite, InvalidData, InvalidScheme
from onnx_attnq.evaluate import Interval
from onnx_attnq.extras import require
from onnx_attnq.inputs import Sample
from onnx_attnq.job import compress, plan_only
from onnx_attnq.model import sha256
from onnx_attnq.progress import Progress, no_progress
from onnx_attnq.run import RunSettings, Session, cpu_times, native_library
from onnx_attnq.scheme import Pruned, QuantScheme, Reference, preset, spell_scheme
from onnx_attnq.tune.journal import Lines, Purpose
from onnx_attnq.tune.loss import Loss, Measured, Part
from onnx_attnq.tune.sensitivity import shares_pruned

SCHEMES: Final = ("row-log-mean", "row-log", "ji2021", "prune-only-row-max")
BITS: Final = (1, 2, 3, 4)
RELATIVE: Final = (0.01, 0.03, 0.1, 0.3)
"""Thresholds for schemes that measure against the row's maximum."""
ABSOLUTE: Final = (1e-4, 1e-3, 1e-2)
"""Thresholds for schemes that measure against 1, as the paper does."""


@dataclasses.dataclass(frozen=True)
class Point:
    """What one scheme does to a model when all heads get it.

    Attributes:
        scheme: The scheme.
        pruned: Share of the values above zero that are pruned, of the original's probabilities, 0 to 1.
        loss: Of each figure, on all of the data.
        speed: CPU time of the original over that of the rewritten model, by the native library where it was built:
            above 1 is faster. NaN where it was not measured.
    """

    scheme: QuantScheme
    pruned: float
    loss: Measured
    speed: float

    def to_json(self) -> dict[str, Any]:
        """JSON values; null where the speed was not measured."""
        speed = None if math.isnan(self.speed) else self.speed
        return {"scheme": self.scheme.to_json(), "pruned": self.pruned, "loss": self.loss.to_json(), "speed": speed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """The inverse of `to_json`."""
        figures = {name: _interval(figure) for name, figure in data["loss"]["figures"].items()}
        speed = math.nan if data["speed"] is None else data["speed"]
        loss = Measured(figures, data["loss"]["count"])
        return cls(QuantScheme.from_json(data["scheme"]), data["pruned"], loss, speed)


def grid(
    names: Sequence[str] = (),
    bits: Sequence[int] = (),
    thresholds: Sequence[float] = (),
    pruned: Sequence[Pruned] = (),
) -> tuple[QuantScheme, ...]:
    """Every combination that makes a scheme, each once.

    Args:
        names: Presets, as of `preset`; `SCHEMES` if empty.
        bits: For presets that take bits; `BITS` if empty.
        thresholds: For presets that take one; `RELATIVE` or `ABSOLUTE`, whichever fits the preset, if empty.
        pruned: What becomes of pruned values; as the preset has it if empty.

    Raises:
        InvalidScheme: No combination makes a scheme; with the reason of the last.

    >>> [(s.bits, s.threshold) for s in grid(["row-log"], [2, 3], [0.1])]
    [(2, 0.1), (3, 0.1)]
    """
    found: dict[QuantScheme, None] = {}
    why: InvalidScheme | None = None
    for name in names or SCHEMES:
        own = preset(name)
        fitting = thresholds or (RELATIVE if own.reference is Reference.ROW_MAX else ABSOLUTE)
        of_bits: Sequence[int | None] = (None,) if own.bits is None else bits or BITS
        for count, threshold, treatment in itertools.product(of_bits, (*fitting, None), pruned or (None,)):
            if threshold is None and _takes_threshold(name):
                continue
            try:
                found[preset(name, bits=count, threshold=threshold, pruned=treatment)] = None
            except InvalidScheme as error:
                why = error
    if not found and why is not None:
        raise why
    return tuple(found)


def _takes_threshold(name: str) -> bool:
    try:
        preset(name, threshold=0.1)
    except InvalidScheme:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A model, what is measured of it, and the schemes to try.

    Attributes:
        source: The original model.
        samples: Inputs on which pruned values are counted; the first is run for the times.
        loss: What may be lost.
        schemes: What all heads get, one after the other.
        repeats: Runs of each model for the times; 0 to measure none.
        jobs: Processes, or what the backend makes of the number; -1 for all processors.
        run_settings: How models are run, but for the threads, of which each point has one.
    """

    source: Path
    samples: Sequence[Sample]
    loss: Loss
    schemes: Sequence[QuantScheme]
    repeats: int = 5
    jobs: int = -1
    run_settings: RunSettings = RunSettings()

    def run(self, journal: Path, *, resume: bool = False, progress: Progress = no_progress) -> tuple[Point, ...]:
        """A point for each scheme, in their order.

        Args:
            journal: Where points are written down; its folder is made.
            resume: Take the points that it has.
            progress: Called after each point.

        Raises:
            InvalidData: There is no sample or scheme, or the journal is of something else.
            CannotWrite: There is a journal already that is not to be resumed, or its folder cannot be made.
        """
        require("tune")
        import joblib

        if not self.samples or not self.schemes:
            raise InvalidData("there are no samples, or no schemes, to sweep")
        plan_only(self.source)  # which refuses a model that has no attention, or that is rewritten already
        try:
            journal.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot make the folder {journal.parent}: {error.strerror}") from None
        purpose = dataclasses.asdict(Purpose.of(sha256(self.source), self.samples, ()))
        lines = Lines(journal, {**purpose, "loss": self.loss.name, "repeats": self.repeats}, resume=resume)
        try:
            points = {point.scheme: point for point in map(Point.from_json, lines.lines)}
        except (ValueError, TypeError, KeyError, InvalidScheme) as error:
            raise InvalidData(f"{journal}: not a journal of a sweep ({error})") from None
        missing = [scheme for scheme in self.schemes if scheme not in points]
        done = len(self.schemes) - len(missing)
        progress("", done, len(self.schemes))
        work = joblib.Parallel(n_jobs=self.jobs, return_as="generator_unordered")
        source = str(self.source.absolute())
        alone = dataclasses.replace(self.run_settings, threads=1).absolute()
        shares = shares_pruned(source, self.samples, missing, alone) if missing else {}
        common = (self.samples[0], self.loss, self.repeats, alone)
        for point in work(joblib.delayed(_point)(source, scheme, shares[scheme], *common) for scheme in missing):
            points[point.scheme] = point
            lines.add(point.to_json())
            done += 1
            what = f"{spell_scheme(point.scheme)}: {point.pruned:.1%} pruned, loss {point.loss.worst:.2%}"
            progress(what, done, len(self.schemes))
        return tuple(points[scheme] for scheme in self.schemes)


def pareto(points: Sequence[Point], gain: Callable[[Point], float]) -> tuple[Point, ...]:
    """The points that no other beats in gain and loss at once, by rising gain.

    Args:
        points: Any points; those whose gain or loss is NaN are left out.
        gain: What should be large, such as the share pruned.
    """
    known = [p for p in points if not math.isnan(gain(p)) and not math.isnan(p.loss.worst)]
    front: list[Point] = []
    for point in sorted(known, key=lambda p: (-gain(p), p.loss.worst)):
        if not front or point.loss.worst < front[-1].loss.worst:
            front.append(point)
    return tuple(reversed(front))


def _point(
    source: str, scheme: QuantScheme, pruned: float, sample: Sample, loss: Loss, repeats: int, run: RunSettings
) -> Point:
    with tempfile.TemporaryDirectory(prefix="onnx-attnq-") as folder:
        rewritten = Path(folder) / "model.onnx"
        compress(source, rewritten, scheme=scheme, verification=None)
        measured = loss.measure(rewritten, Part.ALL)
        speed = _speed(Path(source), rewritten, sample, repeats, run)
    return Point(scheme, pruned, measured, speed)


def _speed(original: Path, rewritten: Path, sample: Sample, repeats: int, run: RunSettings) -> float:
    """CPU time of the original over that of the rewritten model, medians of runs in turn, after one of each."""
    if repeats == 0:
        return math.nan
    sessions = (Session(original, run), Session(rewritten, run, native=native_library() is not None))
    before, after = cpu_times(sessions, sample, repeats)
    return before / after if after > 0.0 else math.nan


def _interval(figure: Mapping[str, float | None]) -> Interval:
    return Interval(*(np.nan if (value := figure[key]) is None else value for key in ("estimate", "low", "high")))


__all__ = ["ABSOLUTE", "BITS", "RELATIVE", "SCHEMES", "Point", "Sweep", "grid", "pareto"]
