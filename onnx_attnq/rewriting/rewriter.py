"""Put quantized ops where the softmax of each planned site was, and record what was done."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.errors import InvalidModel, InvalidPlan, InvalidScheme
from onnx_attnq.find import (
    Added,
    Attention,
    AttentionSite,
    Bounded,
    Filled,
    Form,
    Sites,
)
from onnx_attnq.graph import Naming, NodeBuilder, dtype_of, rank_of, size_of
from onnx_attnq.model import files
from onnx_attnq.rewriting import bodies
from onnx_attnq.rewriting.group_query import fold, is_taken
from onnx_attnq.rewriting.plan import Plan
from onnx_attnq.rewriting.record import Record, RewrittenSite, refuse_rewritten, write_record
from onnx_attnq.rewriting.settings import RewriteSettings
from onnx_attnq.rewriting.tokens import share_tokens
from onnx_attnq.scheme import HeadSchemes, QuantScheme, SiteScheme, schemes_of, table_shape
from onnx_attnq.version import __version__

_LOG: Final = logging.getLogger(__name__)

_BODIES: Final = {
    Form.SOFTMAX: bodies.softmax_function,
    Form.PROBABILITIES: bodies.probabilities_function,
    Form.ATTENTION: bodies.attention_function,
}
_CAPPED: Final = functools.partial(bodies.attention_function, capped=True)

_LOWEST_IR_VERSION: Final = 8  # the first with model-local functions


def rewrite(
    model: ir.Model,
    sites: Sites,
    plan: Plan,
    settings: RewriteSettings = RewriteSettings(),
) -> Record:
    """Rewrite, in place, each site that the plan gives a scheme.

    Everything else stays: opset, names, initializers, metadata, other functions. An empty plan
    changes nothing at all.

    Args:
        model: The model that ``sites`` were found in.
        sites: What `find_sites` found; the undo leads to what the model was before `expose`.
        plan: A plan that covers them.
        settings: In what form; what to rewrite is the plan's.

    Returns:
        What was done, as it is written into the model's metadata.

    Raises:
        AlreadyRewritten: The model carries a rewrite.
        InvalidPlan: The plan, or ``sites``, does not belong to the model.
        InvalidModel: The type or rank of a site's scores cannot be told.
    """
    refuse_rewritten(model)
    exposed = sites.exposed
    if exposed.model is not model:
        raise InvalidPlan("the sites were found in another model than the one to rewrite")
    plan.check(exposed.structure_hash, [site.id for site in sites.sites])
    names = _Names(model)
    inserted: list[tuple[AttentionSite, Form, SiteScheme, ir.Node]] = []
    families: dict[tuple[Form, str, bool], list[SiteScheme]] = {}
    folded: dict[str, object] = {}
    # The last first: what enters a site may be what leaves an earlier one, and is replaced together with it.
    for site in reversed(sites.sites):
        scheme = plan.scheme_of(site.id)
        if scheme is None:
            continue
        # Plain ops are there to be read by any runtime, so they stay close to the original graph.
        form = Form.SOFTMAX if settings.inline and site.form is Form.ATTENTION else site.form
        softmax = site.probabilities.producer()
        fused = None if softmax is None or settings.inline else exposed.fused.get(softmax)
        op = _rewrite_site(site, form, scheme, model, names, settings)
        if fused is not None and is_taken(fused):
            op = fold(model, fused, op, scheme, folded) or op
        inserted.append((site, form, scheme, op))
        capped = form is Form.ATTENTION and site.attention is not None and site.attention.softcap != 0.0
        families.setdefault((form, bodies.softmax_op(schemes_of(scheme)[0]), capped), []).append(scheme)
    share_tokens(model)
    done = [_rewritten_site(*entry) for entry in reversed(inserted)]
    for entry in done:
        _LOG.debug("rewrote %s: %s, %s", entry.id, entry.form, entry.scheme.name)
    _LOG.info("rewrote %d of %d sites", len(done), len(sites.sites))
    record = Record(__version__, exposed.structure_hash, plan.hash, settings.inline, tuple(done))
    if not done:
        return record
    for (form, _, capped), given in families.items():
        # One body serves all schemes of a family; the lowest threshold decides how careful it must be.
        lowest = min((one for scheme in given for one in schemes_of(scheme)), key=lambda one: one.threshold)
        by_head = any(isinstance(scheme, HeadSchemes) for scheme in given)
        body = (_CAPPED if capped else _BODIES[form])(lowest, files.opset(model), by_head=by_head)
        model.functions[body.identifier()] = body
    model.graph.opset_imports[bodies.DOMAIN] = bodies.DOMAIN_VERSION
    model.ir_version = max(model.ir_version or 0, _LOWEST_IR_VERSION)
    if settings.inline:
        InlinePass(lambda f: f.domain == bodies.DOMAIN)(model)
        model.graph.opset_imports.pop(bodies.DOMAIN, None)
    exposed.snapshot.remove_orphans(model)
    undo = exposed.snapshot.undo(model)
    if isinstance(undo, str):
        record = dataclasses.replace(record, irreversible=undo)
    else:
        record = dataclasses.replace(record, undo=undo)
    write_record(model, record)
    return record


def _rewrite_site(
    site: AttentionSite,
    form: Form,
    scheme: SiteScheme,
    model: ir.Model,
    names: _Names,
    settings: RewriteSettings,
) -> ir.Node:
    """Returns the new op."""
    if form is Form.ATTENTION:
        assert site.attention is not None
        return _insert_attention(site, site.attention, scheme, model, names, settings)
    return _insert_op(site, form, scheme, model, names, settings)


def _rewritten_site(site: AttentionSite, form: Form, scheme: SiteScheme, op: ir.Node) -> RewrittenSite:
    inputs = tuple(value.name or "" for value in op.inputs if value is not None)
    return RewrittenSite(site.id, site.op_type, site.node, site.scope, form, scheme, inputs, op.outputs[0].name or "")


def _insert_op(
    site: AttentionSite, form: Form, scheme: SiteScheme, model: ir.Model, names: _Names, settings: RewriteSettings
) -> ir.Node:
    """Quantize scores or probabilities, with the casts and transposes that it takes; returns the op."""
    original = site.probabilities
    node = original.producer()
    source = site.scores if form is Form.SOFTMAX else original
    assert node is not None
    assert node.graph is not None
    assert source is not None
    # The scale and zero point of quantized probabilities, which cover 0 to 1 and so the new values too.
    quantization = node.inputs[3:5] if node.op_type == "QLinearSoftmax" else ()
    dtype = ir.DataType.FLOAT if quantization else dtype_of(source) or dtype_of(original)
    if dtype is None:
        raise InvalidModel(f"site {site.id!r}: the type of its scores is unknown; run onnx shape inference first")
    swap = _swap_last(site)

    b = NodeBuilder(files.opset(model), names.under(original.name or site.id))
    value = source
    if quantization:
        value = b.DequantizeLinear(value, *quantization)
    elif dtype != ir.DataType.FLOAT:
        value = b.Cast(value, to=int(ir.DataType.FLOAT))
    if swap:
        value = b.Transpose(value, perm=swap)
    make = bodies.softmax_op if form is Form.SOFTMAX else bodies.probabilities_op
    tables = bodies.scheme_attributes(scheme, _table_shape(site, scheme))
    value = b.op(make(schemes_of(scheme)[0]), value, domain=bodies.DOMAIN, **{table.name: table for table in tables})
    op = b.nodes[-1]
    if swap:
        value = b.Transpose(value, perm=swap)
    if quantization:
        value = b.QuantizeLinear(value, *quantization)
    elif dtype != ir.DataType.FLOAT:
        value = b.Cast(value, to=int(dtype))

    node.graph.insert_after(node, b.nodes)
    # The original value, which may be an output that declares no type, stays as it is, so that a revert gives it back.
    declared = ir.TensorType((dtype_of(quantization[1]) if quantization else dtype) or ir.DataType.UINT8)
    _type_values(b.nodes, original.shape, original.type or declared, swap)
    _hand_over(original, value, set(b.nodes), model, settings.quantize_outputs)
    return op


def _table_shape(site: AttentionSite, scheme: SiteScheme) -> tuple[int, ...]:
    """The shape of the op's tables: one number, or one for each head."""
    if isinstance(scheme, QuantScheme):
        return (1,)
    shape = site.probabilities.shape
    if shape is None:  # as in exports of TorchScript: the rank follows from the nodes, and the heads from the schemes
        sizes: tuple[int | None, ...] = (None,) * (rank_of(site.probabilities) or 0)
    else:
        sizes = tuple(size_of(site.probabilities, axis) for axis in range(len(shape)))
    try:
        return table_shape(scheme, sizes)
    except InvalidScheme as error:
        raise InvalidPlan(f"site {site.id!r}: {error}") from None


def _insert_attention(
    site: AttentionSite,
    attention: Attention,
    scheme: SiteScheme,
    model: ir.Model,
    names: _Names,
    settings: RewriteSettings,
) -> ir.Node:
    """Replace products, scale, masks, softmax and guard by one op; returns it."""
    product = site.value_products[0].node
    assert isinstance(product.graph, ir.Graph)
    prefix, opset = attention.context.name or site.id, files.opset(model)
    masks = NodeBuilder(opset, names.under(f"{prefix}_mask"))
    mask = _combined_mask(masks, attention) or _no_mask(model, names)
    b = NodeBuilder(opset, names.under(prefix))
    query, key, value = attention.query, attention.key, attention.value
    weighed = b.cast(value.value, ir.DataType.FLOAT, attention.dtype)
    weighed.shape = value.value.shape
    attributes = bodies.attention_attributes(
        attention.scale,
        query.perm,
        key.perm,
        value.perm,
        attention.out_perm,
        zeroes_masked_rows=attention.zeroes_masked_rows,
        int16_products=settings.int16_products,
        softcap=attention.softcap,
    )
    attributes = [*bodies.scheme_attributes(scheme, _table_shape(site, scheme)), *attributes]
    context = b.op(
        bodies.attention_op(schemes_of(scheme)[0], capped=attention.softcap != 0.0),
        *(query.value, key.value, weighed, mask),
        domain=bodies.DOMAIN,
        **{attribute.name: attribute for attribute in attributes},
    )
    op = b.nodes[-1]
    context.type, context.shape = ir.TensorType(ir.DataType.FLOAT), attention.context.shape
    if attention.dtype != ir.DataType.FLOAT:
        context = b.cast(context, attention.dtype)
        context.shape = attention.context.shape
    product.graph.insert_before(product, [*masks.nodes, *b.nodes])
    _hand_over(attention.context, context, set(b.nodes), model, quantize_outputs=True)
    return op


def _combined_mask(b: NodeBuilder, attention: Attention) -> ir.Value | None:
    """One value that has the effect of all masks when it is added to the scores; None without masks."""
    combined: ir.Value | None = None
    for mask in attention.masks:
        match mask:
            case Added(value):
                combined = value if combined is None else b.Add(combined, value)
            case Filled(condition, when, fill):
                # A very low constant makes the score that it is added to negligible.
                kept = b.constant(0.0, ir.DataType.FLOAT) if combined is None else combined
                filled = b.constant(fill, ir.DataType.FLOAT)
                combined = b.Where(condition, filled, kept) if when else b.Where(condition, kept, filled)
            case Bounded(lowest) if combined is not None:
                combined = b.Max(combined, b.constant(lowest, ir.DataType.FLOAT))
    return combined


def _no_mask(model: ir.Model, names: _Names) -> ir.Value:
    """A zero in the main graph that all attentions without a mask share; runtimes drop its addition."""
    if names.no_mask is None:
        name = names.fresh(f"{bodies.DOMAIN}_no_mask")
        tensor = ir.tensor(np.zeros((), np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
        model.graph.register_initializer(value)
        names.no_mask = value
    return names.no_mask


class _Names:
    """Names of values and nodes that are not taken yet, and the one value that all sites share."""

    def __init__(self, model: ir.Model) -> None:
        self.no_mask: ir.Value | None = None
        graphs = (model.graph, *model.graph.subgraphs())
        self._taken = {value.name for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
        for node in model.graph.all_nodes():
            self._taken.update(value.name for value in node.outputs)
            self._taken.add(node.name)

    def fresh(self, name: str) -> str:
        """``name``, or with a number behind it."""
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def under(self, prefix: str) -> Naming:
        """Names that begin with the prefix."""

        def naming(op_type: str, _: int) -> tuple[str, str]:
            stem = f"{prefix}_{op_type.split('_')[0]}"
            return self.fresh(f"{stem}_node"), self.fresh(stem)

        return naming


def _swap_last(site: AttentionSite) -> list[int] | None:
    """The permutation that makes the axis of the keys the last one; it is its own inverse."""
    if site.axis == -1:
        return None
    rank = rank_of(site.probabilities)
    if rank is None:
        raise InvalidModel(f"site {site.id!r}: the rank of its scores is unknown; run onnx shape inference first")
    if rank + site.axis < 0:
        raise InvalidModel(f"site {site.id!r}: its scores are said to have {rank} axes, too few for what is around it")
    perm = list(range(rank))
    perm[-1], perm[site.axis] = perm[site.axis], perm[-1]
    return perm


def _type_values(
    nodes: list[ir.Node], shape: ir.Shape | None, last: ir.TypeProtocol, permuted: list[int] | None
) -> None:
    """Type and shape of the new values, which shape inference cannot know of an op that it does not."""
    for node in nodes:
        value = node.outputs[0]
        if node.op_type == "Transpose" and shape is not None and permuted is not None:
            shape = ir.Shape([shape[i] for i in permuted])
        value.shape = shape
        value.type = ir.TensorType(ir.DataType.FLOAT)
    nodes[-1].outputs[0].type = last


def _hand_over(original: ir.Value, new: ir.Value, own: set[ir.Node], model: ir.Model, quantize_outputs: bool) -> None:
    """Let everything but the nodes in ``own`` use the new value, and remove what is no longer used."""
    for use in tuple(original.uses()):
        if use.node not in own:
            use.node.replace_input_with(use.idx, new)
    graph = original.graph
    assert isinstance(graph, ir.Graph)
    if original.is_graph_output() and (graph is not model.graph or quantize_outputs):
        for index, output in enumerate(graph.outputs):
            if output is original:
                graph.outputs[index] = new
    if not original.uses() and not original.is_graph_output():
        name = original.name
        _remove_unused(original)
        new.name = name


def _remove_unused(value: ir.Value) -> None:
    """Remove the node that computed a value, and all nodes upstream that only it used."""
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is None or not isinstance(node.graph, ir.Graph):
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        pending.extend(v for v in node.inputs if v is not None)
        node.graph.remove(node, safe=True)
