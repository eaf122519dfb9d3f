"""How much of its attention a compressed model keeps on the examples of a task: share pruned, and mass of the rows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.evaluate.text_model import TextModel
from onnx_attnq.inputs import Sample
from onnx_attnq.model import load
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.rewriting import Record, RewrittenSite, read_record
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, for_heads, numerics
from onnx_attnq.verification import Rows, SiteRows, site_groups

SAMPLES: Final = 32
"""Runs that are looked at; the figures are means over thousands of rows each."""
_TINY: Final = float(np.finfo(np.float32).tiny)  # a probability below this belongs to a masked key


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionFigures:
    """Means over all sites, heads and rows.

    Attributes:
        pruned: Share of the attention values above zero that became zero.
        kept_mass: Share of the softmax's mass on the values that were kept; 1 when nothing was pruned.
        row_mass: What a row of quantized values sums to; 1 when rows are normalized.
        rows: Number of rows looked at.
    """

    pruned: float
    kept_mass: float
    row_mass: float
    rows: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)


def attention_figures(
    path: str | os.PathLike[str],
    samples: Iterable[Sample],
    *,
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> AttentionFigures:
    """Look into a compressed model while it runs.

    Args:
        path: A model that this tool has rewritten.
        samples: What it is fed, without padding.
        run: Threads and custom ops.
        progress: Called after each run.

    Raises:
        InvalidModel: The model carries no record of a rewrite.
    """
    model = load(path)
    record = read_record(model)
    if record is None:
        raise InvalidModel(f"{path}: carries no record of a rewrite; share pruned and row mass are not known")
    samples = tuple(samples)
    positive = pruned = rows = 0
    kept_mass = row_mass = 0.0
    for site, found in _rows(model, record, samples, run, progress):
        result = found.result.astype(np.float64)
        p = numerics.softmax(found.source) if found.is_scores else found.source
        kept = for_heads(site.scheme, _kept, p)  # a pruned key may still have a share of what was pruned
        attended = p > _TINY
        positive += int(attended.sum())
        pruned += int((attended & ~kept).sum())
        rows += result.size // result.shape[-1]
        kept_mass += float(p[kept].sum())
        row_mass += float(result.sum())
    if rows == 0:
        raise InvalidModel(f"{path}: no rows of attention were seen")
    return AttentionFigures(pruned / positive, kept_mass / rows, row_mass / rows, rows)


def _rows(
    model: ir.Model, record: Record, samples: Sequence[Sample], run: RunSettings, progress: Progress
) -> Iterator[tuple[RewrittenSite, Rows]]:
    """The rows of all sites, from as few runs as the memory allows."""
    groups = site_groups(model, record.sites, samples, run.memory)
    runs = Steps(len(samples) * sum(group.runs for group in groups), progress)
    for group in groups:
        site_rows = SiteRows(model, group.sites, run, queries=group.queries)
        for sample in samples:
            found = site_rows.run(sample)[1]
            for site in group.sites:
                for rows in found.pop(site.id):
                    yield site, rows
            runs.advance("attention", group.runs)


def _kept(p: npt.NDArray[np.float64], scheme: QuantScheme) -> npt.NDArray[np.bool_]:
    return np.asarray(numerics.codes(numerics.relative(p, scheme), scheme) > 0)


class Recording:
    """A model that remembers the first samples that a task fed it, and one text of a batch.

    The texts of a batch are copies that differ in the token that is masked; their attention is nearly the same.

    >>> model = TextModel(lambda sample: {}, (), None)
    >>> recording = Recording(model, 1)
    >>> _ = recording.model.run({"input_ids": [[1, 2]]})
    >>> len(recording.samples)
    1
    """

    def __init__(self, model: TextModel, count: int = SAMPLES) -> None:
        self.samples: list[Sample] = []
        self._session, self._count = model.session, count
        self.model = dataclasses.replace(model, session=self._run)

    def _run(self, sample: Sample) -> Any:
        if len(self.samples) < self._count:
            self.samples.append({name: array[:1] for name, array in sample.items()})
        return self._session(sample)


__all__ = ["SAMPLES", "AttentionFigures", "Recording", "attention_figures"]
