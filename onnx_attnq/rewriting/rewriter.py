"""Put quantized ops where the softmax of each planned site was, and write down what was done."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Final

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
from onnx_attnq.graph import dtype_of, rank_of
from onnx_attnq.model import files
from onnx_attnq.rewriting import bodies
from onnx_attnq.rewriting.group_query import fold, is_taken
from onnx_attnq.rewriting.plan import Plan
from onnx_attnq.rewriting.record import Record, RewrittenSite, refuse_rewritten, write_record
from onnx_attnq.scheme import HeadSchemes, QuantScheme, SiteScheme, schemes_of, table_shape
from onnx_attnq.version import __version__

_LOG: Final = logging.getLogger(__name__)

_BODIES: Final = {
    Form.SOFTMAX: bodies.softmax_function,
    Form.PROBABILITIES: bodies.probabilities_function,
    Form.ATTENTION: bodies.attention_function,
}

_LOWEST_IR_VERSION: Final = 8  # the first with model-local functions


def rewrite(
    model: ir.Model,
    sites: Sites,
    plan: Plan,
    *,
    inline: bool = False,
    quantize_outputs: bool = False,
    int16_products: bool = False,
) -> Record:
    """Rewrite, in place, each site that the plan gives a scheme.

    Everything else stays: opset, names, initializers, metadata, other functions. An empty plan
    changes nothing at all.

    Args:
        model: The model that ``sites`` were found in.
        sites: What `find_sites` found; the undo leads to what the model was before `expose`.
        plan: A plan that covers them.
        inline: Plain ops of the model's opset instead of ops with a function, for runtimes that know no functions.
        quantize_outputs: Where probabilities are an output of the model, quantize that output too.
        int16_products: Let the native library multiply query and key in 16-bit integers, which is faster and
            flips more codes; the standard ops keep multiplying in float32.

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
    families: dict[tuple[Form, str], list[SiteScheme]] = {}
    folded: dict[str, object] = {}
    # The last first: what enters a site may be what leaves an earlier one, and is replaced together with it.
    for site in reversed(sites.sites):
        scheme = plan.scheme_of(site.id)
        if scheme is None:
            continue
        # Plain ops are there to be read by any runtime, so they stay close to the original graph.
        form = Form.SOFTMAX if inline and site.form is Form.ATTENTION else site.form
        softmax = site.probabilities.producer()
        fused = None if softmax is None or inline else exposed.fused.get(softmax)
        op = _rewrite_site(site, form, scheme, model, names, quantize_outputs, int16_products)
        if fused is not None and is_taken(fused):
            op = fold(model, fused, op, scheme, folded) or op
        inserted.append((site, form, scheme, op))
        families.setdefault((form, bodies.softmax_op(schemes_of(scheme)[0])), []).append(scheme)
    done = [_rewritten_site(*entry) for entry in reversed(inserted)]
    for entry in done:
        _LOG.debug("rewrote %s: %s, %s", entry.id, entry.form, entry.scheme.name)
    _LOG.info("rewrote %d of %d sites", len(done), len(sites.sites))
    record = Record(__version__, exposed.structure_hash, plan.hash, inline, tuple(done))
    if not done:
        return record
    for (form, _), given in families.items():
        # One body serves all schemes of a family; the lowest threshold decides how careful it must be.
        lowest = min((one for scheme in given for one in schemes_of(scheme)), key=lambda one: one.threshold)
        by_head = any(isinstance(scheme, HeadSchemes) for scheme in given)
        body = _BODIES[form](lowest, files.opset(model), by_head=by_head)
        model.functions[body.identifier()] = body
    model.graph.opset_imports[bodies.DOMAIN] = bodies.DOMAIN_VERSION
    model.ir_version = max(model.ir_version or 0, _LOWEST_IR_VERSION)
    if inline:
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
    quantize_outputs: bool,
    int16_products: bool,
) -> ir.Node:
    """Returns the new op."""
    if form is Form.ATTENTION:
        assert site.attention is not None
        return _insert_attention(site, site.attention, scheme, model, names, int16_products)
    return _insert_op(site, form, scheme, model, names, quantize_outputs)


def _rewritten_site(site: AttentionSite, form: Form, scheme: SiteScheme, op: ir.Node) -> RewrittenSite:
    inputs = tuple(value.name or "" for value in op.inputs if value is not None)
    return RewrittenSite(site.id, site.op_type, site.node, site.scope, form, scheme, inputs, op.outputs[0].name or "")


def _insert_op(
    site: AttentionSite, form: Form, scheme: SiteScheme, model: ir.Model, names: _Names, quantize_outputs: bool
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

    chain = _Chain(source, original.name or site.id, names)
    if quantization:
        chain.add("DequantizeLinear", *quantization)
    elif dtype != ir.DataType.FLOAT:
        chain.add("Cast", to=int(ir.DataType.FLOAT))
    if swap:
        chain.add("Transpose", perm=swap)
    make = bodies.softmax_op if form is Form.SOFTMAX else bodies.probabilities_op
    tables = bodies.scheme_attributes(scheme, _table_shape(site, scheme))
    op = chain.add(make(schemes_of(scheme)[0]), domain=bodies.DOMAIN, attributes=tables)
    if swap:
        chain.add("Transpose", perm=swap)
    if quantization:
        chain.add("QuantizeLinear", *quantization)
    elif dtype != ir.DataType.FLOAT:
        chain.add("Cast", to=int(dtype))

    node.graph.insert_after(node, chain.nodes)
    # The original value, which may be an output that declares no type, stays as it is, so that a revert gives it back.
    declared = ir.TensorType((dtype_of(quantization[1]) if quantization else dtype) or ir.DataType.UINT8)
    _type_values(chain.nodes, original.shape, original.type or declared, swap)
    _hand_over(original, chain.value, set(chain.nodes), model, quantize_outputs)
    return op


def _table_shape(site: AttentionSite, scheme: SiteScheme) -> tuple[int, ...]:
    """The shape of the op's tables: one number, or one for each head."""
    if isinstance(scheme, QuantScheme):
        return (1,)
    shape = site.probabilities.shape
    if shape is None:  # as in exports of TorchScript: the rank follows from the nodes, and the heads from the schemes
        sizes: tuple[int | None, ...] = (None,) * (rank_of(site.probabilities) or 0)
    else:
        sizes = tuple(dim if isinstance(dim, int) else None for dim in shape)
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
    int16_products: bool,
) -> ir.Node:
    """Replace products, scale, masks, softmax and guard by one op; returns it."""
    product = site.value_products[0].node
    assert isinstance(product.graph, ir.Graph)
    prefix = attention.context.name or site.id
    nodes: list[ir.Node] = []
    mask = _combined_mask(attention, prefix, names, nodes) or _no_mask(model, names)
    query, key, value = attention.query, attention.key, attention.value
    weighed = value.value
    if attention.dtype != ir.DataType.FLOAT:
        wider = _Chain(weighed, prefix, names)
        nodes.append(wider.add("Cast", to=int(ir.DataType.FLOAT)))
        wider.value.type, wider.value.shape = ir.TensorType(ir.DataType.FLOAT), weighed.shape
        weighed = wider.value
    attributes = bodies.attention_attributes(
        attention.scale,
        query.perm,
        key.perm,
        value.perm,
        attention.out_perm,
        zeroes_masked_rows=attention.zeroes_masked_rows,
        int16_products=int16_products,
    )
    chain = _Chain(query.value, prefix, names)
    op = chain.add(
        bodies.attention_op(schemes_of(scheme)[0]),
        key.value,
        weighed,
        mask,
        domain=bodies.DOMAIN,
        attributes=[*bodies.scheme_attributes(scheme, _table_shape(site, scheme)), *attributes],
    )
    if attention.dtype != ir.DataType.FLOAT:
        chain.add("Cast", to=int(attention.dtype))
    for node in chain.nodes:
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), attention.context.shape
    chain.value.type = ir.TensorType(attention.dtype)
    product.graph.insert_before(product, [*nodes, *chain.nodes])
    _hand_over(attention.context, chain.value, set(chain.nodes), model, quantize_outputs=True)
    return op


def _combined_mask(attention: Attention, prefix: str, names: _Names, nodes: list[ir.Node]) -> ir.Value | None:
    """One value that has the effect of all masks when it is added to the scores; None without masks."""
    combined: ir.Value | None = None

    def apply(op_type: str, *inputs: ir.Value) -> ir.Value:
        chain = _Chain(inputs[0], f"{prefix}_mask", names)
        nodes.append(chain.add(op_type, *inputs[1:]))
        return chain.value

    def number(value: float) -> ir.Value:
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(value, np.float32)))])
        node.name, node.outputs[0].name = names.fresh(f"{prefix}_constant"), names.fresh(f"{prefix}_number")
        nodes.append(node)
        return node.outputs[0]

    for mask in attention.masks:
        match mask:
            case Added(value):
                combined = value if combined is None else apply("Add", combined, value)
            case Filled(condition, when, fill):
                # What is very low swallows the score that it is added to.
                kept = number(0.0) if combined is None else combined
                branches = (number(fill), kept) if when else (kept, number(fill))
                combined = apply("Where", condition, *branches)
            case Bounded(lowest):
                combined = None if combined is None else apply("Max", combined, number(lowest))
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


class _Chain:
    """Nodes one after another, each fed by the one before it."""

    def __init__(self, value: ir.Value, prefix: str, names: _Names) -> None:
        self.value = value
        self.nodes: list[ir.Node] = []
        self._prefix = prefix
        self._names = names

    def add(
        self,
        op_type: str,
        *more: ir.Value | None,
        domain: str = "",
        attributes: Sequence[ir.Attr] = (),
        **simple: Any,
    ) -> ir.Node:
        """Append a node whose first input is the chain's value so far."""
        stem = f"{self._prefix}_{op_type.split('_')[0]}"
        converted = [*attributes, *ir.convenience.convert_attributes(simple)]
        node = ir.Node(domain, op_type, [self.value, *more], converted, name=self._names.fresh(f"{stem}_node"))
        node.outputs[0].name = self._names.fresh(stem)
        self.nodes.append(node)
        self.value = node.outputs[0]
        return node


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
    """Let everything but the nodes in ``own`` use the new value, and remove what nobody needs any more."""
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
    """Remove the node that computed a value, and whatever upstream was there for it alone."""
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is None or not isinstance(node.graph, ir.Graph):
            continue
        if any(output.uses() or output.is_graph_output() for output in node.outputs):
            continue
        pending.extend(v for v in node.inputs if v is not None)
        node.graph.remove(node, safe=True)
