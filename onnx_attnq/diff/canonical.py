"""The canonical form of a model: one text for all models that differ in nothing that matters.

What does not matter: names of values and nodes, the order of independent nodes, where and how a constant
is stored (inline, external, typed fields, Constant node, once or several times), doc strings, the
producer, value_info, the IR version. What does: nodes, attributes, wiring, the bits of constants, names
and types of the model's inputs and outputs, opsets, functions, subgraphs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import onnx_ir as ir

from onnx_attnq.diff.node_order import node_order, unused_constants
from onnx_attnq.diff.onnx_text import (
    ConstantTexts,
    attribute_text,
    node_text,
    ordered_subgraphs,
    quote,
    results,
    string_text,
    tensor_text,
    type_text,
)
from onnx_attnq.errors import InvalidModel

HEADER: Final = "// onnx-attnq canonical form 1"
"""First line of every canonical form. A change of the form changes the number, and so every fingerprint."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One line of a canonical form, and the node it was written from, if it is one."""

    text: str
    node: ir.Node | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CanonicalModel:
    """The canonical form of a model."""

    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """All lines, each ended by a newline. ASCII, unless the model has other names."""
        return "".join(f"{line.text}\n" for line in self.lines)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the text in UTF-8, 64 hexadecimal digits: equal for equal models."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint(model: ir.Model, *, metadata: bool = False) -> str:
    """The SHA-256 of the canonical form: equal exactly for models between which `diff_models` finds no difference.

    Unlike `onnx_attnq.structure_hash`, it takes weights into account, and no names inside of the graph.

    Args:
        model: Any model.
        metadata: Let the IR version and metadata_props count too.

    Returns:
        64 hexadecimal digits.

    Raises:
        InvalidModel: See `canonicalize`.

    >>> one, other = (ir.from_onnx_text(f'''<ir_version: 10, opset_import: ["" : 21]>
    ... net (float[N] x) => (float[N] y) {{ {name} = Relu (x)  y = Mul ({name}, x) }}''') for name in "ab")
    >>> fingerprint(one) == fingerprint(other)
    True
    """
    return canonicalize(model, metadata=metadata).fingerprint


def canonicalize(model: ir.Model, *, metadata: bool = False, constants: ConstantTexts | None = None) -> CanonicalModel:
    """The canonical form of a model.

    Args:
        model: Any model. External data is read in pieces, so memory does not grow with the weights.
        metadata: Keep the IR version and the metadata_props of model, graphs, functions and nodes too.
        constants: What is known of the model's constants already; they are not read again.

    Raises:
        InvalidModel: A cycle, a value that nothing produces, or constants that cannot be read.

    >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 21]>
    ... net (float[N] x) => (float[N] y) { t = Relu (x)  y = Mul (t, x) }''')
    >>> print(canonicalize(model).text, end="")
    // onnx-attnq canonical form 1
    opset_import ai.onnx : 21
    graph (
      float[N] x
    ) => (
      float[N] y
    ) {
      %Relu_0 = Relu (x)
      y = Mul (%Relu_0, x)
    }
    """
    if constants is None:
        constants = ConstantTexts()
    lines = [Line(HEADER)]
    if metadata:
        lines.append(Line(f"ir_version {model.ir_version}"))
        lines += _metadata_lines(model.metadata_props)
        lines += _metadata_lines(model.graph.metadata_props)
    lines += _opset_lines(model.opset_imports)
    lines += _Writer(model.graph, constants, metadata).model_graph(model.graph)
    for identifier in sorted(model.functions):
        function = model.functions[identifier]
        lines += _Writer(function, constants, metadata).function(function)
    return CanonicalModel(tuple(lines))


def opsets(imports: Mapping[str, int]) -> dict[str, int]:
    """Opset versions by domain, sorted; the default domain, which has two names, is ``ai.onnx``.

    >>> opsets({"": 21, "com.microsoft": 1})
    {'ai.onnx': 21, 'com.microsoft': 1}
    """
    return dict(sorted((domain or "ai.onnx", version) for domain, version in imports.items()))


def _opset_lines(imports: Mapping[str, int], indent: str = "") -> list[Line]:
    return [Line(f"{indent}opset_import {quote(domain)} : {version}") for domain, version in opsets(imports).items()]


def _metadata_lines(properties: Mapping[str, str], indent: str = "", node: ir.Node | None = None) -> list[Line]:
    return [
        Line(f"{indent}metadata {string_text(key)} : {string_text(properties[key])}", node)
        for key in sorted(properties)
    ]


class _Writer:
    """Names every value of one graph, or function, and of its subgraphs, and writes the lines."""

    def __init__(self, graph: ir.Graph | ir.Function, constants: ConstantTexts, metadata: bool) -> None:
        self.constants = constants
        self.metadata = metadata
        self.names: dict[ir.Value, str] = {}
        order = node_order(graph, constants)
        self.body: dict[tuple[ir.Node, str] | None, list[ir.Node]] = defaultdict(list)
        numbers: dict[str, int] = defaultdict(int)
        self.arguments = 0
        if isinstance(graph, ir.Function):
            self._name_arguments(graph.inputs)
        for node in order.nodes:
            self.body[order.owner.get(node)].append(node)
            name = f"%{node.op_type}_{numbers[node.op_type]}"
            numbers[node.op_type] += 1
            for i, value in enumerate(results(node)):
                if value is not None:
                    self.names[value] = name if i == 0 else f"{name}.{i}"
            for _, inner in ordered_subgraphs(node):
                self._name_arguments(inner.inputs)

    def model_graph(self, graph: ir.Graph) -> list[Line]:
        """The graph of a model: inputs and outputs keep their names."""
        interface = {value: quote(value.name or "") for value in (*graph.inputs, *graph.outputs)}
        self.names.update(interface)
        return [
            Line("graph ("),
            *(Line(f"  {_value_type(value)} {interface[value]}{_default(value)}") for value in graph.inputs),
            Line(") => ("),
            *(Line(f"  {_value_type(value)} {interface[value]}") for value in graph.outputs),
            Line(") {"),
            *self._statements(graph, None, "  "),
            # A constant that is an output has no node that would carry the name of the output.
            *(
                Line(f"  {interface[value]} = {text}")
                for value in graph.outputs
                if (text := self.constants(value)) is not None
            ),
            Line("}"),
        ]

    def function(self, function: ir.Function) -> list[Line]:
        """A model-local function: its inputs and outputs are known by their position."""
        name = ".".join(part for part in (function.domain, function.name) if part)
        overload = f":{function.overload}" if function.overload else ""
        attributes = ", ".join(
            key if (attr := function.attributes[key]).value is None else f"{key} = {attribute_text(attr, _no_graph)}"
            for key in sorted(function.attributes)
        )
        inputs, outputs = (", ".join(map(self._name, values)) for values in (function.inputs, function.outputs))
        return [
            Line(f"function {quote(name + overload)} <{attributes}> ({inputs}) => ({outputs}) {{"),
            *_opset_lines(function.opset_imports, "  "),
            *(_metadata_lines(function.metadata_props, "  ") if self.metadata else ()),
            *self._statements(function, None, "  "),
            Line("}"),
        ]

    def _statements(self, graph: ir.Graph | ir.Function, place: tuple[ir.Node, str] | None, indent: str) -> list[Line]:
        lines: list[Line] = []
        for node in self.body[place]:
            lines.append(Line(indent + node_text(node, self._name, lambda _: "{...}"), node))
            for name, inner in ordered_subgraphs(node):
                lines += self._subgraph(inner, (node, name), indent + "  ")
            if self.metadata:
                lines += _metadata_lines(node.metadata_props, indent + "  ", node)
        return lines + [Line(f"{indent}unused {text}") for text in unused_constants(graph, self.constants)]

    def _subgraph(self, graph: ir.Graph, place: tuple[ir.Node, str], indent: str) -> list[Line]:
        inputs = ", ".join(self._declaration(value) for value in graph.inputs)
        outputs = ", ".join(self._declaration(value) for value in graph.outputs)
        return [
            Line(f"{indent}{place[1]} ({inputs}) => ({outputs}) {{"),
            *(_metadata_lines(graph.metadata_props, indent + "  ") if self.metadata else ()),
            *self._statements(graph, place, indent + "  "),
            Line(f"{indent}}}"),
        ]

    def _name_arguments(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self.names[value] = f"%arg_{self.arguments}"
            self.arguments += 1

    def _declaration(self, value: ir.Value) -> str:
        return f"{_value_type(value)} {self._name(value)}"

    def _name(self, value: ir.Value) -> str:
        name = self.constants(value) or self.names.get(value)
        if name is None:
            raise InvalidModel(f"value {value.name!r} is read, but nothing produces it")
        return name


def _value_type(value: ir.Value) -> str:
    return type_text(value.type, value.shape)


def _default(value: ir.Value) -> str:
    return "" if value.const_value is None else f" = {tensor_text(value.const_value)}"


def _no_graph(graph: ir.Graph) -> str:
    raise InvalidModel(f"graph {graph.name!r} is the default of a function's attribute")


__all__ = ["HEADER", "CanonicalModel", "Line", "canonicalize", "opsets"]
