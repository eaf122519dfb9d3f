"""Follow one axis of a tensor through a graph: forward to a product with V, backward to a product of Q and K.

Axes are counted from the end (-1 is the last), which is what broadcasting keeps. A step answers with
one of three: the axis continues in other values (`Passed`), it meets its partner in a product
(`Product`), or the walk ends with a reason (`Lost`). What makes a product an attention is decided in
`sites`; this module only follows axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnx_attnq.graph import Types, axes_of, axis_from_end, known_op

# The axis stays where it is, counted from the end. Values are the operands that carry numbers on: a
# condition, a scale or a zero point does not.
_ELEMENTWISE: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow"), None),
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Dropout", "Clip", "Tanh", "Neg", "Exp", "Trilu"), (0,)),
    # Of DynamicQuantizeLinear the codes; its scale and zero point have no axes.
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ScatterND", "Expand", "Pad"), (0,)
    ),
    "ScatterElements": (0, 2),
    "Where": (1, 2),
    # com.microsoft
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "BiasDropout": (0,),
    "BitmaskDropout": (0,),
}
_INFER = "run onnx shape inference on the model first"
# op: (left operand, right operand) of a product over the last two axes.
_MATMULS: dict[str, tuple[int, int]] = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "Gemm": (0, 1),
    "QLinearMatMul": (0, 3),
    # com.microsoft
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulNBits": (0, 1),
}


@dataclasses.dataclass(frozen=True)
class Position:
    """An axis, counted from the end, of a value."""

    value: ir.Value
    axis: int


@dataclasses.dataclass(frozen=True)
class Passed:
    """The axis continues in these values."""

    positions: tuple[Position, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product or Einsum.

    Forward, ``with_axis`` holds the walked axis, which is contracted with ``other``. Backward,
    ``with_axis`` is the operand that supplies the walked axis, ``other`` the one that does not.

    Attributes:
        node: The product.
        with_axis: The operand with the walked axis, and where it is there.
        other: The other operand.
        is_left: True when ``with_axis`` is the left operand.
    """

    node: ir.Node
    with_axis: Position
    other: ir.Value
    is_left: bool


@dataclasses.dataclass(frozen=True)
class Lost:
    """The walk cannot go on, or should not.

    Attributes:
        reason: Why, for people.
        op: The op that could not be followed, if that was it: perhaps a function that can be inlined.
    """

    reason: str
    op: ir.OperatorIdentifier | None = None


Step: TypeAlias = Passed | Product | Lost


def forward(node: ir.Node, index: int, axis: int, types: Types) -> Step:
    """Where ``axis`` of input ``index`` of ``node`` goes.

    A product that does not contract the axis passes it on, as the head mixing of talking heads does.
    """
    op, output = known_op(node), node.outputs[0]
    if not op:
        return Lost(f"{describe(node)} is not a standard op", node.op_identifier())
    if op in _MATMULS:
        return _matmul_forward(node, index, axis)
    if op == "Einsum":
        return _einsum_forward(node, index, axis)
    if op in _ELEMENTWISE:
        carried = _ELEMENTWISE[op]
        if carried is not None and index not in carried:
            return Lost(f"{describe(node)} takes it as a condition or parameter")
        return _passed(output, axis)
    if op == "Concat":
        return _passed(output, axis)
    if index != 0:
        return Lost(f"{describe(node)} takes it as a parameter", node.op_identifier())
    if op == "Split":
        return Passed(tuple(Position(o, axis) for o in node.outputs))
    if op in ("Slice", "GatherElements", "Tile", "BatchNormalization"):
        return _passed(output, axis)
    if op == "ReduceSum":
        return Lost(f"{describe(node)} sums it without a matrix product")
    if op == "Conv" and _is_pointwise(node):
        return _passed(output, axis) if axis >= -2 else Lost(f"{describe(node)} mixes it")
    moved = _layout(node, axis, types, to_output=True)
    return moved if isinstance(moved, Lost) else _passed(output, moved)


def backward(value: ir.Value, axis: int, types: Types) -> Step:
    """Where ``axis`` of ``value`` came from."""
    node = value.producer()
    if node is None:
        return Lost(
            f"{value.name!r} is an input of the graph" if value.is_graph_input() else f"{value.name!r} is constant"
        )
    op = known_op(node)
    if not op:
        return Lost(f"{describe(node)} is not a standard op", node.op_identifier())
    if op in _MATMULS:
        return _matmul_backward(node, axis)
    if op == "Einsum":
        return _einsum_backward(node, axis)
    if op == "DynamicQuantizeLinear" and value is not node.outputs[0]:
        return Lost(f"{value.name!r} is a scale or zero point")
    if op in _ELEMENTWISE or op == "Concat":
        carried = _ELEMENTWISE.get(op)
        operands = node.inputs if carried is None else [node.inputs[i] for i in carried if i < len(node.inputs)]
        return Passed(tuple(Position(v, axis) for v in operands if v is not None and _has_axis(v, axis)))
    if op in ("Split", "Slice", "GatherElements", "Tile", "TopK") and node.inputs[0] is not None:
        return Passed((Position(node.inputs[0], axis),))
    if not node.inputs or node.inputs[0] is None:
        return Lost(f"{describe(node)} is not part of a score computation")
    if op == "Conv" and _is_pointwise(node) and axis >= -2 and node.inputs[1] is not None:
        return Product(node, Position(node.inputs[0], axis), node.inputs[1], is_left=True)
    if op == "ReduceSum" and (factors := node.inputs[0].producer()) is not None and known_op(factors) == "Mul":
        return Lost(
            f"{describe(node)} sums what {describe(factors)} multiplies element by element, as in local attention; "
            "only matrix products are followed"
        )
    moved = _layout(node, axis, types, to_output=False)
    return moved if isinstance(moved, Lost) else _passed(node.inputs[0], moved)


def describe(node: ir.Node) -> str:
    """The node as messages name it: op type and name, or the name of its first output."""
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"


def operands(node: ir.Node) -> tuple[ir.Value, ...]:
    """What a product multiplies: no scales, zero points or addends; nothing for any other op."""
    if known_op(node) == "Einsum":
        found = tuple(node.inputs)
    else:
        found = tuple(node.inputs[i] for i in _MATMULS.get(known_op(node), ()) if i < len(node.inputs))
    return tuple(value for value in found if value is not None)


def is_linear(product: Product, types: Types) -> bool:
    """True for a product with a matrix on the right: a linear layer, if that matrix is a weight."""
    if known_op(product.node) in ("MatMulNBits", "Conv"):
        return product.is_left
    return product.is_left and (types.rank(product.other) or 3) <= 2


def is_square(product: Product) -> bool:
    """True when the other operand of the product is known to be a square matrix, or a pointwise Conv with one."""
    shape = product.other.shape
    return shape is not None and len(shape) in (2, 4) and isinstance(shape[0], int) and shape[0] == shape[1]


def _passed(value: ir.Value, axis: int) -> Passed:
    return Passed((Position(value, axis),))


def _has_axis(value: ir.Value, axis: int) -> bool:
    """False when the value is known to be broadcast along the axis."""
    if value.shape is None:
        return True
    return len(value.shape) >= -axis and value.shape[axis] != 1


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _matmul_forward(node: ir.Node, index: int, axis: int) -> Step:
    left, right = _MATMULS[known_op(node)]
    if index not in (left, right):
        return Lost(f"{describe(node)} takes it as a scale or zero point")
    is_left = index == left
    operand, other = (node.inputs[i] for i in ((left, right) if is_left else (right, left)))
    if operand is None or other is None:
        return Lost(f"{describe(node)} lacks an operand")
    if axis < -2:
        moved = _flag(node, "transBatchA" if is_left else "transBatchB")
        return Lost(f"{describe(node)} permutes batch axes") if moved else _passed(node.outputs[0], axis)
    transposed = bool(_flag(node, "transA" if is_left else "transB"))
    if (axis == -1) == (is_left != transposed):
        return Product(node, Position(operand, axis), other, is_left)
    return _passed(node.outputs[0], -2 if is_left else -1)


def _matmul_backward(node: ir.Node, axis: int) -> Step:
    left, right = (node.inputs[i] if i < len(node.inputs) else None for i in _MATMULS[known_op(node)])
    if left is None or right is None:
        return Lost(f"{describe(node)} lacks an operand")
    if axis == -1:
        return Product(node, Position(right, -2 if _flag(node, "transB") else -1), left, is_left=False)
    if axis == -2:
        return Product(node, Position(left, -1 if _flag(node, "transA") else -2), right, is_left=True)
    return Lost(f"the softmax runs over a batch axis of {describe(node)}")


def _layout(node: ir.Node, axis: int, types: Types, *, to_output: bool) -> int | Lost:
    """The axis on the other side of an op that only moves elements."""
    op = known_op(node)
    source, target = node.inputs[0], node.outputs[0]
    if op == "Transpose":
        attribute = node.attributes.get("perm")
        if attribute is None:
            rank = types.rank(source if to_output else target)
            if rank is None:
                return Lost(f"{describe(node)} reverses the axes, and how many there are is unknown; {_INFER}")
            return -rank - 1 - axis
        perm = list(attribute.as_ints())
        if not to_output:
            return int(perm[axis]) - len(perm)
        return perm.index(axis + len(perm)) - len(perm)
    if op in ("Unsqueeze", "Squeeze"):
        return _squeeze(node, axis, types, inserts=(op == "Unsqueeze") == to_output)
    if op in ("Reshape", "Flatten"):
        return _reshape(node, axis, source if to_output else target, target if to_output else source)
    if op == "Gather":
        return _gather(node, axis, types, to_output=to_output)
    return Lost(f"{describe(node)} is not part of an attention", node.op_identifier())


def _squeeze(node: ir.Node, axis: int, types: Types, *, inserts: bool) -> int | Lost:
    axes = axes_of(node)
    if axes is None:
        return Lost(f"{describe(node)} has axes that are not constant")
    longer = node.outputs[0] if known_op(node) == "Unsqueeze" else node.inputs[0]
    shorter = node.inputs[0] if known_op(node) == "Unsqueeze" else node.outputs[0]
    rank = types.rank(longer)
    if rank is None and (known := types.rank(shorter)) is not None:
        rank = known + len(axes)
    if rank is None and inserts:
        axes = [a for a in axes if a != 0]  # in front of all others, so that none moves, counted from the end
    inserted = [axis_from_end(a, rank) for a in axes]
    if any(a is None for a in inserted):
        return Lost(f"{describe(node)} counts axes from the front, and how many there are is unknown; {_INFER}")
    known_axes = sorted((a for a in inserted if a is not None), reverse=True)
    if inserts:
        for a in known_axes:  # nearest the end first: each pushes what is further left
            if a >= axis:
                axis -= 1
        return axis
    if axis in known_axes:
        return Lost(f"{describe(node)} adds or drops the softmax axis itself")
    return axis + sum(a > axis for a in known_axes)


def _gather(node: ir.Node, axis: int, types: Types, *, to_output: bool) -> int | Lost:
    """The indices' axes take the place of the axis that Gather picks from; those on its left move along."""
    attribute = node.attributes.get("axis")
    raw = 0 if attribute is None else attribute.as_int()
    count, rank = types.rank(node.inputs[1]), types.rank(node.inputs[0])
    if count == 1:
        return axis  # also where it is the one that is picked from
    picked = axis_from_end(raw, rank)
    if picked is None and raw == 0 and count == 0 and not to_output:
        return axis  # what is left of the first axis is nothing
    if count is None or picked is None:
        return Lost(f"{describe(node)} changes how many axes there are, which is unknown; {_INFER}")
    if axis > picked:
        return axis
    if to_output:
        return axis + 1 - count if axis < picked else Lost(f"{describe(node)} picks from the softmax axis itself")
    return axis + count - 1 if axis <= picked - count else Lost(f"{describe(node)} adds the softmax axis itself")


def _reshape(node: ir.Node, axis: int, before: ir.Value | None, after: ir.Value | None) -> int | Lost:
    """A Reshape keeps the order of elements, so an axis is where the same number of elements lies on one side of it.

    An axis that is split is followed in its innermost part, and one that is merged in the axis that it has become the
    innermost part of: both are found again when a later Reshape undoes it. The last axis always stays the last.
    """
    if axis == -1:
        return -1
    if before is None or before.shape is None or after is None or after.shape is None:
        return Lost(f"{describe(node)} has unknown shapes; {_INFER}")
    a, b = before.shape, after.shape
    if len(a) < -axis:
        return Lost(f"{describe(node)} has fewer axes than expected")
    inside = _size(a[len(a) + axis + 1 :])
    outside = _size(a[: len(a) + axis])
    same = [i for i in range(len(b)) if inside is not None and _size(b[i + 1 :]) == inside] or [
        i for i in range(len(b)) if outside is not None and _size(b[:i]) == outside
    ]
    if not same:
        return Lost(f"{describe(node)} splits or merges the softmax axis, as far as its shapes tell")
    # Axes of size 1 beside it have as many elements on that side.
    best = max(same, key=lambda i: (_surely_equal(a[axis], b[i]), b[i] != 1))
    return best - len(b)


def _size(dims: Sequence[int | ir.SymbolicDim]) -> tuple[int, list[str]] | None:
    """The number of elements as a number times symbols; None when a dim is unknown, as a negative one is.

    >>> _size([2, ir.SymbolicDim("tokens"), 3]), _size([2, -1])
    ((6, ['tokens']), None)
    """
    symbols = [dim.value for dim in dims if not isinstance(dim, int)]
    if not all(symbols) or any(isinstance(dim, int) and dim < 0 for dim in dims):
        return None
    return math.prod(dim for dim in dims if isinstance(dim, int)), sorted(s for s in symbols if s is not None)


def _surely_equal(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return a.value is not None and a == b


def _is_pointwise(node: ir.Node) -> bool:
    weight = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return weight is not None and len(weight) == 4 and weight[2] == 1 and weight[3] == 1


def _einsum_terms(node: ir.Node) -> tuple[list[str], str] | None:
    attribute = node.attributes.get("equation")
    equation = "" if attribute is None else attribute.as_string().replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow or len(left.split(",")) != len(node.inputs):
        return None
    # An ellipsis stands for batch axes on the left of the rest; one letter is enough to count from the end.
    return [t.replace("...", "") for t in left.split(",")], right.replace("...", "")


def _einsum_forward(node: ir.Node, index: int, axis: int) -> Step:
    terms = _einsum_terms(node)
    if terms is None or len(terms[0][index]) < -axis:
        return Lost(f"{describe(node)} has an equation that cannot be followed")
    inputs, output = terms
    letter = inputs[index][axis]
    if letter in output:
        return _passed(node.outputs[0], output.index(letter) - len(output))
    others = [i for i, term in enumerate(inputs) if i != index and letter in term]
    if len(others) != 1 or node.inputs[others[0]] is None or node.inputs[index] is None:
        return Lost(f"{describe(node)} sums it without a matrix product")
    value, other = node.inputs[index], node.inputs[others[0]]
    assert value is not None
    assert other is not None
    return Product(node, Position(value, axis), other, is_left=index < others[0])


def _einsum_backward(node: ir.Node, axis: int) -> Step:
    terms = _einsum_terms(node)
    if terms is None or len(terms[1]) < -axis:
        return Lost(f"{describe(node)} has an equation that cannot be followed")
    inputs, output = terms
    letter = output[axis]
    holders = [i for i, term in enumerate(inputs) if letter in term]
    if len(holders) != 1 or len(inputs) != 2:
        return Lost(f"the softmax runs over a batch axis of {describe(node)}")
    holder = holders[0]
    value, other = node.inputs[holder], node.inputs[1 - holder]
    if value is None or other is None:
        return Lost(f"{describe(node)} lacks an operand")
    position = Position(value, inputs[holder].index(letter) - len(inputs[holder]))
    return Product(node, position, other, is_left=holder == 0)
