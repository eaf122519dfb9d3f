"""``onnx-attnq diff``: what differs between two models."""

from __future__ import annotations

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import json_option
from onnx_attnq.cli.output import write_json
from onnx_attnq.one_line import one_line


@command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--metadata", is_flag=True, help="Compare the IR version and metadata_props, too.")
@click.option(
    "--context",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="LINES",
    help="Number of nodes to show before and after a difference.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="COUNT",
    help="Number of differences to show; the JSON form has all.",
)
@json_option
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, metadata: bool, context: int, limit: int, json_path: str | None) -> None:
    """Show where the graphs of models A and B differ.

    The first difference along the data flow comes first.
    Names of values and nodes, the order of nodes, the storage of constants, doc strings and the producer do
    not matter. Exits with 0 when the models are equal and with 1 when they differ.
    """
    from onnx_attnq.diff import diff_models, format_diff
    from onnx_attnq.model import load

    result = diff_models(load(a), load(b), metadata=metadata, context=context)
    if json_path is not None:
        write_json(result.to_json(), json_path)
    if json_path != "-":
        click.echo(format_diff(result, one_line(a), one_line(b), limit))
    ctx.exit(0 if result.equal else 1)
