"""`onnx-attnq inspect MODEL`: what attention there is, or what was done to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnx_attnq.cli.command import command
from onnx_attnq.cli.options import input_shape_option, json_option, path_type, run_options
from onnx_attnq.cli.output import console, plain_table, scheme_text, write_json
from onnx_attnq.counted import counted
from onnx_attnq.errors import CannotRevert, InvalidModel

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnx_attnq.find import Form, Sites
    from onnx_attnq.inputs import InputShapes
    from onnx_attnq.rewriting import Record, RewrittenSite
    from onnx_attnq.run import RunSettings

_REASONS = 3
"""Why products stay is told so often; most reasons name nodes, and so each layer has its own."""


@command()
@click.argument("model", type=path_type)
@click.option(
    "--explain", metavar="NODE", help="Show how one softmax was judged, given by its site id or the name of its node."
)
@click.option(
    "--no-run", is_flag=True, help="Do not run MODEL; heads and shapes that shape inference cannot tell stay unknown."
)
@input_shape_option
@run_options
@json_option
def inspect(
    model: Path, explain: str | None, no_run: bool, input_shapes: InputShapes, run: RunSettings, json_path: str | None
) -> None:
    """List the attention of MODEL, and why other softmaxes are none.

    The site ids are what --include and --exclude match. For a rewritten model, show how it was rewritten.

    Heads and shapes that the file does not give are found by shape inference or, where that cannot tell, by running
    MODEL on made-up inputs.
    """
    from onnx_attnq.find import expose, find_sites
    from onnx_attnq.job import inspection_json
    from onnx_attnq.model import load
    from onnx_attnq.rewriting import read_record
    from onnx_attnq.study import with_shapes

    loaded = load(model)
    record = read_record(loaded)
    original = loaded if record is None else _without_ours(model)
    ours = set() if record is None else _node_names(loaded) - _node_names(original)
    exposed = expose(original)
    found = find_sites(exposed)
    if explain is not None:
        lines = _explained(explain, found, record)
        if not lines and explain in ours:
            lines = ["put in by onnx-attnq when it rewrote the model; `onnx-attnq inspect` lists what was there"]
        if not lines:
            raise InvalidModel(f"{model}: no softmax node is named {explain!r}; `onnx-attnq inspect` lists them")
        for line in lines:
            console().print(line)
        return
    problem = None
    if record is None:
        found, problem = with_shapes(load(model), exposed, found, input_shapes, None if no_run else run)
    else:
        done = {site.id for site in record.sites}
        found = dataclasses.replace(found, sites=tuple(site for site in found.sites if site.id not in done))
    if json_path is not None:
        write_json(inspection_json(model, loaded, found, record), json_path)
    if json_path == "-":
        return
    if record is not None:
        _print_record(model, record)
    if found.sites:
        _print_sites(model, found, "" if record is None else " left alone")
        if problem is not None:
            console().print(f"note: shapes are not all known: {problem}")
    elif record is None:
        console().print(f"{model}: no attention found")
    for rejection in found.rejections:
        console().print(f"declined: {rejection.op_type} {rejection.node!r} in {rejection.scope}: {rejection.reason}")


def _without_ours(path: Path) -> ir.Model:
    """A rewritten model without the ops that were put in, parts of which look like an attention: the original."""
    from onnx_attnq.model import load
    from onnx_attnq.rewriting import DOMAIN, revert

    model = load(path)
    try:
        revert(model)
    except CannotRevert:
        model = load(path)  # without their bodies, the ops that were put in are none that a walk enters
        for name in [name for name in model.functions if name[0] == DOMAIN]:
            del model.functions[name]
    return model


def _explained(name: str, found: Sites, record: Record | None) -> list[str]:
    """How the softmaxes of that name were judged, and what became of them."""
    done = () if record is None else record.sites
    lines: list[str] = []
    for site in found.sites:
        if name in (site.id, site.node):
            ours = next((one for one in done if one.id == site.id), None)
            lines += (*site.story, f"attention: {_outcome(site.form)}" if ours is None else _rewritten(ours))
    for rejection in found.rejections:
        if name == rejection.node:
            lines += (*rejection.story, f"declined: {rejection.reason}")
    # A rewrite that cannot be undone has no story of what was there.
    return lines or [_rewritten(one) for one in done if name in (one.id, one.node)]


def _rewritten(site: RewrittenSite) -> str:
    return f"rewritten by onnx-attnq: {_outcome(site.form)}; {scheme_text(site.scheme)}"


def _node_names(model: ir.Model) -> set[str]:
    from onnx_attnq.graph import Dataflow

    return {node.name for graph in Dataflow(model).graphs for node in graph if node.name}


def _print_record(model: Path, record: Record) -> None:
    from onnx_attnq.scheme import schemes_of

    table = plain_table("site", "form", "scheme", "bits", "threshold")
    for done in record.sites:
        schemes = schemes_of(done.scheme)
        bits = ("-" if one.bits is None else str(one.bits) for one in schemes)
        thresholds = (f"{one.threshold:g}" for one in schemes)
        table.add_row(done.id, str(done.form), done.scheme.name, " ".join(bits), " ".join(thresholds))
    out = console()
    out.print(f"{model}: rewritten by onnx-attnq {record.version}")
    out.print(f"original: {record.structure_hash}")
    out.print(f"plan:     {record.plan}")
    if record.undo is None:
        out.print(f"cannot be reverted: {record.irreversible}")
    out.print(table)


def _print_sites(model: Path, found: Sites, which: str) -> None:
    table = plain_table("site", "form", "scope", "heads", "probabilities", "from scores to context")
    for text in (1, 2, 4, 5):
        table.columns[text].justify = "left"
    for site in found.sites:
        heads = "-" if site.heads is None else str(site.heads)
        shape = "-" if site.shape is None else " x ".join("?" if dim is None else str(dim) for dim in site.shape)
        table.add_row(site.id, str(site.form), site.scope, heads, shape, " > ".join(site.chain))
    out = console()
    out.print(f"{model}: {counted(len(found.sites), 'attention site')}{which}")
    out.print(table)
    reasons = _reasons(found)
    for reason, ids in list(reasons.items())[:_REASONS]:
        out.print(f"note: {reason}: {', '.join(ids)}")
    if len(reasons) > _REASONS:
        out.print(f"note: so it is, for like reasons, at {len(reasons) - _REASONS} more; --json has all")


def _reasons(found: Sites) -> dict[str, list[str]]:
    """Why products stay, or what becomes of them all the same, and the ids of the sites of which that is so."""
    from onnx_attnq.rewriting import whole_op

    reasons: dict[str, list[str]] = {}
    for site in found.sites:
        if not site.softmax_only:
            continue
        whole = whole_op(found, site)
        taken = f"with the native library one op takes the place of the whole {whole}"
        reasons.setdefault(f"the products stay, as {site.softmax_only}" if whole is None else taken, []).append(site.id)
    return reasons


def _outcome(form: Form) -> str:
    from onnx_attnq.find import Form

    match form:
        case Form.ATTENTION:
            return "one op replaces the products and the softmax"
        case Form.SOFTMAX:
            return "one op replaces the softmax; the products stay"
        case Form.PROBABILITIES:
            return "the probabilities are quantized where they leave the softmax"
