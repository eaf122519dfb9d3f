"""Tune, write and verify in one call, in the words of the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from onnx_attnq.errors import VerificationFailed
from onnx_attnq.inputs import Sample
from onnx_attnq.job import Compression, compress, output_of
from onnx_attnq.model import load
from onnx_attnq.progress import Parts, Progress, no_progress
from onnx_attnq.rewriting import RewriteSettings, load_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.tune.first_rows import first_rows
from onnx_attnq.tune.loss import Agreement, Loss
from onnx_attnq.tune.search import Goal
from onnx_attnq.tune.tuning import Effort, Tuner, Tuning
from onnx_attnq.verification import VerifySettings

SAMPLES: Final = 6
"""Number of inputs on which every head is measured with every candidate."""


@dataclasses.dataclass(frozen=True)
class TunedCompression:
    """The result of tuning and compressing a model.

    Attributes:
        tuning: The plan, and its losses on both halves of the data.
        plan: Its file.
        compression: The model that was written, and its verification.
    """

    tuning: Tuning
    plan: Path
    compression: Compression


def compress_tuned(
    source: str | os.PathLike[str],
    samples: Sequence[Sample],
    output: str | os.PathLike[str] | None = None,
    *,
    goal: Goal = Goal(),
    loss: Loss | None = None,
    effort: Effort = Effort(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> TunedCompression:
    """Choose a scheme for each head, so that as much is pruned as a loss allows; write the model, and verify it.

    The plan is written beside the output, as NAME.plan.json. What an earlier call with the same model, samples and
    candidates has measured is used again, so a call that was interrupted can be repeated.

    Args:
        source: The model; never changed.
        samples: Inputs. Every other one chooses the plan and the others confirm it; the first of those that choose are
            those that the model is verified on, and their `first_rows` those that heads are measured on.
        output: Where to write; beside the source as NAME.attnq.onnx if None.
        goal: What may be lost, what has to be pruned, and what to be small in.
        loss: What is lost; `Agreement` with the original on the samples if None.
        effort: How long to work, and on how many processors.
        run: How to run the models.
        progress: Called after each measurement, then after each run of the verification.

    Raises:
        VerificationFailed: No plan that was measured is within the goal; the nearest one is in the plan's file.
        AttnqError: As by `compress`, and of the data.
    """
    source = Path(source)
    target = output_of(source, output)
    plan = target.with_suffix(".plan.json")
    used = tuple(samples[::2][:SAMPLES])  # of those that `Agreement` calibrates with
    wanted = loss or Agreement(source, samples, run)
    parts = Parts(progress)
    of_heads = first_rows(load(source), used)
    found = Tuner(source, of_heads, wanted, goal, effort).run(plan, resume=True, progress=parts.next())
    if not found.accepted:
        raise VerificationFailed(f"{source}: no plan is within the goal; the nearest one is {plan}")
    rewriting = RewriteSettings(plan=load_plan(plan))
    verification = VerifySettings(used)
    done = compress(source, target, rewriting=rewriting, verification=verification, run=run, progress=parts.next())
    return TunedCompression(found, plan, done)


__all__ = ["SAMPLES", "TunedCompression", "compress_tuned"]
