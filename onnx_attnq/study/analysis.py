"""The study of a model file in one call: load, find, observe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnx_attnq.errors import AttnqError, NothingToRewrite
from onnx_attnq.find import AttentionSite, expose, find_sites, left_out
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load, sha256
from onnx_attnq.progress import Progress, no_progress
from onnx_attnq.rewriting import refuse_rewritten
from onnx_attnq.run import RunSettings
from onnx_attnq.study.model_study import Study
from onnx_attnq.study.observation import Source, observe
from onnx_attnq.study.settings import StudySettings


def analyze(
    source: str | os.PathLike[str],
    samples: Sequence[Sample],
    data: str,
    *,
    settings: StudySettings = StudySettings(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> Study:
    """Ji et al. 2021's study of attention values, for any ONNX model.

    Args:
        source: The model; never changed.
        samples: Inputs, as of `inputs.load_samples`.
        data: What the inputs are, in a few words, for the record.
        settings: What to study.
        run: How to run the model.
        progress: Called after each run.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    path = Path(source)
    model = load(path)
    try:
        refuse_rewritten(model)
    except AttnqError as error:
        raise type(error)(f"{path}: {error}") from None
    found = find_sites(expose(model))
    if not found.sites:
        reasons = [f"; {r.op_type} {r.node!r}: {r.reason}" for r in found.rejections[:1]]
        raise NothingToRewrite(f"{path}: no attention found{''.join(reasons)}")
    return observe(
        model,
        _choose(found.sites, settings.include, settings.exclude),
        samples,
        Source(path.name, sha256(path), data),
        settings=settings,
        run=run,
        progress=progress,
    )


def _choose(
    sites: Sequence[AttentionSite], include: Sequence[str], exclude: Sequence[str]
) -> tuple[AttentionSite, ...]:
    left = left_out([site.id for site in sites], include, exclude)
    kept = tuple(site for site in sites if site.id not in left)
    if not kept:
        raise NothingToRewrite("--include and --exclude leave no site")
    return kept


__all__ = ["analyze"]
