"""Put quantized ops where the softmax of each planned site was, and write down what was done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnx_attnq import function
from onnx_attnq import model as models
from onnx_attnq.errors import AlreadyRewritten, InvalidModel
from onnx_attnq.infer import dtype_of, rank_of
from onnx_attnq.plan import Plan
from onnx_attnq.scheme import QuantScheme
from onnx_attnq.sites import AttentionSite, Form, Sites
from onnx_attnq.version import __version__

METADATA: Final = "onnx_attnq"
"""Key of the model's metadata under which a `Record` is kept."""

_LOWEST_IR_VERSION: Final = 8  # the first with model-local functions


@dataclasses.dataclass(frozen=True)
class RewrittenSite:
    """What became of one site.

    Attributes:
        id: The site's id.
        op_type: Op that was there.
        node: Name of that node.
        scope: ``main``, or the path of the subgraph.
        form: What was replaced.
        scheme: What it was replaced by.
        source: Name of the value that enters the new op: scores or probabilities, float32.
        result: Name of the value that leaves it: quantized probabilities, float32.
    """

    id: str
    op_type: str
    node: str
    scope: str
    form: Form
    scheme: QuantScheme
    source: str
    result: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**dataclasses.asdict(self), "form": str(self.form), "scheme": self.scheme.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RewrittenSite:
        """The inverse of `to_json`."""
        return cls(**{**data, "form": Form(data["form"]), "scheme": QuantScheme.from_json(data["scheme"])})


@dataclasses.dataclass(frozen=True)
class Record:
    """What a rewritten model says about itself.

    Attributes:
        version: Version of onnx-attnq that wrote it.
        original: Fingerprint of the model before.
        inlined: True when the ops were replaced by their bodies.
        sites: The sites that were rewritten.
    """

    version: str
    original: str
    inlined: bool
    sites: tuple[RewrittenSite, ...]


def read_record(model: ir.Model) -> Record | None:
    """What a rewritten model says about itself; None for a model that was not rewritten.

    Raises:
        InvalidModel: The model's metadata was damaged.
    """
    text = model.metadata_props.get(METADATA)
    if text is None:
        return None
    try:
        data = json.loads(text)
        sites = tuple(RewrittenSite.from_json(site) for site in data["sites"])
        return Record(data["version"], data["original"], data["inlined"], sites)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"the metadata {METADATA!r} of the model cannot be read: {error}") from None


def refuse_rewritten(model: ir.Model) -> None:
    """Raise AlreadyRewritten for a model that carries quantized attention already."""
    if METADATA in model.metadata_props or function.DOMAIN in model.graph.opset_imports:
        raise AlreadyRewritten("the model is rewritten already; start from the original")


def rewrite(
    model: ir.Model, sites: Sites, plan: Plan, *, inline: bool = False, quantize_outputs: bool = False
) -> Record:
    """Rewrite, in place, each site that the plan gives a scheme.

    Everything else stays: opset, names, initializers, metadata, other functions. An empty plan
    changes nothing at all.

    Args:
        model: The model that ``sites`` were found in.
        sites: What `find_sites` found.
        plan: A plan that covers them.
        inline: Plain ops of the model's opset instead of ops with a function, for runtimes that know no functions.
        quantize_outputs: Where probabilities are an output of the model, quantize that output too.

    Returns:
        What was done, as it is written into the model's metadata.

    Raises:
        AlreadyRewritten: The model carries a rewrite.
        InvalidPlan: The plan does not belong to the model.
        InvalidModel: The type or rank of a site's scores cannot be told.
    """
    refuse_rewritten(model)
    original = models.fingerprint(model)
    plan.check(original, [site.id for site in sites.sites])
    names = _Names(model)
    done: list[RewrittenSite] = []
    functions: dict[str, tuple[Form, QuantScheme]] = {}
    for site in sites.sites:
        scheme = plan.scheme_of(site.id)
        if scheme is None:
            continue
        done.append(_rewrite_site(site, scheme, model, names, quantize_outputs))
        # One body serves all schemes of a family; the lowest threshold decides how careful it must be.
        op = _op_name(site.form, scheme)
        if op not in functions or scheme.threshold < functions[op][1].threshold:
            functions[op] = (site.form, scheme)
    record = Record(__version__, original, inline, tuple(done))
    if not done:
        return record
    for form, scheme in functions.values():
        make = function.softmax_function if form is Form.SOFTMAX else function.probabilities_function
        body = make(scheme, models.opset(model))
        model.functions[body.identifier()] = body
    model.graph.opset_imports[function.DOMAIN] = function.DOMAIN_VERSION
    model.ir_version = max(model.ir_version or 0, _LOWEST_IR_VERSION)
    if inline:
        InlinePass(lambda f: f.domain == function.DOMAIN)(model)
        model.graph.opset_imports.pop(function.DOMAIN, None)
    model.metadata_props[METADATA] = json.dumps(
        {**dataclasses.asdict(record), "sites": [site.to_json() for site in done]}
    )
    return record


def _op_name(form: Form, scheme: QuantScheme) -> str:
    return function.softmax_op(scheme) if form is Form.SOFTMAX else function.probabilities_op(scheme)


def _rewrite_site(
    site: AttentionSite, scheme: QuantScheme, model: ir.Model, names: _Names, quantize_outputs: bool
) -> RewrittenSite:
    """Insert the op, with the casts and transposes that it needs, and give its result to the consumers."""
    original = site.probabilities
    node = original.producer()
    source = site.scores if site.form is Form.SOFTMAX else original
    if node is None or node.graph is None or source is None:
        raise InvalidModel(f"site {site.id!r} has no node")
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
    entering = chain.value
    attributes = {attribute.name: attribute for attribute in function.scheme_attributes(scheme)}
    leaving = chain.add(_op_name(site.form, scheme), domain=function.DOMAIN, **attributes)
    if swap:
        chain.add("Transpose", perm=swap)
    if quantization:
        chain.add("QuantizeLinear", *quantization)
    elif dtype != ir.DataType.FLOAT:
        chain.add("Cast", to=int(dtype))

    node.graph.insert_after(node, chain.nodes)
    _type_values(chain.nodes, original, swap)
    _hand_over(original, chain, model, quantize_outputs)
    return RewrittenSite(
        site.id, site.op_type, site.node, site.scope, site.form, scheme, entering.name or "", leaving.name or ""
    )


class _Names:
    """Names of values and nodes that are not taken yet."""

    def __init__(self, model: ir.Model) -> None:
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

    def add(self, op_type: str, *more: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node whose first input is the chain's value so far."""
        stem = f"{self._prefix}_{op_type.split('_')[0]}"
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, [self.value, *more], converted, name=self._names.fresh(f"{stem}_node"))
        node.outputs[0].name = self._names.fresh(stem)
        self.nodes.append(node)
        self.value = node.outputs[0]
        return self.value


def _swap_last(site: AttentionSite) -> list[int] | None:
    """The permutation that makes the axis of the keys the last one; it is its own inverse."""
    if site.axis == -1:
        return None
    rank = rank_of(site.probabilities)
    if rank is None:
        raise InvalidModel(f"site {site.id!r}: the rank of its scores is unknown; run onnx shape inference first")
    perm = list(range(rank))
    perm[-1], perm[site.axis] = perm[site.axis], perm[-1]
    return perm


def _type_values(nodes: list[ir.Node], original: ir.Value, permuted: list[int] | None) -> None:
    """Type and shape of the new values, which shape inference cannot know of an op that it does not."""
    shape = original.shape
    for node in nodes:
        value = node.outputs[0]
        if node.op_type == "Transpose" and shape is not None and permuted is not None:
            shape = ir.Shape([shape[i] for i in permuted])
        value.shape = shape
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _hand_over(original: ir.Value, chain: _Chain, model: ir.Model, quantize_outputs: bool) -> None:
    """Let everything that used the original probabilities use the quantized ones."""
    quantized, own = chain.value, set(chain.nodes)
    quantized.type = original.type
    for use in tuple(original.uses()):
        if use.node not in own:
            use.node.replace_input_with(use.idx, quantized)
    graph = original.graph
    if isinstance(graph, ir.Graph) and original.is_graph_output() and (graph is not model.graph or quantize_outputs):
        for index, output in enumerate(graph.outputs):
            if output is original:
                graph.outputs[index] = quantized
    if not original.uses() and not original.is_graph_output():
        # Nobody needs the softmax any more; what replaces it takes over its name.
        node = original.producer()
        assert node is not None
        assert isinstance(graph, ir.Graph)
        name, original.name = original.name, None
        graph.remove(node, safe=True)
        quantized.name = name
