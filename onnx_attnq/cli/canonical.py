"""``onnx-attnq canonical``: a model as a text to keep in version control."""

from __future__ import annotations

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.cli.options import json_option
from onnx_attnq.cli.output import write_json
from onnx_attnq.diff import canonicalize
from onnx_attnq.model import load


@click.command()
@click.argument("model")
@click.option("-o", "--output", metavar="PATH", help="Write to a file, a golden file for instance.")
@click.option("--metadata", is_flag=True, help="Keep the IR version and metadata_props too.")
@json_option
def canonical(model: str, output: str | None, metadata: bool, json_path: str | None) -> None:
    """Print MODEL as a text that is the same for all models that `diff` calls equal; weights are hashes."""
    form = canonicalize(load(model), metadata=metadata)
    if output is not None:
        with replacing(output) as file:
            file.write(form.text.encode("utf-8", "surrogatepass"))
    if json_path is not None:
        write_json({"fingerprint": form.fingerprint, "lines": [line.text for line in form.lines]}, json_path)
    if output is None and json_path != "-":
        click.echo(form.text, nl=False)
