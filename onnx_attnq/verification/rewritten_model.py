"""Verify a rewritten model in onnxruntime: is it implemented right, and what did it do to the model?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel, InvalidScheme
from onnx_attnq.inputs import Sample, attention_mask_of
from onnx_attnq.rewriting import RewrittenSite, read_record
from onnx_attnq.run import Session
from onnx_attnq.verification.codes import CodeCheck, check_rows
from onnx_attnq.verification.deviation import HIGHER_IS_BETTER, METRICS, Deviation, compare
from onnx_attnq.verification.site_rows import SiteRows

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on a figure of every output's deviation.

    Attributes:
        metric: One of `deviation.METRICS`.
        value: Upper bound; lower bound for cosine and top1_agreement.
    """

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """METRIC=VALUE.

        >>> Limit.parse("cosine=0.99")
        Limit(metric='cosine', value=0.99)
        """
        metric, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals or metric not in METRICS or math.isnan(number):
            raise InvalidScheme(f"{text!r} is no limit; write METRIC=VALUE with METRIC one of {', '.join(METRICS)}")
        return cls(metric, number)

    def is_met(self, deviation: Deviation) -> bool:
        """Whether a deviation is within the bound; a figure that the output does not have always is."""
        figure = getattr(deviation, self.metric)
        if figure is None:
            return True
        return bool(figure >= self.value if self.metric in HIGHER_IS_BETTER else figure <= self.value)


@dataclasses.dataclass(frozen=True)
class Verification:
    """The answer to both questions.

    Attributes:
        sites: For each site, codes compared with numerics.py.
        deviation: For each output, how far the rewritten model is from the original.
        limits: Bounds that were asked for.
        samples: Number of samples.
    """

    sites: Mapping[str, CodeCheck]
    deviation: Mapping[str, Deviation]
    limits: tuple[Limit, ...]
    samples: int

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        found = [
            f"site {name!r}: {check.errors} of {check.codes} codes are wrong, {check.disagreements} more are rounded"
            for name, check in self.sites.items()
            if not check.passed
        ]
        for name, deviation in self.deviation.items():
            if deviation.new_nan:
                found.append(f"output {name!r}: {deviation.new_nan} values became NaN or infinite")
            for limit in self.limits:
                if not limit.is_met(deviation):
                    sign = "below" if limit.metric in HIGHER_IS_BETTER else "above"
                    figure = getattr(deviation, limit.metric)
                    found.append(f"output {name!r}: {limit.metric} is {figure:.6g}, {sign} {limit.value:g}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    @property
    def pruned(self) -> dict[str, float]:
        """For each site, the share of values above zero that became zero."""
        return {name: c.pruned / c.positive if c.positive else 0.0 for name, c in self.sites.items()}

    @property
    def pruned_share(self) -> float:
        """The same over all sites."""
        positive = sum(check.positive for check in self.sites.values())
        return sum(check.pruned for check in self.sites.values()) / positive if positive else 0.0

    def to_json(self) -> dict[str, Any]:
        """The JSON form that the command line writes."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "samples": self.samples,
            "implementation": {
                "sites_checked": len(self.sites),
                "codes_checked": sum(check.codes for check in self.sites.values()),
                "disagreements": sum(check.disagreements for check in self.sites.values()),
                "errors": sum(check.errors for check in self.sites.values()),
            },
            "deviation": {name: deviation.to_json() for name, deviation in self.deviation.items()},
            "pruned": self.pruned,
        }


def verify(
    original: ir.Model,
    rewritten: ir.Model,
    samples: Sequence[Sample],
    *,
    limits: Sequence[Limit] = (),
    threads: int | None = None,
    native: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Run both models on the samples and compare.

    Sites are checked one at a time, on a model cut off behind the site, so that no more than one layer's
    probabilities are in memory.

    Args:
        original: The model before.
        rewritten: The model after, as loaded from its file.
        samples: Inputs; real ones say more than generated ones.
        limits: Bounds on the deviation of every output.
        threads: Threads inside an op.
        native: Run the native library's kernels in place of the ops' standard bodies.
        progress: Called after each step.

    Raises:
        InvalidModel: ``rewritten`` was not rewritten by this tool, or onnxruntime does not take it.
    """
    record = read_record(rewritten)
    if record is None:
        raise InvalidModel("the model carries no record of a rewrite; there is nothing to verify")
    steps, done = len(record.sites) + 1, 0

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, steps)

    deviation = _deviations(original, rewritten, samples, threads, native)
    advance("outputs")
    checks: dict[str, CodeCheck] = {}
    for site in record.sites:
        checks[site.id] = check_site(rewritten, site, samples, threads, native)
        advance(site.id)
    return Verification(checks, deviation, tuple(limits), len(samples))


def check_site(
    model: ir.Model, site: RewrittenSite, samples: Sequence[Sample], threads: int | None, native: bool
) -> CodeCheck:
    """Compare the codes of one site with numerics.py, on a model that is cut off behind the site."""
    site_rows = SiteRows(model, site, threads, native=native)
    total = CodeCheck()
    for sample in samples:
        for rows in site_rows.run(sample):
            found = check_rows(
                rows.source,
                rows.result,
                site.scheme,
                is_scores=rows.is_scores,
                counted=_real_rows(rows.result.shape[:-1], sample),
                score_error=rows.score_error,
            )
            total = total.merge(found).merge(CodeCheck(errors=rows.wrong))
    return total


def _deviations(
    original: ir.Model, rewritten: ir.Model, samples: Sequence[Sample], threads: int | None, native: bool
) -> dict[str, Deviation]:
    # One model after the other: two sets of weights at a time would be one too many.
    session = Session(original, threads=threads)
    distributions = {value.name for value in original.graph.outputs if is_distribution(value)}
    expected = [session.run(sample) for sample in samples]
    del session
    session = Session(rewritten, threads=threads, native=native)
    result: dict[str, Deviation] = {}
    for sample, before in zip(samples, expected, strict=True):
        after = session.run(sample)
        for name, a in before.items():
            b = after[name]
            tokens = _real_tokens(a.shape, sample)
            if tokens is not None:
                a, b = a[tokens], b[tokens]
            found = compare(a, b, distribution=name in distributions)
            result[name] = result[name].merge(found) if name in result else found
    return result


def is_distribution(value: ir.Value) -> bool:
    """Whether an output's last axis holds logits or probabilities, by its name or the op that computes it."""
    node = value.producer()
    name = (value.name or "").lower()
    return "logit" in name or "prob" in name or (node is not None and node.op_type in ("Softmax", "LogSoftmax"))


def _real_tokens(shape: tuple[int, ...], sample: Sample) -> npt.NDArray[np.bool_] | None:
    """The mask of real tokens, if an output of this shape has one row for each token."""
    mask = attention_mask_of(sample)
    return mask if mask is not None and mask.ndim == 2 and shape[:2] == mask.shape else None


def _real_rows(rows: tuple[int, ...], sample: Sample) -> npt.NDArray[np.bool_] | None:
    """Which rows of probabilities, shape (B, ..., L_q) or (B * H, L_q), belong to real tokens."""
    mask = attention_mask_of(sample)
    if mask is None or mask.ndim != 2 or len(rows) < 2 or rows[-1] != mask.shape[1] or rows[0] % mask.shape[0]:
        return None
    per_row = np.repeat(mask, rows[0] // mask.shape[0], axis=0)
    return np.broadcast_to(per_row.reshape(rows[0], *(1,) * (len(rows) - 2), rows[-1]), rows)
