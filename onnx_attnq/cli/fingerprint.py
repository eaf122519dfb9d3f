"""``onnx-attnq fingerprint``: the canonical hash of a model."""

from __future__ import annotations

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import json_option, metadata_option
from onnx_attnq.cli.output import write_json
from onnx_attnq.one_line import one_line


@command()
@click.argument("model", type=click.Path())
@metadata_option
@json_option
def fingerprint(model: str, metadata: bool, json_path: str | None) -> None:
    """Print a hash of MODEL that is equal for equal models.

    Models are equal when `diff` finds no difference. The hash is the SHA-256 of what `canonical` prints, so it does not
    depend on the platform or the version of protobuf.
    """
    from onnx_attnq.diff import fingerprint as canonical_hash
    from onnx_attnq.model import load

    computed = canonical_hash(load(model), metadata=metadata)
    if json_path is not None:
        write_json({"fingerprint": computed, "model": model}, json_path)
    if json_path != "-":
        click.echo(f"{computed}  {one_line(model)}")
