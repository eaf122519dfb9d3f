"""Verify: do two models compute the same, and does a rewritten one do what its record says?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.inputs import Sample, attention_mask_of, with_defined_rows
from onnx_attnq.model import sharing_weights, structure_hash
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.rewriting import DOMAIN, RewrittenSite, read_record
from onnx_attnq.run import Arrays, RunSettings, Session, native_library
from onnx_attnq.verification.codes import CodeCheck, check_rows
from onnx_attnq.verification.interface import check_interface
from onnx_attnq.verification.limits import ATOL, RTOL, Limits
from onnx_attnq.verification.outputs import OutputComparison, OutputDeviation, is_distribution, token_masks
from onnx_attnq.verification.random_ops import seed_note, with_seeds
from onnx_attnq.verification.rewrite_proof import RewriteProof, prove_rewrite
from onnx_attnq.verification.site_groups import SiteGroup, site_groups
from onnx_attnq.verification.site_rows import Rows, SiteRows

STANDARD = "standard"
NATIVE = "native"

_OTHER: Final = "B says that it was made from another model than A"


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
        if self.sites and not self.codes.codes:
            wrong.append("no site ran on these samples: no code was checked")
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
    """How far two models are apart.

    Attributes:
        runs: Of the second model on ``standard`` ops; and on ``native`` kernels, where it has ops for them and the
            library was built.
        limits: What was asked of the outputs.
        samples: Number of samples.
        rewrite: What the rewrite does without quantization; None for a model that was not made from the first.
        other_original: The second model says that it was made from another one than the first.
        random_ops: Number of ops that draw random numbers; they got the same seeds in both models.
    """

    runs: Mapping[str, VariantCheck]
    limits: Limits
    samples: int
    rewrite: RewriteProof | None = None
    random_ops: int = 0
    other_original: bool = False

    @property
    def standard(self) -> VariantCheck:
        """The run on standard ops, which any runtime can do."""
        return self.runs[STANDARD]

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        found = [f"{way}: {text}" for way, run in self.runs.items() for text in run.failures(self.limits)]
        return (*self.failures_of_rewrite, *found)

    @property
    def failures_of_rewrite(self) -> tuple[str, ...]:
        """What did not pass, whatever way the second model is run."""
        if self.other_original and not self.limits:
            return (f"{_OTHER}: give a limit on how far it may be off, or the model that it was made from",)
        return () if self.rewrite is None else self.rewrite.failures

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of the result, a sentence each."""
        notes = []
        run = self.standard
        if run.codes.codes and not run.codes.positive:
            notes.append("the samples prove little: every key is hidden, or every row is NaN")
        elif run.sites and run.codes.telling * 2 < run.codes.rows:
            share = 1.0 - run.codes.telling / run.codes.rows
            notes.append(f"the samples prove little: {share:.0%} of the rows are uniform, one-hot or NaN")
        for name, check in run.sites.items():
            if not check.codes:
                notes.append(f"site {name!r} did not run on these samples: nothing of it was checked")
            if check.not_finite:
                share = check.not_finite / check.codes
                notes.append(f"site {name!r}: {share:.1%} of the probabilities are NaN, before and after")
        if self.rewrite is not None and self.rewrite.missing:
            notes.append(f"it was not proved that the rewrite alone changes nothing: {self.rewrite.missing}")
        if self.other_original:
            notes.append(f"{_OTHER}: that was not proved, only outputs and codes were compared")
        if self.random_ops:
            notes.append(seed_note(self.random_ops))
        for name, output in run.outputs.items():
            if output.deviation.not_finite:
                share = output.deviation.not_finite_share
                notes.append(f"output {name!r}: {share:.1%} of the elements are NaN or infinite, in both models alike")
            if output.shapes:
                notes.append(f"output {name!r}: {output.shapes[0]}; its values were not compared there")
        return tuple(notes)

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
            "notes": list(self.notes),
            "rewrite": None if self.rewrite is None else self.rewrite.to_json(),
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
    expected: Sequence[Arrays] = (),
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
        expected: What ``a`` gives on each of them, where it was run on them before.
        limits: What is asked of the outputs.
        run: Threads and custom ops.
        progress: Called after each run.

    Raises:
        InvalidModel: The models have different inputs or outputs, or onnxruntime does not take one.
        InvalidScheme: A limit on an output that the models do not have.
    """
    check_interface(a, b)
    original = a
    record = read_record(b)
    if record is None and not limits:
        limits = Limits(rtol=RTOL, atol=ATOL)
    limits.check(a)
    sites = () if record is None else record.sites
    ways = [STANDARD]
    if DOMAIN in b.graph.opset_imports and native_library() is not None:
        ways.append(NATIVE)
    (a, b), random = with_seeds(a, sharing_weights(b, a))
    proving = record is not None and record.structure_hash == structure_hash(original)
    groups = site_groups(b, sites, samples, run.memory)
    known = len(expected) == len(samples) and not random
    alone = not groups or groups[0].sites[0].scope != "main" or groups[0].queries is not None
    runs_of_a_way = alone + sum(group.runs for group in groups)
    steps = Steps(len(samples) * ((not known) + proving + len(ways) * runs_of_a_way), progress)
    if not known:
        session = Session(a, run, frugal=True)
        expected = []
        for sample in samples:
            expected.append(session.run(sample))
            steps.advance("original")
        del session
    samples = [with_defined_rows(a, sample, before) for sample, before in zip(samples, expected, strict=True)]
    proof = None
    if proving:
        assert record is not None
        proof = prove_rewrite(a, b, record, samples, expected, run)
        steps.advance("identity in place of the scheme", len(samples))
    distributions = {value.name for value in a.graph.outputs if is_distribution(value)}
    runs: dict[str, VariantCheck] = {}
    for way in ways:
        outputs = {
            name: OutputComparison(name in distributions, limits.rtol, limits.atol, masks)
            for name, masks in token_masks(a).items()
        }
        checks = {site.id: CodeCheck() for site in sites}
        # The outputs come with the first sites.
        for group in (*((None,) if alone else ()), *groups):
            with_outputs = group is None or (group is groups[0] and not alone)
            names = tuple(outputs) if with_outputs else ()
            variant = _variant(b, group, run, way == NATIVE, names)
            for sample, before in zip(samples, expected, strict=True):
                found, rows = variant(sample)
                for name, array in found.items():
                    outputs[name].add(before[name], array, sample)
                del found
                for site in () if group is None else group.sites:
                    checks[site.id] = checks[site.id].merge(_check_site(site, rows.pop(site.id), sample))
                steps.advance(f"{way} ops" if way == STANDARD else f"{way} kernels", 1 if group is None else group.runs)
            del variant
        runs[way] = VariantCheck({name: output.result() for name, output in outputs.items()}, checks)
    return Verification(runs, limits, len(samples), proof, random, record is not None and not proving)


def _variant(
    model: ir.Model, group: SiteGroup | None, run: RunSettings, native: bool, outputs: Sequence[str]
) -> Callable[[Sample], tuple[Arrays, dict[str, Iterator[Rows]]]]:
    """What runs a model for some of its outputs, and for the rows of the sites of a group."""
    if group is not None:
        return SiteRows(model, group.sites, run, native=native, outputs=outputs, queries=group.queries).run
    session = Session(model, run, native=native, frugal=True)
    return lambda sample: (session.run(sample, outputs), {})


def _check_site(site: RewrittenSite, found: Iterator[Rows], sample: Sample) -> CodeCheck:
    """Compare the codes of a site with numerics.py."""
    total = CodeCheck()
    for rows in found:
        counted = _real_rows(rows.shape, sample)
        check = check_rows(
            rows.source,
            rows.result,
            site.scheme,
            is_scores=rows.is_scores,
            counted=None if counted is None else counted[rows.place],
            score_error=rows.score_error,
            tail_error=rows.tail_error,
        )
        total = total.merge(check).merge(CodeCheck(errors=rows.wrong))
    return total


def _real_rows(rows: tuple[int, ...], sample: Sample) -> npt.NDArray[np.bool_] | None:
    """Which rows of probabilities, shape (B, ..., L_q) or (B * H, L_q), belong to real tokens."""
    mask = attention_mask_of(sample)
    if mask is None or mask.ndim != 2 or len(rows) < 2 or rows[-1] != mask.shape[1] or rows[0] % mask.shape[0]:
        return None
    per_row = np.repeat(mask, rows[0] // mask.shape[0], axis=0)
    return np.broadcast_to(per_row.reshape(rows[0], *(1,) * (len(rows) - 2), rows[-1]), rows)


__all__ = ["NATIVE", "STANDARD", "VariantCheck", "Verification", "verify"]
