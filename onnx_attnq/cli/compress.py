"""`onnx-attnq MODEL`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.model_source import export_first, is_transformers_model
from onnx_attnq.cli.options import (
    LIMIT_HELP,
    bits_option,
    data_option,
    exclude_option,
    external_data_option,
    input_shape_option,
    json_option,
    path_type,
    refuse_shapes_of_data,
    run_options,
    samples_option,
    scheme_of,
    scheme_option,
    seed_option,
    threshold_option,
    weights_option,
)
from onnx_attnq.cli.output import (
    compared,
    console,
    in_megabytes,
    plain_table,
    progress_bar,
    scheme_text,
    show_refused,
    write_json,
)
from onnx_attnq.cli.together import refuse_beside
from onnx_attnq.cli.tuning import Lossy, loss_options, tune_first
from onnx_attnq.counted import counted

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.console import Console

    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.job import Compression, FolderCompression, WeightCompression
    from onnx_attnq.run import RunSettings
    from onnx_attnq.tune import Tuning
    from onnx_attnq.verification import VariantCheck, Verification


@command()
@click.argument("model", type=path_type)
@click.option(
    "-o",
    "--output",
    type=path_type,
    help="File to write, or folder if MODEL is one.  [default: MODEL.attnq.onnx or FOLDER.attnq]",
)
@scheme_option
@bits_option
@threshold_option
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Rewrite only sites whose id matches; may be repeated.  [default: all]",
)
@exclude_option
@click.option(
    "--plan", "plan_path", type=path_type, help="Plan file with a scheme for each site, as --write-plan writes it."
)
@click.option("--write-plan", type=path_type, help="File to write the plan to.")
@weights_option
@data_option
@samples_option
@seed_option
@input_shape_option
@click.option(
    "--max-deviation",
    multiple=True,
    metavar="[OUTPUT:]FIGURE>=VALUE",
    help=f"Fail when an output deviates more. {LIMIT_HELP}",
)
@loss_options("one scheme for all heads")
@click.option("--resume", is_flag=True, help="Continue an earlier run with the same --max-loss or --min-pruned.")
@run_options
@click.option("--inline", is_flag=True, help="Write plain ops, for runtimes without model-local functions (OpenVINO).")
@click.option("--quantize-outputs", is_flag=True, help="Quantize probabilities that are outputs of the model, too.")
@click.option(
    "--qk",
    type=click.Choice(["float32", "int16"]),
    default="float32",
    show_default=True,
    help="Type in which the native library multiplies query and key.",
)
@click.option(
    "--keep-fused/--rewrite-fused",
    default=None,
    help="Leave fused attention ops as they are, or decompose all.  "
    "[default: decompose those for which the native library has a faster kernel]",
)
@external_data_option
@click.option("--dry-run", is_flag=True, help="Find the attention and plan, but write no model.")
@click.option("--keep-failed", is_flag=True, help="Keep a model that failed the verification, as OUTPUT.failed.onnx.")
@click.option("--no-verify", is_flag=True, help="Write the model without running it.")
@json_option
def compress(
    model: Path,
    output: Path | None,
    scheme: str | None,
    bits: int | None,
    threshold: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    plan_path: Path | None,
    write_plan: Path | None,
    weights: str | None,
    data: Path | None,
    samples: int,
    seed: int,
    input_shapes: InputShapes,
    max_deviation: tuple[str, ...],
    lossy: Lossy,
    resume: bool,
    run: RunSettings,
    inline: bool,
    quantize_outputs: bool,
    qk: str,
    keep_fused: bool | None,
    external_data: Any,
    dry_run: bool,
    keep_failed: bool,
    no_verify: bool,
    json_path: str | None,
) -> int:
    """Rewrite the attention of MODEL and verify the result.

    With --max-loss or --min-pruned each head gets a scheme of its own, which --data decides: one half is used to
    choose, the other to confirm. It is `tune` and the rewrite in one step; the plan is written beside the output.

    MODEL is an ONNX file, or a folder with several, such as the parts of an encoder-decoder: then all of them are
    rewritten into a new folder, FOLDER.attnq, together with a copy of the folder's other files. --data is then a
    folder with the samples of NAME.onnx in NAME.npz or in the folder NAME. A folder of onnxruntime-genai gets the
    native library, too.

    MODEL may also be a model of transformers: a folder with config.json and weights, or OWNER/NAME on the hub. It is
    exported to a folder NAME-onnx first, which needs the extra `export`; `onnx-attnq export` has more options.
    """
    from onnx_attnq.inputs import load_samples
    from onnx_attnq.job import compress as rewrite_and_verify
    from onnx_attnq.job import compress_folder, compress_weights, plan_folder, plan_only
    from onnx_attnq.model import load
    from onnx_attnq.rewriting import RewriteSettings, load_plan, save_plan
    from onnx_attnq.verification import Limit, Limits, VerifySettings

    _refuse_ignored(plan_path, weights, lossy, dry_run=dry_run, no_verify=no_verify)
    refuse_shapes_of_data(data, input_shapes)
    if is_transformers_model(model):
        refuse_beside(f"{model} has to be exported first", "--dry-run")
        model = export_first(model, quiet=json_path == "-")
    is_folder = model.is_dir()
    if is_folder:
        refuse_beside(f"{model} is a folder", "--weights", "--plan", "--write-plan", "--external-data")
    tuned, given = None, None
    if lossy.has_goal:
        if data is None or is_folder:
            raise click.UsageError("--max-loss and --min-pruned need an ONNX file and --data to measure the loss on")
        plan_path = write_plan or (output or model).with_suffix(".plan.json")
        tuned, measured = tune_first(model, data, plan_path, lossy, run, resume=resume, quiet=json_path == "-")
        given = tuple(measured)
        if not tuned.accepted:
            if json_path is not None:
                write_json({"tuning": tuned.to_json()}, json_path)
            return 1
    elif data is not None and not is_folder:
        given = load_samples(data, load(model))
    settings = RewriteSettings(
        scheme=None if plan_path is not None else scheme_of(scheme, bits, threshold),
        include=include,
        exclude=exclude,
        plan=None if plan_path is None else load_plan(plan_path),
        keep_fused=keep_fused,
        inline=inline,
        quantize_outputs=quantize_outputs,
        int16_products=qk == "int16",
    )
    limits = Limits(tuple(Limit.parse(text) for text in max_deviation))
    checks = None if no_verify else VerifySettings(given, samples, seed, input_shapes, limits, keep_failed)
    if is_folder:
        with progress_bar("Verifying") as progress:
            if dry_run:
                parts = plan_folder(model, settings)
            else:
                parts = compress_folder(
                    model, output, rewriting=settings, verification=checks, data=data, run=run, progress=progress
                )
        return _show_folder(parts, json_path)
    both = None
    with progress_bar("Verifying") as progress:
        if dry_run:
            result = plan_only(model, settings)
        elif weights is not None:
            both = compress_weights(
                model, output, weights, rewriting=settings, verification=checks, run=run, progress=progress
            )
            result = both.compression
        else:
            result = rewrite_and_verify(
                model,
                output,
                rewriting=settings,
                verification=checks,
                run=run,
                external_data=external_data,
                progress=progress,
            )
    if write_plan is not None and tuned is None:
        save_plan(result.plan, write_plan)
    _show_model(result, load(model), both, tuned, json_path, real_data=data is not None)
    return int(result.failed)


def _refuse_ignored(plan: Path | None, weights: str | None, lossy: Lossy, *, dry_run: bool, no_verify: bool) -> None:
    """Refuse options that would be ignored beside others, whatever MODEL is."""
    of_scheme = ("--scheme", "--bits", "--threshold", "--include", "--exclude")
    of_runs = ("--data", "--max-deviation", "--input-shape")
    if plan is not None:
        refuse_beside("--plan says what every site gets", *of_scheme)
    if no_verify:
        refuse_beside("--no-verify runs no model", *of_runs)
    if dry_run:
        refuse_beside("--dry-run runs no model", *of_runs)
    if weights is not None:
        refuse_beside(f"--weights {weights} writes new weights", "--dry-run", "--external-data")
    if lossy.has_goal:
        reason = "--max-loss and --min-pruned choose the schemes of all heads"
        refuse_beside(reason, *of_scheme, "--plan", "--weights", "--keep-fused")
        refuse_beside("tuning runs the model", "--dry-run", "--no-verify")
    else:
        reason = "without --max-loss and --min-pruned nothing is tuned"
        refuse_beside(reason, "--task", "--figure", "--tokenizer", "--resume")


def _show_model(
    result: Compression,
    original: ir.Model,
    both: WeightCompression | None,
    tuned: Tuning | None,
    json_path: str | None,
    *,
    real_data: bool,
) -> None:
    from onnx_attnq.job import compression_json

    if json_path is not None:
        more = {} if both is None else {"weights": both.to_json()}
        more |= {} if tuned is None else {"tuning": tuned.to_json()}
        write_json(compression_json(result, original) | more, json_path)
    if json_path != "-":
        _show(result, original, console(), real_data=real_data)
        if both is not None:
            _show_weights(both, console())


def _show_folder(result: FolderCompression, json_path: str | None) -> int:
    from onnx_attnq.job import folder_json
    from onnx_attnq.model import load

    if json_path is not None:
        write_json(folder_json(result), json_path)
    if json_path != "-":
        out = console()
        for part in result.models:
            _show(part, load(part.source), out, real_data=part.source in result.given)
            out.print()
        for path, reason in result.untouched.items():
            out.print(f"{path}: {'left' if result.output is None else 'copied'}: {reason}")
        for path, reason in result.skipped.items():
            out.print(f"{path}: skipped: {reason}")
        if result.output is not None:
            if result.library is not None:
                out.print(result.library)
            out.print(f"Wrote the folder {result.output}")
    return int(any(part.failed for part in result.models))


def _show(result: Compression, original: ir.Model, out: Console, *, real_data: bool) -> None:
    from onnx_attnq.model import load, size_on_disk
    from onnx_attnq.run import native_library

    rewritten = [entry for entry in result.plan.sites if entry.scheme is not None]
    schemes = sorted({scheme_text(entry.scheme) for entry in result.plan.sites if entry.scheme is not None})
    if rewritten:
        out.print(f"{result.source}: {len(rewritten)} of {len(result.sites.sites)} sites, {', '.join(schemes)}")
    else:
        out.print(f"{result.source}: nothing to rewrite, its attention stays in fused ops")
    for rejection in result.sites.rejections:
        out.print(f"  left: {rejection.op_type} {rejection.node!r}: {rejection.reason}")
    for entry in result.plan.sites:
        if entry.scheme is None:
            out.print(f"  left: {entry.site}: {entry.reason}")
    for warning in result.warnings:
        out.print(f"slower: {warning}", style="yellow")
    if result.verification is None and result.output is None:
        out.print("Nothing was written (--dry-run).")
        return
    table = plain_table("", "before", "after")
    table.add_row("nodes", *(str(count) for count in result.nodes))
    if result.output is not None:
        table.add_row("size", *(in_megabytes(size_on_disk(model)) for model in (original, load(result.output))))
    out.print(table)
    if result.verification is not None:
        if result.made_up is not None:
            show_refused(out, result.made_up)
        _show_verification(result.verification, out, real_data=real_data)
    if native_library() is None and rewritten:
        out.print("Native library: not built (no C++ compiler at installation); the standard ops run instead")
    if result.output is None:
        out.print("Nothing was written; --keep-failed keeps a model that failed under another name.")
    else:
        out.print(f"Wrote {result.output}" + ("" if rewritten else ", which computes the same"))


def _show_weights(both: WeightCompression, out: Console) -> None:
    before, after = both.size
    out.print(f"Weights in {both.weights}: {in_megabytes(before)} before, {in_megabytes(after)} after")
    if both.cpu_ms is not None:
        slow, fast = both.cpu_ms
        out.print(f"CPU time of one run: {slow:.1f} ms before, {fast:.1f} ms after ({slow / fast:.2f} times as fast)")


def _show_verification(found: Verification, out: Console, *, real_data: bool) -> None:
    run = found.standard
    table = plain_table("site", "codes", "rounded otherwise", "wrong", "pruned")
    for name, check in run.sites.items():
        share = run.pruned[name]
        table.add_row(name, f"{check.codes:,}", f"{check.disagreements:,}", f"{check.errors:,}", f"{share:.1%}")
    out.print()
    out.print(table)
    outputs = plain_table("output", "max abs", "mean abs", "relative", "cosine", "top-1", "KL")
    for name, output in run.outputs.items():
        d = output.deviation
        outputs.add_row(name, f"{d.max_abs:.2e}", f"{d.mean_abs:.2e}", *compared(d))
    out.print()
    out.print(outputs)
    out.print()
    kind, more = ("sample", "") if real_data else ("made-up sample", "; give real ones with --data")
    out.print(f"{run.pruned_share:.1%} of the attention values pruned ({counted(found.samples, kind)}{more})")
    for note in found.notes:
        out.print(f"note: {note}")
    for failure in found.failures_of_rewrite:
        out.print(f"failed: {failure}", style="red")
    _show_verdict(run, found, out)
    from onnx_attnq.verification import NATIVE

    if NATIVE in found.runs:
        native = found.runs[NATIVE]
        right = not native.failures(found.limits)
        state = "verified" if found.passed else "not verified" + (", though it is right by itself" if right else "")
        summary = (
            f"Native library: {state} ({native.codes.codes:,} codes, {native.codes.disagreements:,} rounded otherwise)"
        )
        out.print(summary, style="green" if found.passed else "red")
        for failure in native.failures(found.limits):
            out.print(f"failed: {failure}", style="red")


def _show_verdict(run: VariantCheck, found: Verification, out: Console) -> None:
    failures = run.failures(found.limits)
    for failure in failures:
        out.print(f"failed: {failure}", style="red")
    passed = not failures and not found.failures_of_rewrite
    out.print("Verified" if passed else "Not verified", style="green" if passed else "red")
