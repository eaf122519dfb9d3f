"""The ``--json`` option that every command has, and how it is obeyed."""

from __future__ import annotations

import json
from typing import Any

import click

from onnx_attnq.atomic import replacing

json_option = click.option(
    "--json", "json_path", metavar="PATH|-", help="Write the result as JSON to a file, or to standard output for '-'."
)


def write_json(result: Any, path: str) -> None:
    """Write a result to a file, which appears when it is complete, or to standard output."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if path == "-":
        click.echo(text, nl=False)
        return
    with replacing(path) as file:
        file.write(text.encode())


__all__ = ["json_option", "write_json"]
