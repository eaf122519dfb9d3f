"""`onnx-attnq export MODEL_ID_OR_FOLDER`: from transformers to ONNX, and on to a compressed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from onnx_attnq.cli.options import json_option
from onnx_attnq.cli.output import console, write_json
from onnx_attnq.export import Attention, Exported
from onnx_attnq.export import export as run
from onnx_attnq.job import Compression, compress, compress_folder
from onnx_attnq.scheme import PRESETS, QuantScheme, preset


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--task", help="Such as fill-mask or text-generation-with-past.  [default: inferred]")
@click.option("--opset", type=int, help="[default: the exporter's]")
@click.option("--attn", type=click.Choice([str(kind) for kind in Attention]), help="[default: the architecture's]")
@click.option("--offline", is_flag=True, help="Never ask the hub.")
@click.option("--compress", "compressing", is_flag=True, help="Compress it too; one with parts to OUTPUT.attnq.")
@click.option("--scheme", type=click.Choice(PRESETS), default=PRESETS[0], show_default=True, help="For --compress.")
@click.option("--bits", type=int, help="For --compress: bits for each probability, 1 to 8.")
@click.option("--threshold", type=float, help="For --compress: below this, values are pruned.")
@json_option
def export(
    model: str,
    output: Path,
    task: str | None,
    opset: int | None,
    attn: str | None,
    offline: bool,
    compressing: bool,
    scheme: str,
    bits: int | None,
    threshold: float | None,
    json_path: str | None,
) -> int:
    """Export MODEL, a folder or the name of a model on the hub, and check the result against PyTorch.

    optimum exports the architectures that it knows, torch.onnx the others. The tokenizer or processor is saved beside
    the ONNX files, so that the folder is all that `evaluate` and deployment need.
    """
    chosen = preset(scheme, bits=bits, threshold=threshold)
    attention = None if attn is None else Attention(attn)
    made = run(model, output, task=task, opset=opset, attention=attention, local_only=offline)
    results = _compress(made, chosen) if compressing else []
    if json_path is not None:
        written = {"compressed": [str(result.output) for result in results]} if compressing else {}
        write_json(made.to_json() | written, json_path)
    if json_path != "-":
        out = console()
        for name in made.files:
            out.print(f"Wrote {output / name} ({made.task}, by {made.exporter}, equal to PyTorch)")
        for result in results:
            out.print(f"Wrote {result.output} ({chosen.name})")
        if not compressing:
            out.print(f"Next: onnx-attnq {output / made.files[0] if len(made.files) == 1 else output}")
    return 0 if all(result.verification is None or result.verification.passed for result in results) else 1


def _compress(made: Exported, scheme: QuantScheme) -> Sequence[Compression]:
    """A model beside the export; a model with parts in a folder of its own, in which they find one another."""
    if len(made.files) == 1:
        return [compress(made.folder / made.files[0], scheme=scheme)]
    return compress_folder(made.folder, scheme=scheme).models
