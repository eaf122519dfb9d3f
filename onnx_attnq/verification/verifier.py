"""Verify: do two models compute the same, and does a rewritten one do what its record says?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.inputs import Sample, attention_mask_of
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.rewriting import DOMAIN, RewrittenSite, read_record
from onnx_attnq.run import RunSettings, Session, native_library
from onnx_attnq.verification.codes import CodeCheck, check_rows
from onnx_attnq.verification.interface import check_interface
from onnx_attnq.verification.limits import ATOL, RTOL, Limits
from onnx_attnq.verification.outputs import OutputComparison, OutputDeviation, is_distribution
from onnx_attnq.verification.site_rows import SiteRows

STANDARD = "standard"
NATIVE = "native"


@dataclasses.dataclass(frozen=True)
class VariantCheck:
    """What one way of running the second model gave.

    Attributes:
        outputs: By name, how far they are from the first model's.
        sites: For a rewritten model, each site's codes compared with numerics.py.
    """

    outputs: Mapping[str, OutputDeviation]
    sites: Mapping[str, CodeCheck]

    def failures(self, limits: Limits) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        wrong = [
            f"site {name!r}: {check.errors} of {check.codes} codes are wrong, {check.disagreements} more are rounded"
            for name, check in self.sites.items()
            if not check.passed
        ]
        return (*wrong, *limits.violations(self.outputs))

    @property
    def pruned(self) -> dict[str, float]:
        """For each site, the share of values above zero that became zero."""
        return {name: c.pruned / c.positive if c.positive else 0.0 for name, c in self.sites.items()}

    @property
    def pruned_share(self) -> float:
        """The same over all sites."""
        positive = sum(check.positive for check in self.sites.values())
        return sum(check.pruned for check in self.sites.values()) / positive if positive else 0.0

    @property
    def codes(self) -> CodeCheck:
        """All sites together."""
        total = CodeCheck()
        for check in self.sites.values():
            total = total.merge(check)
        return total


@dataclasses.dataclass(frozen=True)
class Verification:
    """What separates two models.

    Attributes:
        runs: Of the second model on ``standard`` ops; and on ``native`` kernels, where it has ops for them and the
            library was built.
        limits: What was asked of the outputs.
        samples: Number of samples.
    """

    runs: Mapping[str, VariantCheck]
    limits: Limits
    samples: int

    @property
    def standard(self) -> VariantCheck:
        """The run on standard ops, which any runtime can do."""
        return self.runs[STANDARD]

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        return tuple(f"{way}: {text}" for way, run in self.runs.items() for text in run.failures(self.limits))

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The JSON form that ``onnx-attnq verify`` writes."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "samples": self.samples,
            "rtol": self.limits.rtol,
            "atol": self.limits.atol,
            "tolerances": [str(limit) for limit in self.limits.figures],
            "runs": {
                way: {
                    "outputs": {name: output.to_json() for name, output in run.outputs.items()},
                    "sites": {name: dataclasses.asdict(check) for name, check in run.sites.items()},
                }
                for way, run in self.runs.items()
            },
        }


def verify(
    a: ir.Model,
    b: ir.Model,
    samples: Sequence[Sample],
    *,
    limits: Limits = Limits(),
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> Verification:
    """Run both models on the samples and compare every output; check the codes of a rewritten one.

    A rewritten ``b`` is run on the standard ops that it carries, and with the native library where that was built.
    Without limits, two models must agree within `RTOL` and `ATOL`; a rewritten ``b`` deviates on purpose, so it
    must only be implemented right, and have no NaN or infinity where the original has none, nor the other way round.

    Args:
        a: What should be.
        b: What is; a rewritten model as loaded from its file.
        samples: Inputs; real ones say more than generated ones.
        limits: What is asked of the outputs.
        run: Threads and custom ops.
        progress: Called after each step.

    Raises:
        InvalidModel: The models have different inputs or outputs, or onnxruntime does not take one.
        InvalidScheme: A limit on an output that the models do not have.
    """
    check_interface(a, b)
    record = read_record(b)
    if record is None and not limits:
        limits = Limits(rtol=RTOL, atol=ATOL)
    limits.check(a)
    sites = () if record is None else record.sites
    ways = [STANDARD]
    if DOMAIN in b.graph.opset_imports and native_library() is not None:
        ways.append(NATIVE)
    steps = Steps(1 + len(ways) * (1 + len(sites)), progress)
    # One model after the other: free the first session before the second is made.
    session = Session(a, run)
    expected = [session.run(sample) for sample in samples]
    del session
    distributions = {value.name for value in a.graph.outputs if is_distribution(value)}
    steps.advance("outputs of A")
    runs: dict[str, VariantCheck] = {}
    for way in ways:
        native = way == NATIVE
        outputs = {
            str(v.name): OutputComparison(v.name in distributions, limits.rtol, limits.atol) for v in a.graph.outputs
        }
        session = Session(b, run, native=native)
        for sample, before in zip(samples, expected, strict=True):
            for name, array in session.run(sample).items():
                outputs[name].add(before[name], array, sample)
        del session
        steps.advance(f"outputs of B, {way}")
        checks: dict[str, CodeCheck] = {}
        for site in sites:
            checks[site.id] = _check_site(b, site, samples, run, native)
            steps.advance(f"{site.id}, {way}")
        runs[way] = VariantCheck({name: output.result() for name, output in outputs.items()}, checks)
    return Verification(runs, limits, len(samples))


def _check_site(
    model: ir.Model, site: RewrittenSite, samples: Sequence[Sample], run: RunSettings, native: bool
) -> CodeCheck:
    """Compare the codes of one site with numerics.py, on a model that is cut off behind the site."""
    site_rows = SiteRows(model, site, run, native=native)
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


def _real_rows(rows: tuple[int, ...], sample: Sample) -> npt.NDArray[np.bool_] | None:
    """Which rows of probabilities, shape (B, ..., L_q) or (B * H, L_q), belong to real tokens."""
    mask = attention_mask_of(sample)
    if mask is None or mask.ndim != 2 or len(rows) < 2 or rows[-1] != mask.shape[1] or rows[0] % mask.shape[0]:
        return None
    per_row = np.repeat(mask, rows[0] // mask.shape[0], axis=0)
    return np.broadcast_to(per_row.reshape(rows[0], *(1,) * (len(rows) - 2), rows[-1]), rows)


__all__ = ["NATIVE", "STANDARD", "VariantCheck", "Verification", "verify"]
