"""`onnx-attnq revert MODEL`: the original graph again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import external_data_option, json_option, path_type
from onnx_attnq.cli.output import console, write_json
from onnx_attnq.counted import counted
from onnx_attnq.errors import CannotRevert


@command()
@click.argument("model", type=path_type)
@click.option("-o", "--output", required=True, type=path_type, help="File to write the original graph to.")
@external_data_option
@json_option
def revert(model: Path, output: Path, external_data: Any, json_path: str | None) -> None:
    """Restore the original graph of a rewritten MODEL.

    Names and the order of nodes are the original's; the structure hash is checked.
    """
    from onnx_attnq.job import file_json
    from onnx_attnq.model import load, save
    from onnx_attnq.rewriting import revert as run

    loaded = load(model)
    try:
        record = run(loaded)
    except CannotRevert as error:
        raise CannotRevert(f"{model}: {error}") from None
    save(loaded, output, external_data)
    if json_path is not None:
        sites = [site.id for site in record.sites]
        write_json({"output": file_json(output), "structure_hash": record.structure_hash, "sites": sites}, json_path)
    if json_path != "-":
        out = console()
        out.print(f"{counted(len(record.sites), 'site')} restored; the structure is that of the original")
        out.print(f"Wrote {output}")
