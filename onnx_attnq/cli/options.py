"""The options that several commands share, so that they are spelled, checked and explained alike."""

from __future__ import annotations

from pathlib import Path

import click
import onnx_ir as ir

from onnx_attnq.inputs import MadeUp, load_samples, made_up_samples

data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Samples: .npz, .npy, a folder of them, or test_data_set_*."
)
samples_option = click.option(
    "--samples", type=click.IntRange(1), default=4, show_default=True, help="Samples to make up without --data."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of the made-up samples.")
atol_option = click.option("--atol", type=click.FloatRange(0.0), help="Absolute tolerance of each element.")
rtol_option = click.option("--rtol", type=click.FloatRange(0.0), help="Tolerance of each element, relative to A.")
threads_option = click.option("--threads", type=click.IntRange(1), help="Threads inside an op.  [default: all cores]")
json_option = click.option(
    "--json", "json_path", metavar="PATH|-", help="Write the result as JSON; - for standard output."
)


def samples_for(
    model: ir.Model, data: Path | None, count: int, seed: int, *, edges: bool = False, threads: int | None = None
) -> MadeUp:
    """What --data, --samples and --seed ask for: samples from files, or made up."""
    if data is not None:
        return MadeUp(load_samples(data, model))
    return made_up_samples(model, count, seed, edges=edges, threads=threads)
