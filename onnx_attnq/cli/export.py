"""`onnx-attnq export MODEL_ID_OR_FOLDER`: from transformers to ONNX, and on to a compressed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import (
    bits_option,
    json_option,
    path_type,
    scheme_of,
    scheme_option,
    threshold_option,
)
from onnx_attnq.cli.output import console, write_json

if TYPE_CHECKING:
    from onnx_attnq.export import Exported
    from onnx_attnq.job import Compression
    from onnx_attnq.scheme import QuantScheme


@command()
@click.argument("model", type=click.Path())
@click.option("-o", "--output", type=path_type, required=True, help="Folder to write, which is new or empty.")
@click.option(
    "--task",
    help="Task of optimum, such as fill-mask or text-generation-with-past.  [default: the one that MODEL is for]",
)
@click.option("--opset", type=int, metavar="VERSION", help="Opset to export to.  [default: the exporter's]")
@click.option(
    "--attn",
    type=click.Choice(["eager", "sdpa"]),
    help="Implementation of attention in PyTorch that is traced.  [default: the architecture's]",
)
@click.option("--offline", is_flag=True, help="Do not connect to the hub: use MODEL from its cache.")
@click.option(
    "--compress",
    "compressing",
    is_flag=True,
    help="Compress the export, too: to OUTPUT/model.attnq.onnx, or a model with several parts to OUTPUT.attnq.",
)
@scheme_option
@bits_option
@threshold_option
@json_option
def export(
    model: str,
    output: Path,
    task: str | None,
    opset: int | None,
    attn: str | None,
    offline: bool,
    compressing: bool,
    scheme: str | None,
    bits: int | None,
    threshold: float | None,
    json_path: str | None,
) -> int:
    """Export MODEL from transformers to ONNX, checked against PyTorch.

    MODEL is the name of a model on the hub, or a folder with config.json and weights. optimum exports the
    architectures that it knows, torch.onnx the others. The tokenizer or processor is saved beside the ONNX files,
    so that the folder is all that `evaluate` and deployment need.
    """
    from onnx_attnq.export import AttentionImplementation
    from onnx_attnq.export import export as run

    chosen = scheme_of(scheme, bits, threshold)
    attention = None if attn is None else AttentionImplementation(attn)
    made = run(model, output, task=task, opset=opset, attention=attention, local_only=offline)
    results = _compress(made, chosen) if compressing else []
    if json_path is not None:
        written = (
            {"compressed": [str(result.output) for result in results if result.output is not None]}
            if compressing
            else {}
        )
        write_json(made.to_json() | written, json_path)
    if json_path != "-":
        out = console()
        for name in made.files:
            out.print(f"Wrote {output / name} ({made.task}, by {made.exporter}, equal to PyTorch)")
        for result in results:
            for failure in () if result.verification is None else result.verification.failures:
                out.print(f"failed: {failure}", style="red")
            if result.output is not None:
                out.print(f"Wrote {result.output} ({chosen.name})")
        if not compressing:
            out.print(f"Next: onnx-attnq {output / made.files[0] if len(made.files) == 1 else output}")
    return int(any(result.failed for result in results))


def _compress(made: Exported, scheme: QuantScheme) -> Sequence[Compression]:
    """A model beside the export; a model with parts in a folder of its own, in which they find one another."""
    from onnx_attnq.job import compress, compress_folder
    from onnx_attnq.rewriting import RewriteSettings

    if len(made.files) == 1:
        return [compress(made.folder / made.files[0], scheme=scheme)]
    return compress_folder(made.folder, rewriting=RewriteSettings(scheme)).models
