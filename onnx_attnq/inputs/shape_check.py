"""Whether sizes of inputs fit a graph: shapes, and the small values that shapes are computed from, node by node.

onnx infers the shapes of a node, and its reference implementation computes the small values; nothing else runs. What
neither knows (a custom op, a branch that data decides) is unknown, and whatever follows from it fits.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_node_outputs

from onnx_attnq.graph import Mismatch, constant, known_op, subgraphs
from onnx_attnq.inputs.fused_shapes import FUSED_OUTPUTS
from onnx_attnq.inputs.iterations import Iterations, iterations
from onnx_attnq.inputs.known_values import UNKNOWN, Known, Shape, is_few, is_small, of_array, of_tensor, type_of

_GROWING: Final = frozenset(
    {
        *("Expand", "ConstantOfShape", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "CenterCropPad"),
        *("Where", "Sum", "Max", "Min", "Mean", "Einsum", "AffineGrid", "RoiAlign", "MaxRoiPool", "MelWeightMatrix"),
        *("Conv", "ConvInteger", "QLinearConv", "DeformConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"),
        *("MaxUnpool", "Col2Im", "DFT", "STFT", "HannWindow", "HammingWindow", "BlackmanWindow", "GridSample"),
    }
)
"""Ops whose outputs may have far more elements than their inputs, as these, attributes or three inputs ask."""

_MOST_IN_LOOPS: Final = 5000
"""The most nodes that are looked at in loops, all iterations together: a second."""

_RANDOM: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """The first node that sizes do not fit.

    Attributes:
        place: How many nodes come before it; of two sizes, the one that gets further is better.
        node: Operator and name.
        reason: What is wrong, one line.
        gaps: Pairs of sizes that should be equal, where that is what is wrong.
    """

    place: int
    node: str
    reason: str
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def progress(self) -> tuple[int, int]:
        """How far it got: to a later node, or to one gap less at the same."""
        return self.place, -len(self.gaps)

    def __str__(self) -> str:
        """As in an error message."""
        return f"{self.node}: {self.reason}"


class _DoesNotFit(Exception):
    def __init__(self, reason: str, gaps: Sequence[tuple[int, int]]) -> None:
        super().__init__(reason)
        self.gaps = gaps


@dataclasses.dataclass(frozen=True, slots=True)
class LargestValue:
    """The largest value that a run of a graph makes, as far as shape inference can tell.

    Attributes:
        node: Operator and name of what makes it.
        shape: Its shape.
        nbytes: Its size in memory, bytes.
    """

    node: str = ""
    shape: Shape = ()
    nbytes: int = 0


class ShapeCheck:
    """A graph, ready to be asked about many sizes; valid until the model is changed."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._protos: dict[ir.Node, onnx.NodeProto | None] = {}
        self._evaluators: dict[ir.Node, ReferenceEvaluator | None] = {}
        self._constants: dict[ir.Value, Known] = {}
        self._place = 0
        self._largest = LargestValue()
        self._left_in_loops = 0

    def misfit(
        self, inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Mapping[str, npt.NDArray[Any]]
    ) -> Misfit | None:
        """The first node that does not take these inputs, or None if all that is known about the graph fits.

        Args:
            inputs: Type and shape by name.
            values: What some of them hold, from which sizes are computed.
        """
        return self._run(self._model.graph, self._fed(inputs, values), {})

    def shapes(
        self, inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Mapping[str, npt.NDArray[Any]]
    ) -> dict[ir.Value, tuple[int, ...]]:
        """The shapes that values of the graph, and of branches that are taken, have with these inputs."""
        known = self._fed(inputs, values)
        self._run(self._model.graph, known, {})
        shapes = ((value, item.shape) for value, item in known.items())
        return {value: shape for value, shape in shapes if shape is not None and None not in shape}  # type: ignore[misc]

    def largest(
        self, inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Mapping[str, npt.NDArray[Any]]
    ) -> LargestValue:
        """The largest value that these inputs make, also in functions, branches and loops that run."""
        known = self._fed(inputs, values)
        self._left_in_loops = _MOST_IN_LOOPS
        self._run(self._model.graph, known, {})
        self._left_in_loops = 0
        return self._largest

    def _fed(
        self, inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]], values: Mapping[str, npt.NDArray[Any]]
    ) -> dict[ir.Value, Known]:
        self._place = 0
        self._largest = LargestValue()
        known: dict[ir.Value, Known] = {}
        for value in self._model.graph.inputs:
            if value.name in inputs and value.name is not None:
                dtype, shape = inputs[value.name]
                small = values.get(value.name)
                known[value] = Known(type_of(dtype, shape), small if small is not None and is_small(small) else None)
            elif value.const_value is not None:
                known[value] = of_tensor(value.const_value)
        return known

    def _run(
        self, nodes: Iterable[ir.Node], known: dict[ir.Value, Known], attributes: Mapping[str, ir.Attr]
    ) -> Misfit | None:
        for node in nodes:
            self._place += 1
            if node.op_type == "Constant":
                continue  # looked up where it is used
            inputs = [self._lookup(value, known) for value in node.inputs]
            try:
                if (function := self._model.functions.get(node.op_identifier())) is not None:
                    inner = dict(zip(function.inputs, inputs, strict=False))
                    misfit = self._run(function, inner, {**attributes, **node.attributes})
                    outputs = [self._lookup(value, inner) for value in function.outputs]
                elif any(True for _ in subgraphs(node)):
                    misfit, outputs = self._subgraph(node, inputs, known, attributes)
                else:
                    misfit, outputs = None, self._infer(node, inputs, attributes)
            except _DoesNotFit as error:
                return Misfit(self._place, _label(node), str(error), tuple(error.gaps))
            except (IndexError, OverflowError, TypeError, ValueError, ZeroDivisionError):
                misfit, outputs = None, []  # ranks and attributes that the op does not have; onnxruntime tells which
            if misfit is not None:
                return misfit
            known.update(zip(node.outputs, outputs, strict=False))
            for item in outputs:
                self._measure(node, item)
        return None

    def _measure(self, node: ir.Node, item: Known, times: int = 1) -> None:
        """Keep the largest; ``times`` values of a loop become one."""
        if (nbytes := item.nbytes * times) > self._largest.nbytes and (shape := item.shape) is not None:
            self._largest = LargestValue(_label(node), shape if times == 1 else (times, *shape), nbytes)

    def _subgraph(
        self, node: ir.Node, inputs: list[Known], known: dict[ir.Value, Known], attributes: Mapping[str, ir.Attr]
    ) -> tuple[Misfit | None, list[Known]]:
        """The branch of an If whose condition is known; of loops, and of other branches, nothing."""
        if self._left_in_loops > 0 and (found := iterations(node, inputs)) is not None:
            self._iterate(node, found, known, attributes)
        condition = inputs[0].value if known_op(node) == "If" and inputs else None
        if condition is None:
            return None, []
        branch = node.attributes["then_branch" if condition.all() else "else_branch"].as_graph()
        misfit = self._run(branch, known, attributes)
        return misfit, [self._lookup(value, known) for value in branch.outputs]

    def _iterate(
        self, node: ir.Node, runs: Iterations, known: Mapping[ir.Value, Known], attributes: Mapping[str, ir.Attr]
    ) -> None:
        """Measure the values of a loop, as long as those that it carries change their shape.

        What a loop gives stays unknown, and so does what does not fit in it: that may be where it stops.
        """
        carried = runs.carried
        for step in range(runs.count):
            inner = {**known, **runs.entering(step, carried)}
            before = self._place
            if self._run(runs.body, inner, attributes) is not None:
                return
            self._left_in_loops -= self._place - before
            outputs = [self._lookup(value, inner) for value in runs.body.outputs]
            found = outputs[runs.leading[1] :]
            if step == 0 and runs.all_run:
                for item in found[len(carried) :]:
                    self._measure(node, item, runs.count)
            goes_on = runs.leading[1] == 0 or (outputs[0].value is not None and outputs[0].value.all())
            grows = any(a.shape != b.shape for a, b in zip(carried, found, strict=False))
            if not goes_on or not grows or self._left_in_loops <= 0:
                return
            carried = tuple(found[: len(carried)])

    def _lookup(self, value: ir.Value | None, known: Mapping[ir.Value, Known]) -> Known:
        if value is None:
            return UNKNOWN
        if value in known:
            return known[value]
        if value not in self._constants:
            tensor = None if value.is_graph_input() else constant(value)
            self._constants[value] = UNKNOWN if tensor is None else of_tensor(tensor)
        return self._constants[value]

    def _infer(self, node: ir.Node, inputs: list[Known], attributes: Mapping[str, ir.Attr]) -> list[Known]:
        shapes = [item.shape for item in inputs]
        if (rule := FUSED_OUTPUTS.get(node.op_type)) is not None and (node.domain or rule.standard_too):
            try:
                results = rule.outputs(node, shapes)
            except Mismatch as error:
                raise _DoesNotFit(str(error), [error.gap]) from None
            kind = inputs[0].type.tensor_type.elem_type if inputs[0].type is not None else 0
            return [UNKNOWN if r is None else Known(onnx.helper.make_tensor_type_proto(kind, r)) for r in results]
        proto = self._proto(node)
        if proto is None or any(a.is_ref() for a in node.attributes.values()):
            return []
        if (size := _shape_value(node, shapes)) is not None:
            return [of_array(size)]
        if (
            inputs
            and node.op_type not in _RANDOM
            and all(
                item.value is not None for item, value in zip(inputs, node.inputs, strict=True) if value is not None
            )
        ):
            if node.op_type in _GROWING:  # a file of a few bytes may ask for gigabytes
                inferred = self._infer_types(node, proto, inputs, shapes)
                if not all(is_few(item.shape) for item in inferred):
                    return inferred
            computed = self._compute(node, proto, inputs)
            if computed is not None:
                return computed
        if any(i.type is None for i, value in zip(inputs, node.inputs, strict=True) if value is not None):
            return []
        return self._infer_types(node, proto, inputs, shapes)

    def _infer_types(
        self, node: ir.Node, proto: onnx.NodeProto, inputs: list[Known], shapes: list[Shape | None]
    ) -> list[Known]:
        _check(node, inputs, shapes)
        version = self._version(node)
        if version is None or not onnx.defs.has(node.op_type, version, ""):
            return []
        types = {f"i{k}": item.type for k, item in enumerate(inputs) if item.type is not None}
        data = {
            f"i{k}": onnx.numpy_helper.from_array(item.value) for k, item in enumerate(inputs) if item.value is not None
        }
        schema = onnx.defs.get_schema(node.op_type, version, "")
        try:
            found = infer_node_outputs(schema, proto, types, data, None, [onnx.helper.make_opsetid("", version)])
        except InferenceError as error:
            reason = re.sub(r"\[\w+Error\]", "", str(error)).strip().splitlines()[0]
            shown = " and ".join(str(list(shape)) for shape in shapes if shape is not None)
            raise _DoesNotFit(f"{reason} ({shown})", _gaps(node, inputs, shapes)) from None
        except (RuntimeError, TypeError, ValueError, onnx.checker.ValidationError):
            return []
        outputs = [Known(found.get(f"o{k}")) for k in range(len(node.outputs))]
        if any(size is not None and size < 0 for item in outputs for size in item.shape or ()):
            raise _DoesNotFit(f"{shapes[0]} is too small", ())
        return outputs

    def _compute(self, node: ir.Node, proto: onnx.NodeProto, inputs: list[Known]) -> list[Known] | None:
        """The outputs, if they are small and the reference implementation knows the op."""
        if node not in self._evaluators:
            try:
                self._evaluators[node] = ReferenceEvaluator(proto)
            except Exception:  # an op, or a version of it, that onnx has no implementation of
                self._evaluators[node] = None
        evaluator = self._evaluators[node]
        if evaluator is None:
            return None
        feeds = {f"i{k}": item.value for k, item in enumerate(inputs) if item.value is not None}
        try:
            with np.errstate(all="ignore"):
                arrays = evaluator.run(None, feeds)
        except Exception:  # what it does not take, onnxruntime may
            return None
        # A sequence is a list.
        return [UNKNOWN if isinstance(array, list) else of_array(np.asarray(array)) for array in arrays]

    def _proto(self, node: ir.Node) -> onnx.NodeProto | None:
        """The node with inputs i0, i1, … and outputs o0, o1, …; None for other domains, which onnx does not know."""
        if node.domain not in ("", "ai.onnx"):
            return None
        if node not in self._protos:
            proto = ir.serde.serialize_node(node)
            proto.domain = ""
            proto.input[:] = ["" if value is None else f"i{k}" for k, value in enumerate(node.inputs)]
            proto.output[:] = [f"o{k}" for k in range(len(node.outputs))]
            self._protos[node] = proto
        return self._protos[node]

    def _version(self, node: ir.Node) -> int | None:
        imports = self._model.graph.opset_imports
        if isinstance(node.graph, ir.Function):
            imports = node.graph.opset_imports
        version = node.version or imports.get("", imports.get("ai.onnx"))
        return None if version is None else int(version)


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def _check(node: ir.Node, inputs: list[Known], shapes: list[Shape | None]) -> None:
    """Errors that onnx's inference does not report, and every runtime does."""
    first = shapes[0] if shapes else None
    if node.op_type == "Reshape" and (gaps := _gaps(node, inputs, shapes)):
        raise _DoesNotFit(f"{list(first or ())} cannot be reshaped to {np.asarray(inputs[1].value).tolist()}", gaps)
    if node.op_type == "Conv" and first is not None and len(first) > 2 and shapes[1] is not None:
        channels, weights = first[1], shapes[1][1]
        groups = node.attributes.get_int("group", 1)
        if channels is not None and weights is not None and channels != weights * groups:
            raise _DoesNotFit(f"{channels} channels, not {weights * groups}", [(channels, weights * groups)])
        pads = sum(node.attributes.get_ints("pads", []))
        for size, kernel in zip(first[2:], shapes[1][2:], strict=False):
            if size is not None and kernel is not None and size + pads < kernel:
                raise _DoesNotFit(f"{size} is less than the kernel's {kernel}", ())
    if node.op_type == "Gather" and len(shapes) > 1 and inputs[1].value is not None and first:
        size = first[node.attributes.get_int("axis", 0)]
        indices = np.asarray(inputs[1].value)
        if size is not None and indices.size and int(indices.max()) >= size:
            raise _DoesNotFit(f"index {indices.max()} in an axis of {size}", [(int(indices.max()) + 1, size)])


def _gaps(node: ir.Node, inputs: list[Known], shapes: list[Shape | None]) -> list[tuple[int, int]]:
    """Sizes that have to be equal and are not."""
    if node.op_type == "Reshape":
        target = inputs[1].value
        if shapes[0] is None or None in shapes[0] or target is None:
            return []
        wanted = [shapes[0][k] if size == 0 and k < len(shapes[0]) else int(size) for k, size in enumerate(target)]
        keeps_zero = node.attributes.get_int("allowzero", 0) and 0 in target
        if keeps_zero or any(size is None or size < 0 for size in wanted):
            return []
        sizes = math.prod(size or 0 for size in shapes[0]), math.prod(size or 0 for size in wanted)
        return [sizes] if sizes[0] != sizes[1] else []
    full = [shape for shape in shapes if shape is not None]
    if node.op_type == "Expand" and inputs[1].value is not None:
        full = [full[0], tuple(int(size) for size in inputs[1].value)]
    if node.op_type == "MatMul" and len(full) == 2 and all(len(shape) > 1 for shape in full):
        inner: list[Shape] = [full[0][-1:], full[1][-2:-1]]
        return [*_unequal(inner, broadcast=False), *_unequal([shape[:-2] for shape in full])]
    if node.op_type == "Concat":
        axis = node.attributes.get_int("axis", 0)
        rest = [tuple(1 if k == axis % len(shape) else d for k, d in enumerate(shape)) for shape in full if shape]
        return list(_unequal(rest, broadcast=False))
    return list(_unequal(full))


def _unequal(shapes: list[Shape], *, broadcast: bool = True) -> Iterator[tuple[int, int]]:
    for index, one in enumerate(shapes):
        for other in shapes[index + 1 :]:
            for a, b in zip(reversed(one), reversed(other), strict=False):
                if a is not None and b is not None and a != b and not (broadcast and 1 in (a, b)):
                    yield a, b


def _shape_value(node: ir.Node, shapes: list[Shape | None]) -> npt.NDArray[np.int64] | None:
    """What Shape and Size give for a known shape."""
    if node.op_type not in ("Shape", "Size") or shapes[0] is None or None in shapes[0]:
        return None
    sizes = np.array(shapes[0], dtype=np.int64)
    if node.op_type == "Size":
        return np.asarray(sizes.prod())
    end = node.attributes.get("end")
    return sizes[node.attributes.get_int("start", 0) : None if end is None else end.as_int()]


__all__ = ["LargestValue", "Misfit", "ShapeCheck"]
