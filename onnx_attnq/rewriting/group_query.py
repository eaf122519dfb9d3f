"""Put the attention of a decoder with a cache back into one op, once its softmax is quantized.

`find.fused` makes standard ops of GroupQueryAttention. With the native library these cost more than they gain: they
copy the cache. So where the library's kernel does all that the op did, they become the body of one op with the inputs,
outputs and attributes of the original and those of the scheme. What is left without the library is the body.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import FusedOp
from onnx_attnq.graph import FUSED_SIGNATURES, Dataflow, subgraphs
from onnx_attnq.model import files
from onnx_attnq.rewriting import bodies
from onnx_attnq.rewriting.record import RewrittenSite
from onnx_attnq.scheme import QuantScheme, SiteScheme, schemes_of

_NAME: Final = "GroupQueryAttention"
_INPUTS: Final = tuple(item.name for item in FUSED_SIGNATURES["com.microsoft", _NAME].inputs)
_TAKEN: Final = _INPUTS[: _INPUTS.index("v_scale") + 1]
"""What the kernel takes of the inputs of GroupQueryAttention."""
TOKENS: Final = len(_TAKEN)
"""The place of one input more: L_q, int64 (1,), from which the standard ops compute much; see `tokens`."""

_OTHER_TYPES: Final = ("seqlens_k", "total_sequence_length", "position_ids", "k_scale", "v_scale")
"""Inputs whose type is not that of query and key."""

_CACHES: Final = {0: (ir.DataType.FLOAT, ir.DataType.FLOAT16), 8: (ir.DataType.INT8,), 4: (ir.DataType.UINT8,)}
"""By kv_cache_bit_width, what caches may be."""
_NUMBERS: Final = frozenset({"threshold", "step", "offset", "levels"})
"""Attributes that a body takes from the op that calls it; what else an op of ours has is the body's own."""
_FORM: Final = "form"
"""The attribute that tells the kernel what the name of other ops tells: which arithmetic runs."""
VARIANTS: Final = ("", "_2", "_3", "_4")
"""Behind the name of the op, where layers differ: with and without a window, a rotation, or other numbers of heads."""


def group_query_op(scheme: QuantScheme) -> str:
    """Name of the op that takes query, key, value and cache.

    >>> from onnx_attnq.scheme import preset
    >>> group_query_op(preset("row-log")), group_query_op(preset("prune-only"))
    ('QuantizedGroupQueryAttention', 'PrunedGroupQueryAttention')
    """
    return ("Pruned" if scheme.bits is None else "Quantized") + _NAME


def is_group_query(node: ir.Node) -> bool:
    """Whether a node is the op of `fold`."""
    return node.domain == bodies.DOMAIN and _NAME in node.op_type


def is_taken(fused: FusedOp) -> bool:
    """Whether the kernel of the native library does all that a fused op did."""
    if fused.op_type != _NAME:
        return False
    attributes = fused.attributes
    sliding = "sliding_window_cache" in attributes and attributes["sliding_window_cache"].as_int()
    bits = attributes["kv_cache_bit_width"].as_int() if "kv_cache_bit_width" in attributes else 0
    few = all(value is None or not value.name for value in fused.inputs[len(_TAKEN) :])
    types: set[ir.DataType] = set()
    for name, value in zip(_TAKEN, fused.inputs, strict=False):
        if value is None or value.dtype is None or name in _OTHER_TYPES:
            continue
        if bits and name.startswith("past"):
            if value.dtype not in _CACHES[bits]:
                return False
        else:
            types.add(value.dtype)
    outputs = [output is not None for output in fused.outputs]
    wanted = outputs[:3] == [True] * 3 and not any(outputs[3:])  # the fourth are the scores, which the kernel never has
    return not sliding and few and wanted and len(types) == 1 and types <= set(_CACHES[0])


def fold(model: ir.Model, fused: FusedOp, op: ir.Node, scheme: SiteScheme, known: dict[str, object]) -> ir.Node | None:
    """Make one node of the standard ops that a fused op became, in place.

    Args:
        model: The model.
        fused: What was there, for which `is_taken`.
        op: The quantized op that stands for its softmax.
        scheme: What it does, to all heads or to each.
        known: By name of op, what its body is: onnxruntime tells functions apart by their names only, so that the same
            op with another body gets another name, as far as there are names.

    Returns:
        The node; None where the ops have to stay.
    """
    outputs = [output for output in fused.outputs[:3] if output is not None]
    graph, first = op.graph, fused.outputs[0]
    inputs = [None if value is None or not value.name else value for value in fused.inputs[: len(_TAKEN)]]
    nodes = _between(inputs, outputs)
    tokens = next((node for node in nodes if _counts(node, inputs[0])), None)
    if tokens is not None:
        nodes.remove(tokens)
        inputs += [None] * (TOKENS - len(inputs)) + [tokens.outputs[0]]
    while inputs[-1] is None:  # onnxruntime finds no type for them
        inputs.pop()
    inside = {inner for node in nodes for inner in (node, *_within(node))}
    leak = any(
        use.node not in inside
        for node in nodes
        for output in node.outputs
        if output not in outputs
        for use in output.uses()
    )
    if not isinstance(graph, ir.Graph) or op not in nodes or leak or first is None:
        return None
    one = schemes_of(scheme)[0]
    body = _described(nodes, inputs, outputs)
    names = (group_query_op(one) + variant for variant in VARIANTS)
    name = next((name for name in names if known.setdefault(name, body) == body), None)
    if name is None:
        return None
    numbers = [op.attributes[attribute.name] for attribute in bodies.scheme_attributes(one)]
    attributes = [ir.AttrString(_FORM, bodies.form(one)), *numbers, *fused.attributes.values()]
    node = ir.Node(bodies.DOMAIN, name, inputs, attributes, num_outputs=len(outputs), name=f"{first.name}_{name}")
    graph.insert_before(nodes[0], node)
    for old, new in zip(outputs, node.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        for use in tuple(old.uses()):
            if use.node not in inside:
                use.node.replace_input_with(use.idx, new)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
    graph.remove(nodes)
    if (bodies.DOMAIN, name, "") not in model.functions:
        function = _function(name, nodes, inputs, outputs, op, attributes, files.opset(model))
        model.functions[function.identifier()] = function
    else:
        for inner in inside:
            inner.resize_inputs(0)
    return node


def opened(model: ir.Model, site: RewrittenSite) -> tuple[ir.Model, RewrittenSite]:
    """The model and a site of its record, with the op of `fold` inlined if the site has become one.

    Raises:
        InvalidModel: The op that the record names is not there.
    """
    if not any(domain == bodies.DOMAIN and _NAME in name for domain, name, _ in model.functions):
        return model, site
    node = _producer(model, site)
    if node is None or not is_group_query(node):
        return model, site
    model = model.clone()
    try:
        InlinePass(lambda function: function.domain == bodies.DOMAIN and _NAME in function.name)(model)
    except ValueError as error:
        raise InvalidModel(f"site {site.id!r}: the body of its op is not one of ours: {error}") from None
    pending, seen = [_producer(model, site)], set[ir.Node | None]()
    while pending:
        found = pending.pop()
        if found is None or found in seen:
            continue
        seen.add(found)
        if found.domain == bodies.DOMAIN:
            names = tuple(value.name or "" for value in found.inputs if value is not None)
            return model, dataclasses.replace(site, inputs=names, output=found.outputs[0].name or "")
        pending.extend(value.producer() for value in found.inputs[:1] if value is not None)
    raise InvalidModel(f"site {site.id!r}: the op that the model's record names is not there")


def _producer(model: ir.Model, site: RewrittenSite) -> ir.Node | None:
    value = Dataflow(model).values_in(site.scope).get(site.output)
    return None if value is None else value.producer()


def _counts(node: ir.Node, query: ir.Value | None) -> bool:
    """Whether a node computes the number of tokens."""
    start = node.attributes.get("start")
    return node.op_type == "Shape" and node.inputs[0] is query and start is not None and start.as_int() == 1


def _within(node: ir.Node) -> Iterable[ir.Node]:
    return (inner for _, graph in subgraphs(node) for inner in graph.all_nodes())


def _between(inputs: Collection[ir.Value | None], outputs: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that lead from the inputs to the outputs, in the order of their graph."""
    found: set[ir.Node] = set()
    pending: list[ir.Value | None] = list(outputs)
    graph = outputs[0].graph
    while pending:
        value = pending.pop()
        node = None if value is None or value in inputs else value.producer()
        if node is None or node in found or node.graph is not graph:
            continue
        found.add(node)
        pending.extend(node.inputs)
        pending.extend(value for inner in _within(node) for value in inner.inputs)
    return [node for node in graph or () if node in found]


def _described(nodes: Sequence[ir.Node], inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]) -> object:
    """What nodes compute, whatever their values are called and whatever the scheme's numbers are."""
    numbers: dict[ir.Value | None, int] = {value: -1 - place for place, value in enumerate(inputs)}

    def described(node: ir.Node) -> object:
        attributes: list[object] = []
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                attributes.append((name, all_of(attribute.as_graph(), attribute.as_graph().outputs)))
            elif node.domain != bodies.DOMAIN or name not in _NUMBERS:
                attributes.append((name, ir.to_proto(attribute).SerializeToString(deterministic=True)))
        used = tuple(numbers.get(value, 0) for value in node.inputs)
        for output in node.outputs:
            numbers[output] = len(numbers) + 1
        return node.domain, node.op_type, used, tuple(attributes)

    def all_of(some: Iterable[ir.Node], results: Sequence[ir.Value]) -> object:
        return tuple(described(node) for node in some), tuple(numbers[value] for value in results)

    return all_of(nodes, outputs)


def _function(
    name: str,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[ir.Value],
    op: ir.Node,
    attributes: Sequence[ir.Attr],
    opset: int,
) -> ir.Function:
    """A function of nodes that are in no graph any more."""
    parameters = [ir.Value(name=(*_TAKEN, "tokens")[place]) for place in range(len(inputs))]
    by_input: Mapping[ir.Value | None, ir.Value] = dict(zip(inputs, parameters, strict=True))
    inside = [inner for node in nodes for inner in (node, *_within(node))]
    for number, node in enumerate(inside):
        node.name = f"{node.op_type}_{number}"
        for place, value in enumerate(node.inputs):
            if value is not None and value in by_input:
                node.replace_input_with(place, by_input[value])
        for place, output in enumerate(node.outputs):
            output.name = f"{node.op_type.lower()}_{number}" + (f"_{place}" if len(node.outputs) > 1 else "")
    for attribute in attributes:
        # Only the scheme's, which are tensors: `scale` is a number of one op and a tensor of another.
        if attribute.name in op.attributes and attribute.type == ir.AttributeType.TENSOR:
            op.attributes[attribute.name] = ir.RefAttr(attribute.name, attribute.name, attribute.type)
    imports = {"": opset, bodies.DOMAIN: bodies.DOMAIN_VERSION}
    graph = ir.Graph(parameters, outputs, nodes=nodes, opset_imports=imports, name=name)
    return ir.Function(bodies.DOMAIN, name, "", graph=graph, attributes=attributes)


__all__ = ["TOKENS", "VARIANTS", "fold", "group_query_op", "is_group_query", "is_taken", "opened"]
