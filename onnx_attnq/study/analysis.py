"""The study of a model file in one call: load, find, observe."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from onnx_attnq.errors import AttnqError, NothingToRewrite
from onnx_attnq.find import AttentionSite, expose, find_sites, left_out
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load_mapped, sha256
from onnx_attnq.rewriting import refuse_rewritten
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.study.model_study import Study
from onnx_attnq.study.observation import MEMORY, Progress, Source, observe

DEFAULT_SCHEMES: Final = (preset(), preset(bits=2), preset("ji2021"), preset("ji2021", bits=2))
"""Ours and the paper's, at 3 and 2 bits."""


def analyze(
    source: str | os.PathLike[str],
    samples: Sequence[Sample],
    data: str,
    *,
    schemes: Sequence[QuantScheme] = DEFAULT_SCHEMES,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    separator_ids: Collection[int] = (),
    labels: Mapping[int, str] | None = None,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Study:
    """Ji et al. 2021's study of attention values, for any ONNX model.

    Args:
        source: The model; never changed.
        samples: Inputs, as of `inputs.load_samples`.
        data: What the inputs are, in a few words, for the record.
        schemes: What to quantize with.
        include: Shell patterns of the sites to observe; all if empty.
        exclude: Shell patterns of sites to leave out.
        separator_ids: Token ids of separators, for the attention to them.
        labels: Tokens by id, for the example.
        threads: Threads inside an op; None leaves it to onnxruntime.
        memory: Bytes of activations that a run may return.
        progress: Called after each run.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    path = Path(source)
    with tempfile.TemporaryDirectory(prefix="onnx-attnq-") as folder:
        model = load_mapped(path, Path(folder))
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
            _choose(found.sites, include, exclude),
            samples,
            schemes,
            Source(path.name, sha256(path), data),
            separator_ids=separator_ids,
            labels=labels,
            threads=threads,
            memory=memory,
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


__all__ = ["DEFAULT_SCHEMES", "analyze"]
