"""`onnx-attnq revert MODEL`: the original graph again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnx_attnq.cli.options import json_option
from onnx_attnq.cli.output import console, write_json
from onnx_attnq.errors import CannotRevert
from onnx_attnq.job import file_json
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import revert as run


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option(
    "--external-data", type=click.Choice(["copy", "keep"]), default="copy", show_default=True, help="Weights."
)
@json_option
def revert(model: Path, output: Path, external_data: Any, json_path: str | None) -> None:
    """Give back the original graph of a rewritten MODEL, with its names and the order of its nodes."""
    loaded = load(model)
    try:
        record = run(loaded)
    except CannotRevert as error:
        raise CannotRevert(f"{model}: {error}") from None
    save(loaded, output, external_data)
    if json_path is not None:
        sites = [site.id for site in record.sites]
        write_json({"output": file_json(output), "fingerprint": record.original, "sites": sites}, json_path)
    if json_path != "-":
        out = console()
        out.print(f"{len(record.sites)} sites are what they were; the fingerprint is that of the original")
        out.print(f"Wrote {output}")
