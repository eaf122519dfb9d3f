"""Compares two models: equal when their canonical forms are, otherwise a list of what differs and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Final

import onnx_ir as ir

from onnx_attnq.diff.canonical import Line, canonicalize, opsets
from onnx_attnq.diff.expression_hashes import Expressions
from onnx_attnq.diff.graph_matching import Matching
from onnx_attnq.diff.node_places import Places
from onnx_attnq.diff.onnx_text import ConstantTexts, attribute_text, quote, tensor_text, type_text
from onnx_attnq.diff.result import Difference, Kind, ModelDiff, Place

CONTEXT: Final = 3
"""Lines shown before and after a node."""


def diff_models(a: ir.Model, b: ir.Model, *, metadata: bool = False, context: int = CONTEXT) -> ModelDiff:
    """What differs between two models, along the data flow.

    What counts is defined by `canonical`: names of values and nodes, order, storage do not.

    Args:
        a: The model that is expected.
        b: The model that is there.
        metadata: Compare the IR version and metadata_props too.
        context: How many lines to show before and after a node, 0 or more.

    Raises:
        InvalidModel: One of the models is damaged: a cycle, a missing value or unreadable constants.

    >>> a = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 21]>
    ... net (float[N] x) => (float[N] y) { t = Softmax <axis = 0> (x)  y = Mul (t, x) }''')
    >>> b = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 21]>
    ... net (float[N] x) => (float[N] y) { s = Softmax <axis = -1> (x)  y = Mul (s, x) }''')
    >>> [difference.message for difference in diff_models(a, b).differences]
    ['attribute axis = 0 became -1']
    """
    constants_a, constants_b = ConstantTexts(), ConstantTexts()
    canonical_a = canonicalize(a, metadata=metadata, constants=constants_a)
    canonical_b = canonicalize(b, metadata=metadata, constants=constants_b)
    differences: list[Difference] = []
    if canonical_a.text != canonical_b.text:
        identities = _identities(a.graph.inputs, b.graph.inputs)
        side_a = _Side(a, constants_a, {value: value.name or "" for value in a.graph.inputs}, context)
        side_b = _Side(b, constants_b, identities, context)
        outputs, output_differences = _outputs(a.graph.outputs, b.graph.outputs)
        differences += _opsets(a.opset_imports, b.opset_imports, "")
        differences += _inputs(a.graph.inputs, b.graph.inputs, identities)
        differences += Matching(side_a.graph, side_b.graph).run(outputs)
        differences += output_differences
        differences += _functions(side_a, side_b)
        if metadata:
            differences += _metadata(a, b)
        if not differences:
            differences += _aligned(canonical_a.lines, canonical_b.lines, side_a, side_b)
    return ModelDiff(canonical_a.fingerprint, canonical_b.fingerprint, tuple(differences))


class _Side:
    """One of the two models, with the expressions of its graph and functions."""

    def __init__(self, model: ir.Model, constants: ConstantTexts, inputs: Mapping[ir.Value, str], context: int) -> None:
        self.model = model
        expressions = Expressions(model.graph, constants, inputs)
        self.graph = Places(expressions, context)
        self.functions = {
            identifier: Places(
                Expressions(function, constants, {value: str(i) for i, value in enumerate(function.inputs)}),
                context,
                _label(identifier),
            )
            for identifier, function in model.functions.items()
        }

    def place(self, node: ir.Node | None) -> Place | None:
        """The place of a node, wherever it is."""
        scopes = (self.graph, *self.functions.values())
        return next((scope.of(node) for scope in scopes if node in scope.expressions.node_hash), None) if node else None


def _label(identifier: tuple[str, str, str]) -> str:
    domain, name, overload = identifier
    return f"{domain}.{name}{overload and ':'}{overload}"


def _opsets(a: Mapping[str, int], b: Mapping[str, int], where: str) -> list[Difference]:
    return [
        Difference(Kind.OPSET, f"opset {domain}{where}: {version} became {other}")
        for domain, version, other in _changes(opsets(a), opsets(b))
    ]


def _changes(a: Mapping[str, object], b: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """The keys whose values differ, with both values; "nothing" stands for a missing one."""
    keys = sorted(a.keys() | b.keys())
    return [(key, a.get(key, "nothing"), b.get(key, "nothing")) for key in keys if a.get(key) != b.get(key)]


def _identities(a: Sequence[ir.Value], b: Sequence[ir.Value]) -> dict[ir.Value, str]:
    """B's inputs, and the name in A of the input that each stands for: of the same name, else at the same place."""
    names_a, names_b = [value.name or "" for value in a], [value.name or "" for value in b]
    identities = {}
    for i, value in enumerate(b):
        name = names_b[i]
        renamed = name not in names_a and i < len(a) and names_a[i] not in names_b
        identities[value] = names_a[i] if renamed else name
    return identities


def _inputs(a: Sequence[ir.Value], b: Sequence[ir.Value], identities: Mapping[ir.Value, str]) -> list[Difference]:
    texts_a = {value.name or "": _declaration(value) for value in a}
    texts_b = {identities[value]: _declaration(value) for value in b}
    found = [
        Difference(Kind.INPUT, f"input {name}: {text} became {other}")
        for name in [*texts_a, *(name for name in texts_b if name not in texts_a)]
        if (text := texts_a.get(name, "nothing")) != (other := texts_b.get(name, "nothing"))
    ]
    if not found and list(texts_a) != list(texts_b):
        found.append(Difference(Kind.INPUT, f"inputs: order {', '.join(texts_a)} became {', '.join(texts_b)}"))
    return found


def _outputs(
    a: Sequence[ir.Value], b: Sequence[ir.Value]
) -> tuple[list[tuple[str, ir.Value, ir.Value]], list[Difference]]:
    """The pairs of outputs, and what differs in names and types."""
    identities = _identities(a, b)
    by_name = {identities[value]: value for value in b}
    pairs = [(value.name or "", value, by_name[value.name or ""]) for value in a if value.name in by_name]
    names_a = [value.name or "" for value in a]
    found = [
        Difference(Kind.OUTPUT, f"output {name}: {_declaration(value)} became {_declaration(other)}")
        for name, value, other in pairs
        if _declaration(value) != _declaration(other)
    ]
    found += [
        Difference(Kind.OUTPUT, f"output {value.name}: {_declaration(value)} became nothing")
        for value in a
        if value.name not in by_name
    ]
    found += [
        Difference(Kind.OUTPUT, f"output {name}: nothing became {_declaration(value)}")
        for name, value in by_name.items()
        if name not in names_a
    ]
    if not found and names_a != list(by_name):
        found.append(Difference(Kind.OUTPUT, f"outputs: order {', '.join(names_a)} became {', '.join(by_name)}"))
    return pairs, found


def _declaration(value: ir.Value) -> str:
    default = ""
    if value.is_graph_input() and value.const_value is not None:
        default = f" = {tensor_text(value.const_value)}"
    return f"{type_text(value.type, value.shape)} {quote(value.name or '')}{default}"


def _functions(a: _Side, b: _Side) -> list[Difference]:
    found: list[Difference] = []
    for identifier in sorted(a.functions.keys() | b.functions.keys()):
        label = _label(identifier)
        if identifier not in a.functions or identifier not in b.functions:
            what = "removed" if identifier in a.functions else "added"
            found.append(Difference(Kind.FUNCTION, f"function {label} {what}"))
            continue
        function_a, function_b = a.model.functions[identifier], b.model.functions[identifier]
        found += _opsets(function_a.opset_imports, function_b.opset_imports, f" of function {label}")
        for what, version, other in _changes(_signature(function_a), _signature(function_b)):
            found.append(Difference(Kind.FUNCTION, f"{what} of function {label}: {version} became {other}"))
        pairs = enumerate(zip(function_a.outputs, function_b.outputs, strict=False))
        found += Matching(a.functions[identifier], b.functions[identifier]).run([(str(i), *pair) for i, pair in pairs])
    return found


def _signature(function: ir.Function) -> dict[str, str]:
    attributes = {
        f"attribute {name}": "without default" if attr.value is None else attribute_text(attr, _no_graph)
        for name, attr in function.attributes.items()
    }
    return {"inputs": str(len(function.inputs)), "outputs": str(len(function.outputs)), **attributes}


def _no_graph(graph: ir.Graph) -> str:
    return f"graph {graph.name!r}"


def _metadata(a: ir.Model, b: ir.Model) -> list[Difference]:
    """What differs in the metadata of model, graph and functions."""
    found = []
    if a.ir_version != b.ir_version:
        found.append(Difference(Kind.METADATA, f"IR version {a.ir_version} became {b.ir_version}"))
    scopes: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = [
        ("model", a.metadata_props, b.metadata_props),
        ("graph", a.graph.metadata_props, b.graph.metadata_props),
    ]
    for identifier in sorted(a.functions.keys() & b.functions.keys()):
        function_a, function_b = a.functions[identifier], b.functions[identifier]
        scopes.append((f"function {_label(identifier)}", function_a.metadata_props, function_b.metadata_props))
    for scope, of_a, of_b in scopes:
        for key, value, other in _changes(of_a, of_b):
            found.append(Difference(Kind.METADATA, f"metadata {key!r} of {scope}: {value} became {other}"))
    return found


def _aligned(a: Sequence[Line], b: Sequence[Line], side_a: _Side, side_b: _Side) -> list[Difference]:
    """What the walk does not see, found where the canonical forms begin to differ.

    That is the metadata of nodes and subgraphs, nodes that moved to another graph, and which of several nodes that
    compute the same is read by whom.
    """
    for line_a, line_b in zip_longest(a, b, fillvalue=Line("nothing")):
        if line_a.text != line_b.text:
            what_a, what_b = line_a.text.strip(), line_b.text.strip()
            kind = Kind.METADATA if what_a.startswith("metadata ") or what_b.startswith("metadata ") else Kind.WIRING
            places = side_a.place(line_a.node), side_b.place(line_b.node)
            return [Difference(kind, f"{what_a} became {what_b}", *places)]
    return []


__all__ = ["CONTEXT", "diff_models"]
