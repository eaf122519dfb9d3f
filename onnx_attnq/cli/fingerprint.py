"""``onnx-attnq fingerprint``: the canonical hash of a model."""

from __future__ import annotations

import click

from onnx_attnq.cli.options import json_option
from onnx_attnq.cli.output import write_json
from onnx_attnq.diff import canonicalize
from onnx_attnq.model import load


@click.command()
@click.argument("model")
@click.option("--metadata", is_flag=True, help="Let the IR version and metadata_props count too.")
@json_option
def fingerprint(model: str, metadata: bool, json_path: str | None) -> None:
    """Print a hash of MODEL that changes when, and only when, `diff` would report a difference.

    It is the SHA-256 of what `canonical` prints, so it does not depend on the platform or the version of protobuf.
    """
    computed = canonicalize(load(model), metadata=metadata).fingerprint
    if json_path is not None:
        write_json({"fingerprint": computed, "model": model}, json_path)
    if json_path != "-":
        click.echo(f"{computed}  {model}")
