"""`onnx-attnq bench`: how much faster a rewritten model is, and how much of that is due to pruning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    input_shape_option,
    json_option,
    path_type,
    refuse_shapes_of_data,
    run_options,
    weights_option,
)
from onnx_attnq.cli.output import console, plain_table, progress_bar, write_json

if TYPE_CHECKING:
    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.job import Timing
    from onnx_attnq.run import RunSettings


@command()
@click.argument("original", type=path_type)
@click.argument("rewritten", nargs=-1, type=path_type)
@click.option(
    "--tokens",
    multiple=True,
    type=click.IntRange(1),
    default=(128, 512),
    show_default=True,
    metavar="COUNT",
    help="Length of the made-up inputs, in tokens; for a decoder with a cache also of the past. May be repeated.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="COUNT",
    help="Number of rows of the made-up inputs.",
)
@input_shape_option
@run_options
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    metavar="COUNT",
    help="Number of timed runs of each variant at each length, after one that is not timed.",
)
@click.option("--data", type=path_type, help="Samples to time, in place of made-up inputs; see `compress`.")
@click.option("--no-memory", is_flag=True, help="Do not measure peak memory, which needs one more run of each variant.")
@weights_option
@json_option
def bench(
    original: Path,
    rewritten: tuple[Path, ...],
    tokens: tuple[int, ...],
    batch: int,
    input_shapes: InputShapes,
    run: RunSettings,
    repeats: int,
    data: Path | None,
    no_memory: bool,
    weights: str | None,
    json_path: str | None,
) -> None:
    """Time ORIGINAL and the models REWRITTEN from it, in turn.

    Each variant runs in turn with ORIGINAL, so that both run under the same load, and no more than two models are in
    memory. The ratio is the original's median CPU time divided by the variant's: above 1 is faster.

    A decoder with a cache is timed in both phases: a prompt of the given length, and one token after it. Where past and
    present may share one buffer, as in onnxruntime-genai, they do, once with spare room and once without.
    """
    from onnx_attnq.inputs import load_samples
    from onnx_attnq.job import TimingSettings
    from onnx_attnq.job import bench as time_models
    from onnx_attnq.model import load

    if weights and rewritten:
        raise click.UsageError("--weights makes the models to compare; it does not go with REWRITTEN")
    refuse_shapes_of_data(data, input_shapes)
    samples = () if data is None else load_samples(data, load(original))
    with progress_bar("Timing") as progress, tempfile.TemporaryDirectory() as folder:
        references: tuple[Path, ...] = ()
        if weights is not None:
            references, rewritten = _with_weights(original, weights, Path(folder))
        settings = TimingSettings(tokens, batch, input_shapes, repeats, samples, not no_memory, references)
        timings, missing = time_models(original, rewritten, settings=settings, run=run, progress=progress)
    if json_path is not None:
        write_json({"timings": [timing.to_json() for timing in timings], "missing": missing}, json_path)
    if json_path == "-":
        return
    out = console()
    table = plain_table("variant", "input", "CPU ms", "wall ms", "p99 ms", "ratio", "peak MB")
    for t in timings:
        peak = "-" if t.peak_mb is None else f"{t.peak_mb:.0f}"
        table.add_row(
            t.variant, str(t.step), f"{t.cpu_ms:.1f}", f"{t.wall_ms:.1f}", f"{t.p99_ms:.1f}", f"{t.ratio:.2f}", peak
        )
    out.print(table)
    for line in _split(timings):
        out.print(line)
    for line in missing:
        out.print(f"not measured: {line}")


def _with_weights(original: Path, weights: str, folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Quantized weights alone; and quantized attention, alone and with them."""
    from onnx_attnq.job import compress, compress_weights
    from onnx_attnq.run import quantize_weights

    alone, attention, both = (
        folder / name for name in (f"{weights} weights", "attention", f"attention and {weights} weights")
    )
    quantize_weights(original, alone, weights)
    compress(original, attention, verification=None)
    compress_weights(original, both, weights, verification=None)
    return (alone,), (attention, both)


def _split(timings: list[Timing]) -> list[str]:
    """For each kind of run, how fast the rewritten model is; with the library, what fusing and what pruning gives."""
    from onnx_attnq.job import CONTROL

    controls = {t.step: t for t in timings if t.variant == CONTROL}
    native = [t for t in timings if t.variant.endswith(", native")]
    lines = []
    for t in native or [t for t in timings if t.variant.endswith(", portable")]:
        line = f"{t.step}: {t.variant} is {t.ratio:.2f} times as fast as the original"
        if (control := controls.get(t.step)) is not None and t in native:
            parts = f"{control.ratio:.2f} by its attention kernel, times {t.ratio / control.ratio:.2f} by pruning"
            line = f"{line}: {parts}"
        lines.append(line)
    return lines
