"""The main job: load, find, plan, rewrite, save, verify."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import onnx_ir as ir

from onnx_attnq.atomic import replacing, staged
from onnx_attnq.errors import AttnqError, NothingToRewrite
from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.inputs import MadeUp, made_up_samples
from onnx_attnq.model import ExternalData, check_output, load, save
from onnx_attnq.progress import Progress, no_progress
from onnx_attnq.rewriting import Plan, Record, RewriteSettings, refuse_rewritten, rewrite, uniform_plan
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import Verification, VerifySettings, verify


@dataclasses.dataclass(frozen=True)
class Compression:
    """What came of the main job.

    Attributes:
        source: The model that was read.
        output: The model that was written; None for a dry run, and for one that failed and was not kept.
        sites: Everything that looked like attention.
        plan: What each site got.
        record: What was done, as the output says it of itself; None for a dry run.
        verification: Of standard ops, and of the native library's kernels; None when it was not asked for.
        nodes: Number of nodes that run, before and after; a call of a function counts as the nodes of its body.
        made_up: The samples that were made up for the verification; None where they were given.
    """

    source: Path
    output: Path | None
    sites: Sites
    plan: Plan
    record: Record | None
    verification: Verification | None
    nodes: tuple[int, int]
    made_up: MadeUp | None = None

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
        progress: Called after each step of the verification.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    source = Path(source)
    if scheme is not None:
        rewriting = dataclasses.replace(rewriting, scheme=scheme)
    original, done = rewritten(source, rewriting)
    target = output_of(source, output)
    if verification is None:
        save(done.model, target, external_data)
        return Compression(source, target, done.sites, done.plan, done.record, None, done.nodes)
    check_output(done.model, target)
    samples, made_up = verification.samples, None
    if samples is None:
        made_up = made_up_for(original, verification, run)
        samples = made_up.samples
    limits = verification.limits
    written, checked = put_in_place(
        done.model,
        target,
        lambda trial: verify(original, load(trial), samples, limits=limits, run=run, progress=progress),
        external_data=external_data,
        keep_failed=verification.keep_failed,
    )
    return Compression(source, written, done.sites, done.plan, done.record, checked, done.nodes, made_up)


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A model in memory, rewritten as the plan says, and what came of it; as in `Compression`."""

    model: ir.Model
    sites: Sites
    plan: Plan
    record: Record
    nodes: tuple[int, int]


def rewritten(source: Path, rewriting: RewriteSettings, named: Path | None = None) -> tuple[ir.Model, Rewritten]:
    """The original, and what the rewrite makes of it.

    Args:
        source: The model file.
        rewriting: What to rewrite, and into what.
        named: What errors call the file.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    original, work, sites, plan = _plan(source, rewriting, named or source)
    left = {site.id for site in sites.sites if plan.scheme_of(site.id) is None}
    chosen, part = sites, plan
    if left:
        # What is left as it is stays fused, too.
        work = original.clone()
        chosen = find_sites(expose(work, keep=lambda site: rewriting.keep_fused or site in left))
        present = {site.id for site in chosen.sites}
        part = Plan(plan.structure_hash, tuple(e for e in plan.sites if e.site in present or e.site not in left))
    record = rewrite(
        work,
        chosen,
        part,
        inline=rewriting.inline,
        quantize_outputs=rewriting.quantize_outputs,
        int16_products=rewriting.int16_products,
    )
    return original, Rewritten(work, sites, plan, record, (count_nodes(original), count_nodes(work)))


def output_of(source: Path, output: str | os.PathLike[str] | None) -> Path:
    """Where a model is written."""
    return source.with_name(f"{source.stem}.attnq.onnx") if output is None else Path(output)


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
    with contextlib.suppress(NotVerified), _on_trial(target, external_data) as trial:
        save(model, trial, external_data)
        checked = check(trial)
        if not checked.passed:
            raise NotVerified
    assert checked is not None
    if checked.passed:
        return target, checked
    if not keep_failed:
        return None, checked
    kept = target.with_name(f"{target.stem}.failed{target.suffix}")
    save(model, kept, external_data)
    return kept, checked


def made_up_for(original: ir.Model, verification: VerifySettings, run: RunSettings) -> MadeUp:
    """The samples to make up for a verification."""
    count, seed = verification.count, verification.seed
    return made_up_samples(original, count, seed, input_shapes=verification.input_shapes, run=run)


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
    original, _, sites, plan = _plan(Path(source), rewriting, Path(source))
    nodes = count_nodes(original)
    return Compression(Path(source), None, sites, plan, None, None, (nodes, nodes))


def _plan(source: Path, rewriting: RewriteSettings, named: Path) -> tuple[ir.Model, ir.Model, Sites, Plan]:
    """The original; a copy in which attention that was hidden in functions and fused ops is exposed; its sites."""
    original = load(source)
    try:
        refuse_rewritten(original)
    except AttnqError as error:
        raise type(error)(f"{named}: {error}") from None
    work = original.clone()
    sites = find_sites(expose(work, keep=lambda site: rewriting.keep_fused))
    ids = [site.id for site in sites.sites]
    plan = rewriting.plan
    if plan is None:
        scheme = rewriting.scheme or preset()
        plan = uniform_plan(sites.exposed.structure_hash, ids, scheme, rewriting.include, rewriting.exclude)
    else:
        plan.check(sites.exposed.structure_hash, ids)
    if not any(entry.scheme for entry in plan.sites):
        raise NothingToRewrite(f"{named}: {_why_nothing(sites)}")
    return original, work, sites, plan


def count_nodes(model: ir.Model) -> int:
    """Number of nodes that run, those of subgraphs too; a call of a function counts as the nodes of its body."""
    counted: dict[ir.OperatorIdentifier, int] = {}

    def count(nodes: Iterable[ir.Node]) -> int:
        return sum(body(node.op_identifier()) for node in nodes)

    def body(name: ir.OperatorIdentifier) -> int:
        if name not in model.functions:
            return 1
        if name not in counted:
            counted[name] = count(model.functions[name].all_nodes())
        return counted[name]

    return count(model.graph.all_nodes())


def _why_nothing(sites: Sites) -> str:
    if sites.sites:
        return "the plan leaves every site as it is"
    if sites.rejections:
        first = sites.rejections[0]
        return f"no attention found; {first.op_type} {first.node!r}: {first.reason}"
    return "no attention found: the model has no softmax"
