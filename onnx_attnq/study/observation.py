"""Stream the attention probabilities of a model through onnxruntime into a `Study`.

The model is cut after the sites that are being looked at; as many sites share a run as their arrays fit
into a memory budget, and nothing is kept of a run but its statistics.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.counted import counted
from onnx_attnq.errors import InvalidData, NothingToRewrite
from onnx_attnq.find import AttentionSite
from onnx_attnq.graph import Dataflow, dtype_of, probe
from onnx_attnq.inputs import Sample
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import numerics
from onnx_attnq.study import attention_layout
from onnx_attnq.study.model_study import Example, Study
from onnx_attnq.study.probability_statistics import measure
from onnx_attnq.study.settings import StudySettings
from onnx_attnq.study.site_statistics import SiteStats

EXAMPLE_TOKENS: Final = 40
"""Tokens of the example: as many as can be read as labels of an attention map."""

_FLOAT_PRODUCTS: Final = frozenset({"MatMul", "Einsum", "Gemm", "FusedMatMul", "TransposeMatMul"})


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a study comes from, for the record.

    Attributes:
        model: File name of the model.
        sha256: Of that file.
        data: The inputs, in words.
    """

    model: str
    sha256: str
    data: str


def observe(
    model: ir.Model,
    sites: Sequence[AttentionSite],
    samples: Sequence[Sample],
    source: Source,
    *,
    settings: StudySettings = StudySettings(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> Study:
    """The statistics of every site over the samples.

    Padding (the inputs with ``mask`` in their name), masked and causally masked positions are left out; see
    `attention_layout.valid_positions`.

    Args:
        model: The model that ``sites`` were found in. Not changed.
        sites: What to observe.
        samples: Inputs; batches of any size, of different lengths.
        source: What the study is called.
        settings: Schemes, separators and labels; its patterns are not looked at.
        run: How to run the model.
        progress: Called after each run.

    Raises:
        NothingToRewrite: No sites.
        InvalidData: No samples, or no sample in which a site was run.
    """
    if not sites:
        raise NothingToRewrite(f"{source.model} has no attention to analyze")
    if not samples:
        raise InvalidData("there are no samples to analyze with")
    observed = _Run(samples, settings)
    observed.failed = {
        site.id: "its probabilities are 8-bit integers" for site in sites if site.op_type == "QLinearSoftmax"
    }
    flow = Dataflow(model)
    taps = [_Tap.of(site, flow) for site in sites if site.id not in observed.failed]
    group = 1  # how large the arrays are is not known before the first run
    done = 0
    runs = Steps(0, progress)
    while done < len(taps):
        chosen = _of_one_scope(taps[done : done + group])
        left = len(taps) - done - len(chosen)
        for sample, largest in enumerate(observed.add_group(model, chosen, run)):
            group = max(1, run.memory * len(chosen) // max(1, largest))
            runs.total = runs.done + len(samples) - sample + len(samples) * -(-left // group)
            runs.advance(chosen[0].site.id if len(chosen) == 1 else counted(len(chosen), "site"))
        done += len(chosen)
    return observed.study(source, taps)


@dataclasses.dataclass(frozen=True)
class _Tap:
    """The values to look at for one site, by name.

    ``probabilities`` are the scores instead where the model computes in 16 bits, in which small
    probabilities are 0 as if they had been masked. ``loops`` is the number of loops around it: each adds an axis.
    ``value`` and ``context`` are None for integer products.
    """

    site: AttentionSite
    probabilities: str
    are_scores: bool
    loops: int
    value: str | None
    context: str | None

    @classmethod
    def of(cls, site: AttentionSite, flow: Dataflow) -> _Tap:
        narrow = dtype_of(site.probabilities) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        first = site.scores if narrow and site.scores is not None else site.probabilities
        product = site.value_products[0]
        together = product.node.graph is first.graph  # not where probabilities leave a branch before their product
        is_float = together and product.node.op_type in _FLOAT_PRODUCTS
        return cls(
            site,
            str(first.name),
            first is site.scores,
            flow.loops_around(first),
            product.other.name if is_float else None,
            product.node.outputs[0].name if is_float else None,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.probabilities, self.value, self.context) if name is not None)


def _of_one_scope(taps: Sequence[_Tap]) -> list[_Tap]:
    """The first of them, and those after it that are in the same graph: one run looks into one graph."""
    scope = taps[0].site.scope
    return list(itertools.takewhile(lambda tap: tap.site.scope == scope, taps))


class _Run:
    """What has been gathered so far."""

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: StudySettings,
    ) -> None:
        self.samples = samples
        self.schemes = settings.schemes
        self.separator_ids = list(settings.separator_ids)
        self.labels = settings.labels or {}
        self.stats: dict[str, SiteStats] = {}
        self.failed: dict[str, str] = {}
        self.maps: dict[str, npt.NDArray[np.float64]] = {}
        self.tokens: tuple[str, ...] = ()

    def add_group(self, model: ir.Model, taps: Sequence[_Tap], run: RunSettings) -> Iterator[int]:
        """Measure some sites of one scope on every sample; gives the bytes of the largest run after each.

        A method of its own, so that session and arrays are gone before the next group has its own.
        """
        names = list(dict.fromkeys(name for tap in taps for name in tap.names))
        session = Session(probe(model, names, taps[0].site.scope), run)
        largest = 0
        for index, sample in enumerate(self.samples):
            values = session.run(sample)
            # A value of a subgraph comes out under another name, but in its place.
            arrays = dict(zip(names, (values[name] for name in session.outputs), strict=True))
            largest = max(largest, sum(array.nbytes for array in arrays.values()))
            for tap in taps:
                self.add(tap, arrays, index)
            yield largest

    def add(self, tap: _Tap, arrays: Mapping[str, npt.NDArray[Any]], index: int) -> None:
        """Measure one site on one sample."""
        site, sample = tap.site, self.samples[index]
        array = _unstacked(arrays[tap.probabilities], tap.loops)
        if array.size == 0 or site.id in self.failed:
            return  # a branch that was not taken, or a past of length 0
        if tap.are_scores:
            array = numerics.softmax(array, site.axis)
        p = attention_layout.heads_first(
            attention_layout.fold_probabilities(array, site.axis, attention_layout.batch_of(sample)), sample
        )
        valid = attention_layout.valid_positions(p, sample)
        stats = measure(
            site.id,
            p,
            valid,
            self.schemes,
            value=self._value(tap, arrays, p, valid),
            separators=self._separators(sample, p.shape),
        )
        before = self.stats.get(site.id)
        if before is not None and before.heads != stats.heads:
            self.failed[site.id] = f"it has {before.heads} heads on one sample and {stats.heads} on another"
            return
        self.stats[site.id] = stats if before is None else before.merge(stats)
        if site.id not in self.maps and index == 0:
            self._keep_example(site.id, p, valid, sample)

    def study(self, source: Source, taps: Sequence[_Tap]) -> Study:
        """The result."""
        for tap in taps:
            if tap.site.id not in self.stats:
                self.failed.setdefault(tap.site.id, "it was not run on any sample")
        observed = tuple(self.stats[tap.site.id] for tap in taps if tap.site.id not in self.failed)
        if not observed:
            site, reason = next(iter(self.failed.items()))
            raise InvalidData(f"no attention could be observed; site {site!r}: {reason}")
        return Study(
            model=source.model,
            sha256=source.sha256,
            data=source.data,
            samples=len(self.samples),
            sites=observed,
            unobserved=self.failed,
            example=Example(self.tokens, self.maps) if self.maps else None,
        )

    def _value(
        self, tap: _Tap, arrays: Mapping[str, npt.NDArray[Any]], p: npt.NDArray[Any], valid: npt.NDArray[np.bool_]
    ) -> npt.NDArray[Any] | None:
        """V, if the probabilities times V are what the model computed."""
        product = tap.site.value_products[0]
        if tap.value is None or tap.context is None:
            return None
        value = attention_layout.fold_value(arrays[tap.value], product, p)
        context = attention_layout.fold_context(arrays[tap.context], product, p.shape[0], p.shape[1])
        if value is None or context is None or not attention_layout.agrees(p, value, context, valid):
            return None
        return value

    def _separators(self, sample: Sample, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        ids = sample.get("input_ids")
        if not self.separator_ids or ids is None or ids.shape != (shape[0], shape[3]):
            return None
        return np.isin(ids, self.separator_ids)

    def _keep_example(self, site: str, p: npt.NDArray[Any], valid: npt.NDArray[np.bool_], sample: Sample) -> None:
        queries = np.flatnonzero(valid[0].any(axis=(0, 2)))[:EXAMPLE_TOKENS]
        keys = np.flatnonzero(valid[0].any(axis=(0, 1)))[:EXAMPLE_TOKENS]
        shown = np.where(valid[0], p[0], 0.0)[:, queries][:, :, keys]
        self.maps[site] = shown.astype(np.float32).astype(np.float64)
        if self.tokens:
            return
        ids = sample.get("input_ids")
        if ids is not None and ids.ndim == 2 and ids.shape[1] == p.shape[3]:
            self.tokens = tuple(self.labels.get(int(token), str(token)) for token in ids[0, keys])
        else:
            self.tokens = tuple(str(key) for key in keys)


def _unstacked(array: npt.NDArray[Any], loops: int) -> npt.NDArray[Any]:
    """The iterations of loops, which come first, taken together with the batch."""
    return array.reshape(-1, *array.shape[loops + 1 :]) if loops and array.size else array


__all__ = ["EXAMPLE_TOKENS", "Source", "observe"]
