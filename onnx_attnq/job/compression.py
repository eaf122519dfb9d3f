"""The main job: load, find, plan, rewrite, save, verify."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir

from onnx_attnq.atomic import replacing, staged
from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.inputs import MadeUp, made_up_samples
from onnx_attnq.job.planning import chooses_fused, count_nodes, planned, slower
from onnx_attnq.model import ExternalData, check_output, load, save, without_old_data
from onnx_attnq.progress import Parts, Progress, no_progress
from onnx_attnq.rewriting import (
    Plan,
    Record,
    RewriteSettings,
    left_for_want_of_names,
    rewrite,
)
from onnx_attnq.run import RunSettings, native_library
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.verification import Verification, VerifySettings, verify


@dataclasses.dataclass(frozen=True)
class Compression:
    """The result of the main job.

    Attributes:
        source: The model that was read.
        output: The model that was written; None for a dry run, and for one that failed and was not kept.
        sites: Everything that looked like attention.
        plan: What each site got.
        record: What was done, as the output says it of itself; None for a dry run, and where all attention stays fused,
            so that the output is a copy.
        verification: Of standard ops, and of the native library's kernels; None when it was not asked for, or there is
            nothing to verify.
        nodes: Number of nodes that run, before and after; a call of a function counts as the nodes of its body.
        made_up: The samples that were made up for the verification; None where they were given.
        warnings: Where the output is slower than the source, a sentence each.
    """

    source: Path
    output: Path | None
    sites: Sites
    plan: Plan
    record: Record | None
    verification: Verification | None
    nodes: tuple[int, int]
    made_up: MadeUp | None = None
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether it was verified, and did not pass."""
        return self.verification is not None and not self.verification.passed


def compress(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    scheme: QuantScheme | None = None,
    rewriting: RewriteSettings = RewriteSettings(),
    verification: VerifySettings | None = VerifySettings(),
    run: RunSettings = RunSettings(),
    external_data: ExternalData = "copy",
    progress: Progress = no_progress,
) -> Compression:
    """Find the attention of a model, quantize its probabilities, and verify the result.

    Args:
        source: The model; never changed.
        output: Where to write; beside the source as NAME.attnq.onnx if None.
        scheme: What every site gets, in place of the scheme in ``rewriting``.
        rewriting: What to rewrite, and into what.
        verification: How to verify; None to run no model.
        run: How to run the models.
        external_data: Whether external data is copied or referred to.
        progress: Called after each run.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    source = Path(source)
    if scheme is not None:
        rewriting = dataclasses.replace(rewriting, scheme=scheme)
    original, done = rewritten(source, rewriting)
    target = output_of(source, output)
    if verification is None or done.record is None:
        save(done.model, target, external_data)
        return done.result(source, target)
    check_output(done.model, target)
    parts = Parts(progress)
    made_up = made_up_for(original, verification, run, parts) if verification.samples is None else None
    given = made_up or MadeUp(verification.samples or ())
    limits, expected = verification.limits, given.outputs
    checking = parts.next()
    written, checked = put_in_place(
        done.model,
        target,
        lambda trial: verify(
            original, load(trial), given.samples, expected=expected, limits=limits, run=run, progress=checking
        ),
        external_data=external_data,
        keep_failed=verification.keep_failed,
    )
    return done.result(source, written, checked, made_up)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A model in memory, rewritten as the plan says, and the results; as in `Compression`."""

    model: ir.Model
    sites: Sites
    plan: Plan
    record: Record | None
    nodes: tuple[int, int]
    warnings: tuple[str, ...] = ()

    def result(
        self, source: Path, output: Path | None, verification: Verification | None = None, made_up: MadeUp | None = None
    ) -> Compression:
        """The result of the job, once the model is written."""
        done = (self.sites, self.plan, self.record, verification, self.nodes, made_up, self.warnings)
        return Compression(source, output, *done)


def rewritten(source: Path, rewriting: RewriteSettings, named: Path | None = None) -> tuple[ir.Model, Rewritten]:
    """The original, and what the rewrite makes of it.

    Args:
        source: The model file.
        rewriting: What to rewrite, and into what.
        named: What errors call the file.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    original, work, sites, plan = planned(source, rewriting, named or source)
    before = count_nodes(original)
    if all(entry.scheme is None for entry in plan.sites):
        return original, Rewritten(original.clone(), sites, plan, None, (before, before))
    work, record, apart = _applied(original, work, sites, plan, rewriting)
    if apart and chooses_fused(rewriting):
        plan = plan.leaving(apart)
        work, record, apart = _applied(original, work, sites, plan, rewriting)
    nodes = (before, count_nodes(work))
    return original, Rewritten(work, sites, plan, record, nodes, slower(sites, plan, rewriting, apart))


def _applied(
    original: ir.Model, work: ir.Model, sites: Sites, plan: Plan, rewriting: RewriteSettings
) -> tuple[ir.Model, Record, dict[str, str]]:
    """The rewritten model, its record, and which fused ops no kernel took, with the reason."""
    left, part = {entry.site for entry in plan.sites if entry.scheme is None}, plan
    if left:
        # What is left as it is stays fused, too.
        work = original.clone()
        sites = find_sites(expose(work, keep=lambda site: bool(rewriting.keep_fused) or site in left))
        present = {site.id for site in sites.sites}
        part = Plan(plan.structure_hash, tuple(e for e in plan.sites if e.site in present or e.site not in left))
    record = rewrite(work, sites, part, rewriting)
    return work, record, left_for_want_of_names(work, sites, record)


def output_of(source: Path, output: str | os.PathLike[str] | None) -> Path:
    """Where a model is written."""
    return source.with_name(f"{source.stem}.attnq.onnx") if output is None else Path(output)


def failed_path(target: Path) -> Path:
    """Where a model that failed is kept."""
    return target.with_name(f"{target.stem}.failed{target.suffix}")


def put_in_place(
    model: ir.Model,
    target: Path,
    check: Callable[[Path], Verification],
    *,
    external_data: ExternalData = "copy",
    keep_failed: bool = False,
) -> tuple[Path | None, Verification]:
    """Verify first, then put in place: what fails, or is interrupted, is never where the output should be.

    Args:
        model: What to write.
        target: Where.
        check: Verifies the model that was written to a path.
        external_data: Whether external data is copied or referred to.
        keep_failed: Keep what failed as NAME.failed.onnx.

    Returns:
        Where the model is, None if it failed and was not kept; and what the check said.
    """
    checked: Verification | None = None
    with contextlib.suppress(NotVerified), without_old_data(target), _on_trial(target, external_data) as trial:
        save(model, trial, external_data)
        checked = check(trial)
        if not checked.passed:
            raise NotVerified
    assert checked is not None
    if checked.passed:
        return target, checked
    if not keep_failed:
        return None, checked
    kept = failed_path(target)
    save(model, kept, external_data)
    return kept, checked


def made_up_for(original: ir.Model, verification: VerifySettings, run: RunSettings, parts: Parts) -> MadeUp:
    """The samples to make up for a verification, which runs each of them once more in every variant."""
    count, seed = verification.count, verification.seed
    variants = 2 + (native_library() is not None)
    tried = parts.next(after=lambda total: total * variants)
    return made_up_samples(original, count, seed, input_shapes=verification.input_shapes, run=run, progress=tried)


class NotVerified(Exception):
    """Ends the trial of a model that failed."""


@contextlib.contextmanager
def _on_trial(target: Path, external_data: ExternalData) -> Iterator[Path]:
    """Where to write a model that takes its place when the block ends, and vanishes when it fails."""
    if external_data == "copy":
        with staged(target) as folder:
            yield folder / target.name
    else:
        # It refers to files in its own folder.
        with replacing(target) as file:
            yield Path(file.name)


def plan_only(source: str | os.PathLike[str], rewriting: RewriteSettings = RewriteSettings()) -> Compression:
    """What `compress` would do, without writing or running anything.

    Args:
        source: The model.
        rewriting: What to rewrite, and into what.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    original, _, sites, plan = planned(Path(source), rewriting, Path(source))
    nodes = count_nodes(original)
    warnings = slower(sites, plan, rewriting)
    return Compression(Path(source), None, sites, plan, None, None, (nodes, nodes), warnings=warnings)
