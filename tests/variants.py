"""Makes models that are the same, or differ in one place: what `diff` has to tell apart."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

ROOT = Path(__file__).parent
FILES = {
    **{file.stem: file for file in sorted((ROOT / "models").glob("*.onnx"))},
    "decoder": ROOT.parent / "examples" / "ci" / "models" / "decoder.onnx",
}
"""Small models with random weights, exported or processed by the tools that people use."""


def load(name: str) -> ir.Model:
    """A model in which every node has a name of its own."""
    model = ir.load(FILES[name])
    for i, node in enumerate(all_nodes(model)):
        node.name = f"{i}:{node.name or node.op_type}"
    return model


def copy(model: ir.Model) -> ir.Model:
    return ir.from_proto(ir.to_proto(model))


def scopes(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The graph, the functions, and every subgraph of theirs."""
    pending: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    while pending:
        scope = pending.pop()
        yield scope
        for node in scope:
            pending.extend(subgraphs(node))


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [attr.value for attr in node.attributes.values() if attr.type == ir.AttributeType.GRAPH]


def all_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for scope in scopes(model) for node in scope]


def rename(model: ir.Model, rng: random.Random) -> None:
    """Give every node, and every value that is no input or output of the model, another name."""
    names = [f"n{i}" for i in range(10 * (len(all_nodes(model)) + len(model.graph.initializers)) + 100)]
    rng.shuffle(names)
    kept = {*model.graph.inputs, *model.graph.outputs}
    for scope in scopes(model):
        initializers = [] if isinstance(scope, ir.Function) else list(scope.initializers.values())
        for value in [*scope.inputs, *initializers, *(value for node in scope for value in node.outputs)]:
            if value not in kept and value.name != "":
                kept.add(value)
                value.name = names.pop()
        for node in scope:
            node.name = names.pop()
    model.producer_name, model.doc_string = names.pop(), names.pop()


def reorder(model: ir.Model, rng: random.Random) -> None:
    """Bring the nodes of every graph into another topological order."""
    for scope in scopes(model):
        waiting = {node: {other for other in _needed(node) if other in set(scope)} for node in scope}
        ordered: list[ir.Node] = []
        while waiting:
            ready = [node for node, needed in waiting.items() if not needed & waiting.keys()]
            node = rng.choice(ready)
            del waiting[node]
            ordered.append(node)
        for node in ordered:
            scope.remove(node)
        scope.extend(ordered)


def store_as_constant_nodes(model: ir.Model, rng: random.Random) -> None:
    """Turn about half of the initializers into Constant nodes, one for each reader."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.is_graph_input() or value.is_graph_output() or rng.random() < 0.5:
            continue
        readers = list(value.uses())
        for i, (node, position) in enumerate(readers):
            constant = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"{name}_{i}")
            constant.outputs[0].name = f"{name}_stored_{i}"
            node.replace_input_with(position, constant.outputs[0])
            node.graph.insert_before(node, constant)
        if readers:
            del graph.initializers[name]


def store_as_initializers(model: ir.Model, rng: random.Random) -> None:
    """Turn about half of the Constant nodes with a tensor into initializers of their graph."""
    for scope in scopes(model):
        if isinstance(scope, ir.Function):
            continue
        for node in list(scope):
            value = node.outputs[0]
            if node.op_type != "Constant" or "value" not in node.attributes or rng.random() < 0.5:
                continue
            if value.is_graph_output():
                continue
            stored = ir.Value(name=f"{value.name}_stored", const_value=node.attributes["value"].value)
            scope.register_initializer(stored)
            value.replace_all_uses_with(stored)
            scope.remove(node)


def store_typed(model: ir.Model) -> ir.Model:
    """The same model with its float and int64 initializers in typed fields instead of raw_data."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64) and tensor.HasField("raw_data"):
            array = onnx.numpy_helper.to_array(tensor)
            field = tensor.float_data if tensor.data_type == onnx.TensorProto.FLOAT else tensor.int64_data
            tensor.ClearField("raw_data")
            field.extend(array.reshape(-1).tolist())
    return ir.from_proto(proto)


def _needed(node: ir.Node) -> set[ir.Node]:
    needed = {value.producer() for value in node.inputs if value is not None}
    for graph in subgraphs(node):
        needed |= {value.producer() for value in graph.outputs}
        for inner in graph:
            needed |= _needed(inner)
    return {producer for producer in needed if producer is not None}


def same_expression(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values of one model are computed by the same operators from the same inputs.

    Written without the project's own code; speed does not matter.
    """
    pending = [(a, b)]
    seen = set()
    while pending:
        x, y = pending.pop()
        if x is y or (x, y) in seen:
            continue
        seen.add((x, y))
        if x is None or y is None:
            return False
        stored = _stored(x), _stored(y)
        if stored[0] is not None or stored[1] is not None:
            if stored[0] != stored[1]:
                return False
            continue
        p, q = x.producer(), y.producer()
        if p is None or q is None or p.op_identifier() != q.op_identifier() or x.index() != y.index():
            return False
        if len(p.inputs) != len(q.inputs) or str(dict(p.attributes)) != str(dict(q.attributes)):
            return False
        pending.extend(zip(p.inputs, q.inputs, strict=True))
    return True


def _stored(value: ir.Value) -> tuple[object, ...] | None:
    tensor = value.const_value if value.is_initializer() else None
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant":
        tensor = producer.attributes["value"].value
    return None if tensor is None else (tensor.dtype, tuple(tensor.shape), tensor.tobytes())


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What was changed: a name for messages, and the nodes of which the report has to name one.

    `nodes` is None where the change is at no node: opsets, inputs and outputs.
    """

    what: str
    nodes: frozenset[ir.Node] | None
    kind: str


def mutate(model: ir.Model, rng: random.Random) -> Mutation | None:
    """Change one thing in a model; None, and no change, where the draw does not fit."""
    kind = rng.choice(sorted(_MUTATIONS))
    return _MUTATIONS[kind](model, rng)


def _readers(value: ir.Value) -> frozenset[ir.Node]:
    return frozenset(node for node, _ in value.uses())


def _pick_node(model: ir.Model, rng: random.Random) -> ir.Node:
    scope = rng.choice([scope for scope in scopes(model) if len(scope)])
    return rng.choice(list(scope))


def _is_constant(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Constant"


def _attribute(model: ir.Model, rng: random.Random) -> Mutation | None:
    node = _pick_node(model, rng)
    names = [name for name, attr in node.attributes.items() if not attr.is_ref() and attr.type in _CHANGED]
    if not names or _is_constant(node):
        return None
    name = rng.choice(sorted(names))
    attr = node.attributes[name]
    if rng.random() < 0.1:
        del node.attributes[name]
        return Mutation(f"{name} of {node.name} removed", frozenset([node]), "attribute")
    value = _CHANGED[attr.type](attr.value, rng)
    node.attributes[name] = ir.Attr(name, attr.type, value)
    return Mutation(f"{name} of {node.name}: {attr.value} became {value}", frozenset([node]), "attribute")


def _change_items(items, change):
    def changed(value, rng):
        if not value:
            return items
        i = rng.randrange(len(value))
        return [change(x, rng) if j == i else x for j, x in enumerate(value)]

    return changed


def _change_tensor(tensor: ir.TensorProtocol, rng: random.Random) -> ir.TensorProtocol:
    """One bit of a tensor turned over."""
    data = bytearray(tensor.tobytes())
    i = rng.randrange(len(data))
    # A bool has one bit, and an odd number of 4-bit elements leaves half a byte unused.
    bit = 0 if tensor.dtype == ir.DataType.BOOL or tensor.dtype.bitwidth < 8 else rng.randrange(8)
    data[i] ^= 1 << bit
    proto = ir.to_proto(ir.tensor(np.zeros(0, dtype=np.uint8)))
    proto.data_type = tensor.dtype.value
    proto.dims[:] = list(tensor.shape)
    proto.raw_data = bytes(data)
    return ir.from_proto(proto)


def _change_int(value, rng):
    return value + rng.choice([-1, 1])


def _change_float(value, rng):
    return float(np.nextafter(np.float32(value), np.float32(rng.choice([-np.inf, np.inf]))))


_CHANGED = {
    ir.AttributeType.INT: _change_int,
    ir.AttributeType.FLOAT: _change_float,
    ir.AttributeType.STRING: lambda value, rng: value + "x",
    ir.AttributeType.INTS: _change_items([1], _change_int),
    ir.AttributeType.FLOATS: _change_items([1.0], _change_float),
    ir.AttributeType.TENSOR: lambda value, rng: _change_tensor(value, rng) if value.nbytes else value,
}


def _swap(model: ir.Model, rng: random.Random) -> Mutation | None:
    node = _pick_node(model, rng)
    if len(node.inputs) < 2:
        return None
    i, j = rng.sample(range(len(node.inputs)), 2)
    x, y = node.inputs[i], node.inputs[j]
    if same_expression(x, y):
        return None  # reads the same as before
    node.replace_input_with(i, y)
    node.replace_input_with(j, x)
    return Mutation(f"operands {i} and {j} of {node.name} swapped", frozenset([node]), "wiring")


def _rewire(model: ir.Model, rng: random.Random) -> Mutation | None:
    scope = rng.choice([scope for scope in scopes(model) if len(scope)])
    nodes = list(scope)
    position = rng.randrange(len(nodes))
    node = nodes[position]
    if not node.inputs:
        return None
    earlier = [value for other in nodes[:position] for value in other.outputs] + list(scope.inputs)
    if not isinstance(scope, ir.Function):
        earlier += list(scope.initializers.values())
    if not earlier:
        return None
    i, value = rng.randrange(len(node.inputs)), rng.choice(earlier)
    if same_expression(node.inputs[i], value):
        return None  # reads the same as before
    node.replace_input_with(i, value)
    return Mutation(f"operand {i} of {node.name} is now {value.name}", frozenset([node]), "wiring")


def _constants(model: ir.Model) -> list[ir.Value]:
    stored = [value for scope in scopes(model) if isinstance(scope, ir.Graph) for value in scope.initializers.values()]
    stored += [node.outputs[0] for node in all_nodes(model) if _is_constant(node) and "value" in node.attributes]
    return [value for value in stored if value.uses() and not value.is_graph_output()]


def _set_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    if (node := value.producer()) is not None:
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    else:
        value.const_value = tensor


def _tensor_of(value: ir.Value) -> ir.TensorProtocol:
    producer = value.producer()
    return value.const_value if producer is None else producer.attributes["value"].value


def _weight(model: ir.Model, rng: random.Random) -> Mutation | None:
    stored = [value for value in _constants(model) if _tensor_of(value).nbytes]
    if not stored:
        return None
    value = rng.choice(stored)
    tensor = _tensor_of(value)
    _set_constant(value, _change_tensor(tensor, rng))
    return Mutation(f"one bit of {value.name}", _readers(value), "constant")


def _dtype(model: ir.Model, rng: random.Random) -> Mutation | None:
    others = {np.float32: np.float64, np.int64: np.int32, np.uint8: np.int8}
    stored = [value for value in _constants(model) if _tensor_of(value).numpy().dtype.type in others]
    if not stored:
        return None
    value = rng.choice(stored)
    array = _tensor_of(value).numpy()
    other = others[array.dtype.type]
    _set_constant(value, ir.tensor(array.astype(other), name=value.name))
    return Mutation(f"type of {value.name} is now {other.__name__}", _readers(value), "constant")


def _operator(model: ir.Model, rng: random.Random) -> Mutation | None:
    node = _pick_node(model, rng)
    others = {
        "Add": "Sub",
        "Sub": "Add",
        "Mul": "Div",
        "Div": "Mul",
        "Cos": "Sin",
        "Sin": "Cos",
        "Softmax": "LogSoftmax",
    }
    if _is_constant(node):
        return None
    if node.op_type in others:
        node.op_type = others[node.op_type]
    else:
        node.domain = f"{node.domain}.other"
    return Mutation(f"operator of {node.name} is now {node.domain} {node.op_type}", frozenset([node]), "operator")


def _insert(model: ir.Model, rng: random.Random) -> Mutation | None:
    node = _pick_node(model, rng)
    positions = [i for i, value in enumerate(node.inputs) if value is not None]
    if not positions:
        return None
    i = rng.choice(positions)
    new = ir.node(rng.choice(["Neg", "Relu", "Identity"]), inputs=[node.inputs[i]], name="new")
    new.outputs[0].name = "new_value"
    node.graph.insert_before(node, new)
    node.replace_input_with(i, new.outputs[0])
    return Mutation(f"{new.op_type} inserted before operand {i} of {node.name}", frozenset([new, node]), "added")


def _bypass(model: ir.Model, rng: random.Random) -> Mutation | None:
    node = _pick_node(model, rng)
    readers = _readers(node.outputs[0])
    operand = node.inputs[0] if node.inputs else None
    if operand is None or not readers or any(value.is_graph_output() for value in node.outputs):
        return None
    if len(node.outputs) > 1 or subgraphs(node):
        return None
    node.outputs[0].replace_all_uses_with(operand)
    scope = node.graph
    scope.remove(node)
    return Mutation(f"{node.name} removed", frozenset([node, *readers]), "removed")


def _subgraph_output(model: ir.Model, rng: random.Random) -> Mutation | None:
    owners = [node for node in all_nodes(model) if subgraphs(node)]
    if not owners:
        return None
    owner = rng.choice(owners)
    graph = rng.choice(subgraphs(owner))
    if not len(graph):
        return None
    i = rng.randrange(len(graph.outputs))
    value = rng.choice([value for node in graph for value in node.outputs])
    if same_expression(graph.outputs[i], value) or value in graph.outputs:
        return None
    value.type, value.shape = graph.outputs[i].type, graph.outputs[i].shape
    graph.outputs[i] = value
    return Mutation(f"output {i} of {graph.name} is now {value.name}", frozenset([owner]), "wiring")


def _opset(model: ir.Model, rng: random.Random) -> Mutation | None:
    scope = rng.choice([model.graph, *model.functions.values()])
    domain = rng.choice(sorted(scope.opset_imports))
    scope.opset_imports[domain] += rng.choice([-1, 1])
    return Mutation(f"opset of {domain!r}", None, "opset")


def _interface(model: ir.Model, rng: random.Random) -> Mutation | None:
    kind = rng.choice(["input", "output"])
    values = model.graph.inputs if kind == "input" else model.graph.outputs
    value = rng.choice(list(values))
    choice = rng.randrange(3)
    if choice == 0:
        value.name = f"{value.name}_other"
    elif choice == 1:
        value.type = ir.TensorType(ir.DataType.BOOL if value.dtype == ir.DataType.FLOAT16 else ir.DataType.FLOAT16)
    else:
        value.shape = ir.Shape([*(value.shape or ()), 7])
    return Mutation(f"{kind} {value.name}", None, kind)


_MUTATIONS = {
    "attribute": _attribute,
    "bypass": _bypass,
    "dtype": _dtype,
    "insert": _insert,
    "interface": _interface,
    "operator": _operator,
    "opset": _opset,
    "rewire": _rewire,
    "subgraph output": _subgraph_output,
    "swap": _swap,
    "weight": _weight,
}


def random_model(rng: random.Random) -> ir.Model:
    """A random small graph: many equal nodes, some that nothing reads, subgraphs that capture values."""
    inputs = [_value(f"in{i}") for i in range(2)]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 21}, name="random")
    _fill(graph, list(inputs), rng, depth=0)
    produced = [value for node in graph for value in node.outputs]
    for i, value in enumerate(rng.sample(produced, rng.randint(1, min(2, len(produced))))):
        value.name, value.type = f"out{i}", ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def _value(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N"]))


def _fill(graph: ir.Graph, visible: list[ir.Value], rng: random.Random, depth: int) -> None:
    serial = sum(1 for _ in visible) + 100 * depth
    for i in range(rng.randint(3, 12)):
        op = rng.choice(["Neg", "Neg", "Add", "Add", "Split", "Constant", "If"] if depth < 2 else ["Neg", "Add"])
        count = {"Neg": 1, "Add": 2, "Split": 1, "Constant": 0, "If": 1}[op]
        attributes = []
        if op == "Constant":
            attributes = [ir.AttrTensor("value", ir.tensor(np.array([rng.randrange(2)], dtype=np.float32)))]
        if op == "If":
            for name in ("then_branch", "else_branch"):
                inner = ir.Graph([], [], nodes=[], name=f"{name}{serial}{i}")
                _fill(inner, visible, rng, depth + 1)
                inner.outputs.append(rng.choice([value for node in inner for value in node.outputs]))
                attributes.append(ir.AttrGraph(name, inner))
        node = ir.node(
            op,
            [rng.choice(visible) for _ in range(count)],
            num_outputs=2 if op == "Split" else 1,
            name=f"n{serial}_{i}",
        )
        node.attributes.update({attr.name: attr for attr in attributes})
        for j, value in enumerate(node.outputs):
            value.name = f"v{rng.getrandbits(64)}_{j}"
        graph.append(node)
        visible = [*visible, *node.outputs]
