"""Time models against each other, in turn, so that a machine that speeds up or slows down does so for all of them."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

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
    wanted: list[tuple[Step, Sample | None]] = [(step_of(model, sample), sample) for sample in settings.samples]
    if not wanted:
        made = steps_of(model, settings.tokens, settings.batch, settings.input_shapes)
        wanted = [(step, None) for step in made]
    result: list[Timing] = []
    with tempfile.TemporaryDirectory() as folder:
        found, missing = variants(original, rewritten, Path(folder), settings.references)
        taken: list[tuple[Step, Sample]] = []
        refused: InvalidData | None = None
        give_memory_back()
        session = Session(load(original), run)
        others = found[1:] or found
        measured = settings.memory and not settings.samples
        of_step = len(others) * 2 * (settings.repeats + 1) + len(found) * measured
        steps = Steps(len(wanted) * (1 + of_step), progress)
        for step, given in wanted:
            try:
                sample = given or step_sample(model, step, settings.batch, settings.input_shapes)
                _run_of(session, step, sample, model)()
                taken.append((step, sample))
            except InvalidData as error:
                refused = error
                missing.append(f"{step}: {error}")
                steps.total -= of_step
            steps.advance(f"{step} tried")
        spent: dict[tuple[int, str], list[_Spent]] = {}
        bases: dict[tuple[int, str], list[_Spent]] = {}
        for variant in others:
            # Two sessions at a time: each has packed weights of its own.
            rival = Session(load(variant.path), run, native=variant.native)
            for place, (step, sample) in enumerate(taken):
                pair = _run_of(session, step, sample, model), _run_of(rival, step, sample, model)
                for number in range(settings.repeats + 1):
                    of_original, own = _timed(pair[0]), _timed(pair[1])
                    if number:
                        if variant.name != ORIGINAL:
                            bases.setdefault((place, variant.name), []).append(of_original)
                        spent.setdefault((place, variant.name), []).append(own)
                        spent.setdefault((place, ORIGINAL), []).append(of_original)
                    steps.advance(f"{variant.name}, {step}", 2)
                del pair  # which has both sessions
            del rival
            give_memory_back()
        del session
        give_memory_back()
        for place, (step, sample) in enumerate(taken):
            for variant in found:
                runs = spent[place, variant.name]
                base = statistics.median(cpu for cpu, _ in bases.get((place, variant.name), runs))
                cpu, elapsed = (statistics.median(one[k] for one in runs) for k in (0, 1))
                p99 = sorted(wall for _, wall in runs)[min(len(runs) - 1, int(0.99 * len(runs)))]
                peak = None
                if measured:
                    shared = None if step.capacity is None else shared_buffers(model)
                    peak = OneRun(variant.path, variant.native, sample, shared, run).peak_memory()
                    steps.advance(f"memory of {variant.name}, {step}")
                result.append(Timing(variant.name, step, cpu * 1e3, elapsed * 1e3, p99 * 1e3, base / cpu, peak))
    if refused is not None and not result:
        raise refused
    return result, missing


def _run_of(session: Session, step: Step, sample: Sample, model: ir.Model) -> Callable[[], object]:
    """What runs a step once; its caches are one buffer each where it has room for more."""
    if step.capacity is None:
        return lambda: session.run(sample)
    return session.bound(sample, shared_buffers(model))


_Spent: TypeAlias = tuple[float, float]
"""CPU and elapsed time of a run, seconds."""


def _timed(run: Callable[[], object]) -> _Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall
