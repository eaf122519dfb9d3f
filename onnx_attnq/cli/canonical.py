"""``onnx-attnq canonical``: a model as a text to keep in version control."""

from __future__ import annotations

import click

from onnx_attnq.atomic import replacing
from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import json_option, metadata_option
from onnx_attnq.cli.output import write_json


@command()
@click.argument("model", type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(), help="File to write, such as a golden file.  [default: standard output]"
)
@metadata_option
@json_option
def canonical(model: str, output: str | None, metadata: bool, json_path: str | None) -> None:
    """Print MODEL as text that is equal for equal models.

    Models are equal when `diff` finds no difference. There is one line for each node; weights are shown as hashes.
    """
    from onnx_attnq.diff import canonicalize
    from onnx_attnq.model import load

    form = canonicalize(load(model), metadata=metadata)
    if output is not None:
        with replacing(output) as file:
            file.write(form.text.encode("utf-8", "surrogatepass"))
    if json_path is not None:
        write_json({"fingerprint": form.fingerprint, "lines": [line.text for line in form.lines]}, json_path)
    if output is None and json_path != "-":
        click.echo(form.text, nl=False)
