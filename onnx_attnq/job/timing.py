"""Time models against each other, in turn, so that a machine that speeds up or slows down does so for all of them."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from onnx_attnq.errors import AttnqError, InvalidData, InvalidModel
from onnx_attnq.inputs import InputShapes, Sample, Step, shared_buffers, step_of, step_sample, steps_of
from onnx_attnq.job.compression import compress
from onnx_attnq.model import load
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.rewriting import read_record
from onnx_attnq.run import OneRun, RunSettings, Session, give_memory_back, native_library, optimize_transformer
from onnx_attnq.scheme import preset

ORIGINAL: Final = "original"
FUSED: Final = "original, fused by onnxruntime"
CONTROL: Final = "native, not quantized"


@dataclasses.dataclass(frozen=True)
class TimingSettings:
    """What to time.

    Attributes:
        tokens: Sequence lengths of made-up inputs; of a decoder with a cache, of prompts and of the past of one token.
        batch: Rows of made-up inputs.
        input_shapes: The whole shape of some made-up inputs, by name; where these fix the length, there is one.
        repeats: Counted runs of each variant for each length, after one that is not counted.
        samples: Inputs in place of made-up ones.
        memory: Measure peak memory, each variant in a process of its own.
        references: Models with other changes than those of attention, such as quantized weights, to time as well.
    """

    tokens: tuple[int, ...] = (128, 512)
    batch: int = 1
    input_shapes: InputShapes = dataclasses.field(default_factory=dict)
    repeats: int = 15
    samples: tuple[Sample, ...] = ()
    memory: bool = True
    references: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: What tables call it.
        path: The model file.
        native: Whether the native library is registered.
    """

    name: str
    path: Path
    native: bool


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one variant took for one kind of run.

    Attributes:
        variant: Its name.
        step: What was run: how many tokens, after how many.
        cpu_ms: Median of process CPU time, milliseconds.
        wall_ms: Median of elapsed time, milliseconds.
        p99_ms: 99th percentile of elapsed time, milliseconds.
        ratio: Median CPU time of the original, of the runs in turn with this one, divided by this one's: above 1 is
            faster.
        peak_mb: Peak resident memory of a process that runs it once, megabytes; None where it was not measured.
    """

    variant: str
    step: Step
    cpu_ms: float
    wall_ms: float
    p99_ms: float
    ratio: float
    peak_mb: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, those of the step among them; ``tokens`` is null for an image or a signal."""
        fields = dataclasses.asdict(self)
        step = {**fields.pop("step"), **({"tokens": None} if self.step.shape else {})}
        return {"variant": fields.pop("variant"), **step, **fields}


def variants(
    original: Path, rewritten: Sequence[Path], folder: Path, references: Sequence[Path] = ()
) -> tuple[list[Variant], list[str]]:
    """The original, what onnxruntime's optimizer makes of it, and each rewritten model with and without the library.

    With the library, the original is also run by its attention kernel without quantization: what that gains
    is due to fusing, the rest to pruning.

    Args:
        original: The model before.
        rewritten: Models that were made from it.
        folder: Where the models that are made for the comparison go.
        references: Models that are timed as they are.

    Returns:
        The variants, and a sentence for each that could not be made.
    """
    found = [Variant(ORIGINAL, original, False)]
    missing: list[str] = []
    try:
        fused = folder / "fused.onnx"
        optimize_transformer(original, fused)
        found.append(Variant(FUSED, fused, False))
    except AttnqError as error:
        missing.append(f"{FUSED}: {error}")
    found += [Variant(path.name, path, False) for path in references]
    for path in rewritten:
        if read_record(load(path)) is None:
            raise InvalidModel(
                f"{path}: carries no record of a rewrite; name the original first, then rewritten models"
            )
        name = path.name if len(rewritten) > 1 else "rewritten"
        found.append(Variant(f"{name}, portable", path, False))
        if native_library() is not None:
            found.append(Variant(f"{name}, native", path, True))
    if native_library() is None:
        missing.append("native: the library was not built (`make native`)")
    elif rewritten:
        control = folder / "control.onnx"
        compress(original, control, scheme=preset("identity"), verification=None)
        found.append(Variant(CONTROL, control, True))
    return found, missing


def bench(
    original: Path,
    rewritten: Sequence[Path],
    *,
    settings: TimingSettings = TimingSettings(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> tuple[list[Timing], list[str]]:
    """Time each variant in turn with the original on the same inputs: a run of the one, a run of the other.

    There are no more than two sessions at a time.

    A decoder with a cache is timed in both of its phases: prompts, and one token after a past.

    Args:
        original: The model before.
        rewritten: Models that were made from it.
        settings: What to time.
        run: Threads and custom ops.
        progress: Called after each run, or pair of runs.

    Returns:
        Timings, and a sentence for each variant, or kind of run, that could not be made.

    Raises:
        InvalidData: The original runs on none of the inputs.
    """
    model = load(original)
    wanted = _wanted(model, settings)
    with tempfile.TemporaryDirectory() as folder:
        found, missing = variants(original, rewritten, Path(folder), settings.references)
        others = found[1:] or found
        measured = settings.memory and not settings.samples
        of_case = len(others) * 2 * (settings.repeats + 1) + len(found) * measured
        steps = Steps(len(wanted) * (1 + of_case), progress)
        give_memory_back()
        session = Session(load(original), run)
        cases: list[_Case] = []
        refused: InvalidData | None = None
        for step, given in wanted:
            try:
                sample = given or step_sample(model, step, settings.batch, settings.input_shapes)
                case = _Case(step, sample, None if step.capacity is None else shared_buffers(model))
                case.runs(session)()
                cases.append(case)
            except InvalidData as error:
                refused = error
                missing.append(f"{step}: {error}")
                steps.total -= of_case
            steps.advance(f"{step} tried")
        if refused is not None and not cases:
            raise refused
        pairs: dict[str, list[list[_Pair]]] = {}
        for variant in others:
            pairs[variant.name] = _in_turn(session, variant, cases, settings.repeats, run, steps)
            give_memory_back()
        del session
        give_memory_back()
        result: list[Timing] = []
        for place, case in enumerate(cases):
            for variant in found:
                peak = None
                if measured:
                    peak = OneRun(variant.path, variant.native, case.sample, case.shared, run).peak_memory()
                    steps.advance(f"memory of {variant.name}, {case.step}")
                if variant.name == ORIGINAL:
                    originals = [pair.original for of in pairs.values() for pair in of[place]]
                    result.append(_timing(variant, case, originals, originals, peak))
                else:
                    of_original, own = zip(
                        *((pair.original, pair.own) for pair in pairs[variant.name][place]), strict=True
                    )
                    result.append(_timing(variant, case, own, of_original, peak))
    return result, missing


@dataclasses.dataclass(frozen=True)
class _Case:
    """One kind of run, on a sample of its sizes.

    Attributes:
        step: What is run.
        sample: An array for each input.
        shared: The buffers that past and present share, where there is room for more than the past; else None.
    """

    step: Step
    sample: Sample
    shared: dict[str, str] | None

    def runs(self, session: Session) -> Callable[[], object]:
        """What runs a model once."""
        if self.shared is None:
            return lambda: session.run(self.sample)
        return session.bound(self.sample, self.shared)


@dataclasses.dataclass(frozen=True)
class _Spent:
    """CPU and elapsed time of a run, seconds."""

    cpu: float
    wall: float

    @classmethod
    def by(cls, run: Callable[[], object]) -> _Spent:
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        return cls(time.process_time() - cpu, time.perf_counter() - wall)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A run of the original, and one of a variant right after it."""

    original: _Spent
    own: _Spent


def _wanted(model: ir.Model, settings: TimingSettings) -> list[tuple[Step, Sample | None]]:
    """The kinds of runs, and the samples for them that were given."""
    if settings.samples:
        return [(step_of(model, sample), sample) for sample in settings.samples]
    return [(step, None) for step in steps_of(model, settings.tokens, settings.batch, settings.input_shapes)]


def _in_turn(
    session: Session, variant: Variant, cases: Sequence[_Case], repeats: int, run: RunSettings, steps: Steps
) -> list[list[_Pair]]:
    """For each case, what runs of the original and of a variant took, which has a session of its own meanwhile."""
    rival = Session(load(variant.path), run, native=variant.native)
    result: list[list[_Pair]] = []
    for case in cases:
        original, own = case.runs(session), case.runs(rival)
        pairs = []
        for _ in range(repeats + 1):
            pairs.append(_Pair(_Spent.by(original), _Spent.by(own)))
            steps.advance(f"{variant.name}, {case.step}", 2)
        result.append(pairs[1:])
    return result


def _timing(
    variant: Variant, case: _Case, own: Sequence[_Spent], of_original: Sequence[_Spent], peak: float | None
) -> Timing:
    cpu, base = (statistics.median(one.cpu for one in spent) for spent in (own, of_original))
    wall = sorted(one.wall for one in own)
    p99 = wall[min(len(wall) - 1, int(0.99 * len(wall)))]
    return Timing(variant.name, case.step, cpu * 1e3, statistics.median(wall) * 1e3, p99 * 1e3, base / cpu, peak)
