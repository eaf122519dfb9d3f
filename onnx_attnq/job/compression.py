"""The main job: load, find, plan, rewrite, save, verify."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnx_attnq.errors import AttnqError, NothingToRewrite
from onnx_attnq.find import Sites, expose, find_sites
from onnx_attnq.inputs import MadeUp, Sample, made_up_samples
from onnx_attnq.model import ExternalData, load, save
from onnx_attnq.rewriting import Plan, Record, refuse_rewritten, rewrite, uniform_plan
from onnx_attnq.run import native_library
from onnx_attnq.scheme import QuantScheme, preset
from onnx_attnq.verification import Limit, Progress, Verification, verify


@dataclasses.dataclass(frozen=True)
class Compression:
    """What came of the main job.

    Attributes:
        source: The model that was read.
        output: The model that was written; None for a dry run.
        sites: Everything that looked like attention.
        plan: What each site got.
        record: What was done, as the output says it of itself; None for a dry run.
        verification: Of the ops' standard bodies; None when it was not asked for.
        native_verification: Of the native library's kernels; None where it was not built or has nothing to do.
        nodes: Number of nodes in the main graph and its subgraphs, before and after.
        made_up: The samples that were made up for the verification; None where they were given.
    """

    source: Path
    output: Path | None
    sites: Sites
    plan: Plan
    record: Record | None
    verification: Verification | None
    native_verification: Verification | None
    nodes: tuple[int, int]
    made_up: MadeUp | None = None


def compress(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    scheme: QuantScheme | None = None,
    plan: Plan | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: Sequence[Sample] | None = None,
    limits: Sequence[Limit] = (),
    inline: bool = False,
    quantize_outputs: bool = False,
    keep_fused: bool = False,
    int16_products: bool = False,
    external_data: ExternalData = "copy",
    dry_run: bool = False,
    verification: bool = True,
    sample_count: int = 4,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Compression:
    """Find the attention of a model, quantize its probabilities, and verify the result.

    Args:
        source: The model; never changed.
        output: Where to write; beside the source as NAME.attnq.onnx if None.
        scheme: What every site gets; `preset` with no arguments if None.
        plan: What each site gets, in place of ``scheme``, ``include`` and ``exclude``.
        include: Shell patterns of the sites to rewrite; all if empty.
        exclude: Shell patterns of sites to leave.
        samples: Inputs to verify with; made up from the model's signature if None.
        limits: Bounds on the deviation of every output.
        inline: Plain ops instead of ops with a function.
        quantize_outputs: Where probabilities are an output of the model, quantize that output too.
        keep_fused: Leave fused attention ops as they are.
        int16_products: Let the native library multiply query and key in 16-bit integers.
        external_data: Whether external data is copied or referred to.
        dry_run: Only find and plan.
        verification: False to skip it.
        sample_count: How many samples to make up.
        seed: Of the samples that are made up.
        threads: Threads inside an op; None leaves it to onnxruntime.
        progress: Called after each step of the verification.

    Raises:
        AttnqError: See errors.py for its kinds.
    """
    source = Path(source)
    original = load(source)
    try:
        refuse_rewritten(original)
    except AttnqError as error:
        raise type(error)(f"{source}: {error}") from None
    work = original.clone()
    sites = find_sites(expose(work, keep=lambda site: keep_fused))
    ids = [site.id for site in sites.sites]
    if plan is None:
        plan = uniform_plan(sites.exposed.structure_hash, ids, scheme or preset(), include, exclude)
    else:
        plan.check(sites.exposed.structure_hash, ids)
    if not any(entry.scheme for entry in plan.sites):
        raise NothingToRewrite(f"{source}: {_why_nothing(sites)}")
    before = count_nodes(original)
    if dry_run:
        return Compression(source, None, sites, plan, None, None, None, (before, before))

    left = {site.id for site in sites.sites if plan.scheme_of(site.id) is None}
    chosen, part = sites, plan
    if left:
        # What is left as it is stays fused, too.
        work = original.clone()
        chosen = find_sites(expose(work, keep=lambda site: keep_fused or site in left))
        present = {site.id for site in chosen.sites}
        part = Plan(plan.structure_hash, tuple(e for e in plan.sites if e.site in present or e.site not in left))
    record = rewrite(
        work, chosen, part, inline=inline, quantize_outputs=quantize_outputs, int16_products=int16_products
    )
    target = source.with_name(f"{source.stem}.attnq.onnx") if output is None else Path(output)
    save(work, target, external_data)
    after = count_nodes(work)
    checked = native = made_up = None
    if verification:
        if samples is None:
            made_up = made_up_samples(original, sample_count, seed, threads=threads)
            samples = made_up.samples
        written = load(target)
        checked = verify(original, written, samples, limits=limits, threads=threads, progress=progress)
        if native_library() is not None and not inline:
            native = verify(original, written, samples, limits=limits, threads=threads, native=True, progress=progress)
    return Compression(source, target, sites, plan, record, checked, native, (before, after), made_up)


def count_nodes(model: ir.Model) -> int:
    """Number of nodes in the main graph and its subgraphs."""
    return sum(1 for _ in model.graph.all_nodes())


def _why_nothing(sites: Sites) -> str:
    if sites.sites:
        return "the plan leaves every site as it is"
    if sites.rejections:
        first = sites.rejections[0]
        return f"no attention found; {first.op_type} {first.node!r}: {first.reason}"
    return "no attention found: the model has no softmax"
