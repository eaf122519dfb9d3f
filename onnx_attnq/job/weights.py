"""Weights in 8 or 4 bits, by onnxruntime's own quantizers, in front of the rewriting of attention.

In this order, because the quantizers take plain ops apart and know no model-local functions; and because they leave the
softmax, and the products of what depends on inputs, in floating point.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from onnx_attnq.inputs import MadeUp, Sample
from onnx_attnq.job.compression import Compression, failed_path, made_up_for, output_of, put_in_place, rewritten
from onnx_attnq.model import check_output, load, save, size_on_disk
from onnx_attnq.progress import Parts, Progress, Steps, no_progress
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import RunSettings, Session, cpu_times, native_library, quantize_weights
from onnx_attnq.verification import Limits, Verification, VerifySettings, prove_rewrite, verify

ROUNDS: Final = 5
"""Timed runs of each model, in turn, after one that is not timed."""


@dataclasses.dataclass(frozen=True)
class WeightCompression:
    """The result of quantizing weights and attention.

    Attributes:
        compression: Of the attention; its verification compares with the original, weights included.
        weights: The type of the weights, ``int8`` or ``int4``.
        size: Bytes of the original and of the result, external data included.
        cpu_ms: Median CPU time of a run of the original and of the result; None where no model was run.
    """

    compression: Compression
    weights: str
    size: tuple[int, int]
    cpu_ms: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """The fields that `compression_json` does not have."""
        return {
            "type": self.weights,
            "size": list(self.size),
            "cpu_ms": None if self.cpu_ms is None else list(self.cpu_ms),
        }


def compress_weights(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    weights: str,
    *,
    rewriting: RewriteSettings = RewriteSettings(),
    verification: VerifySettings | None = VerifySettings(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> WeightCompression:
    """Quantize the weights of a model, then its attention, and verify the whole against the original.

    Args:
        source: The model; never changed.
        output: Where to write; beside the source as NAME.attnq.onnx if None.
        weights: ``int8`` or ``int4``; see `quantize_weights`.
        rewriting: What to rewrite, and into what; a plan has to be made for the model with quantized weights.
        verification: How to verify; None to run no model.
        run: How to run the models.
        progress: Called after each run.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    source = Path(source)
    target = output_of(source, output)
    original = load(source)  # a damaged model, and one whose data leads out of its folder, gets no further
    # What is saved is made from a copy, and does not know the files of the source.
    check_output(original, target)
    if verification is not None and verification.keep_failed:
        check_output(original, failed_path(target))
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / source.name
        quantize_weights(source, quantized, weights)
        before, done = rewritten(quantized, rewriting, source)
        if verification is None:
            save(done.model, target)
            result = done.result(source, target)
            return WeightCompression(result, weights, (size_on_disk(original), size_on_disk(load(target))), None)
        parts = Parts(progress)
        made_up = made_up_for(original, verification, run, parts) if verification.samples is None else None
        given = made_up or MadeUp(verification.samples or ())
        samples = given.samples
        sizes: list[int] = []
        times: list[tuple[float, float]] = []

        def check(trial: Path) -> Verification:
            """Codes and outputs against the original; what the rewrite does, against the model with other weights."""
            model = load(trial)
            limits = verification.limits
            if done.record is None and not limits:
                limits = Limits(atol=math.inf)  # other weights give other outputs, also where all attention stays
            timed, proved = 2 * (ROUNDS + 1), 2 * len(samples) * (done.record is not None)
            checking = parts.next(after=lambda _: timed + proved)
            found = verify(original, model, samples, expected=given.outputs, limits=limits, run=run, progress=checking)
            more = Steps(timed + proved, parts.next())
            sizes.append(size_on_disk(model))
            times.append(_times(source, trial, samples[0], run))
            more.advance("timed runs", timed)
            if done.record is None:
                return found
            session = Session(before, run, frugal=True)
            expected = [session.run(sample) for sample in samples]
            proof = prove_rewrite(before, model, done.record, samples, expected, run)
            more.advance("identity in place of the scheme", proved)
            return dataclasses.replace(found, rewrite=proof, other_original=False)

        written, checked = put_in_place(done.model, target, check, keep_failed=verification.keep_failed)
    result = done.result(source, written, checked, made_up)
    return WeightCompression(result, weights, (size_on_disk(original), sizes[0]), times[0])


def _times(source: Path, target: Path, sample: Sample, run: RunSettings) -> tuple[float, float]:
    """Median CPU time of one run of each model, milliseconds."""
    sessions = (Session(source, run), Session(target, run, native=native_library() is not None))
    before, after = cpu_times(sessions, sample, ROUNDS)
    return 1e3 * before, 1e3 * after


__all__ = ["WeightCompression", "compress_weights"]
