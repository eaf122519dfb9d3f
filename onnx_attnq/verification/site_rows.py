"""What enters and leaves the quantization of a site, in onnxruntime.

The probabilities of an attention op stay inside of it, but with an identity matrix for V, they are its context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.find import Form
from onnx_attnq.graph import Dataflow, probe
from onnx_attnq.inputs import Sample
from onnx_attnq.model import opset
from onnx_attnq.rewriting import DOMAIN, DOMAIN_VERSION, RewrittenSite, opened
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import Normalize, Pruned, QuantScheme, Reference, Spacing, for_heads, numerics, schemes_of
from onnx_attnq.verification.codes import LEVEL_TOLERANCE, UNDERFLOW_NATS

_INPUTS = ("query", "key", "value", "mask")
_EPS = float(np.finfo(np.float32).eps)

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """What entered and what left the quantization of one site, in one run; the keys are on the last axis.

    Attributes:
        source: Scores or probabilities, (..., L_q, L_k).
        result: Quantized probabilities, float32, of the same shape.
        is_scores: Whether ``source`` are scores.
        score_error: How far the scores that the op saw may be from ``source``.
        wrong: Elements of an attention's context that are not the product of ``result`` and V.
    """

    source: Array
    result: Array
    is_scores: bool
    score_error: Array
    wrong: int


class SiteRows:
    """A model cut off behind some of its rewritten sites, which are in one graph.

    Args:
        model: A rewritten model.
        sites: Sites of its record, of one scope.
        run: Threads and custom ops.
        native: Run the native library's kernels in place of the ops' standard bodies.
        outputs: Names of outputs of the model to give as well; only for sites in the main graph.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[RewrittenSite],
        run: RunSettings = RunSettings(),
        *,
        native: bool = False,
        outputs: Sequence[str] = (),
    ) -> None:
        # Each opens all of them, under the same names.
        models, found = zip(*(opened(model, site) for site in sites), strict=True)
        model = next((inlined for inlined in models if inlined is not model), model)
        self._sites: tuple[RewrittenSite, ...] = found
        self._outputs = tuple(outputs)
        scope = self._sites[0].scope
        taps = (name for site in self._sites for name in (*site.inputs, site.output))
        self._names = list(dict.fromkeys((*outputs, *taps)))  # key and value may be one, masks are shared
        flow = Dataflow(model)
        values = flow.values_in(scope)
        self._session = Session(probe(model, self._names, scope), run, native=native, frugal=True)
        self._loops = {name: flow.loops_around(values[name]) for name in self._names}
        self._alone = {
            site.id: _AttentionAlone(model, site, run, native) for site in self._sites if site.form is Form.ATTENTION
        }
        self.nbytes = 0
        """Bytes of the largest run so far."""

    def run(self, sample: Sample) -> tuple[dict[str, Array], dict[str, Iterator[Rows]]]:
        """One run: the outputs that were asked for, and the rows of each site.

        The rows are computed as they are asked for: those of each iteration of a loop, none where a branch of an If
        was not taken.
        """
        found = dict(zip(self._names, self._session.run(sample).values(), strict=True))
        self.nbytes = max(self.nbytes, sum(array.nbytes for array in found.values()))
        return {name: found[name] for name in self._outputs}, {s.id: self._rows(s, found) for s in self._sites}

    def _rows(self, site: RewrittenSite, found: dict[str, Array]) -> Iterator[Rows]:
        names = (*site.inputs, site.output)
        loops = {name: self._loops[name] for name in names}
        for arrays in _iterations({name: found[name] for name in names}, loops):
            inputs, output = [arrays[name] for name in site.inputs], arrays[site.output]
            if output.size == 0:
                continue
            alone = self._alone.get(site.id)
            if alone is None:
                yield Rows(inputs[0], output, site.form is Form.SOFTMAX, np.zeros(()), 0)
                continue
            scores, probabilities, error = alone.run(inputs)
            wrong = alone.wrong_contexts(inputs[2], output, scores, probabilities, error)
            yield Rows(scores, probabilities, True, error, wrong)


def _iterations(arrays: dict[str, Array], loops: Mapping[str, int]) -> Iterator[dict[str, Array]]:
    """The values of each iteration, where what is inside of loops has an axis of iterations for each of them."""
    deepest = max(loops.values())
    if deepest == 0:
        yield arrays
        return
    inside = [name for name, depth in loops.items() if depth == deepest]
    outer = {name: min(depth, deepest - 1) for name, depth in loops.items()}
    for index in range(len(arrays[inside[0]])):
        yield from _iterations({**arrays, **{name: arrays[name][index] for name in inside}}, outer)


class _AttentionAlone:
    """One attention op of a model, taken out of it."""

    def __init__(self, model: ir.Model, site: RewrittenSite, run: RunSettings, native: bool) -> None:
        output = Dataflow(model).values_in(site.scope).get(site.output)
        node = None if output is None else output.producer()
        if node is None or node.op_identifier() not in model.functions:
            raise InvalidModel(f"site {site.id!r}: the op that the model's record names is not there")
        self._scheme = site.scheme
        self._scale = float(node.attributes["scale"].as_tensor().numpy()[0])
        self._q_perm, self._k_perm, self._v_perm, self._out_perm = (
            tuple(node.attributes[name].as_ints()) for name in ("q_perm", "k_perm", "v_perm", "out_perm")
        )
        self._zeroes_masked_rows = bool(np.isfinite(node.attributes["row_max_floor"].as_tensor().numpy()[0]))
        self._int16_products = native and bool(node.attributes["qk"].as_int())
        self._session = Session(self._model(node, model), run, native=native)

    def run(self, inputs: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Scores in float64, the probabilities that the op makes of them, and how far its own scores may be off.

        Args:
            inputs: query, key, value and mask as they enter the op.
        """
        query, key, _, mask = inputs
        q, k = query.transpose(self._q_perm).astype(np.float64), key.transpose(self._k_perm).astype(np.float64)
        eye = np.eye(k.shape[-1], dtype=np.float32).reshape((1,) * (q.ndim - 2) + (k.shape[-1],) * 2)
        sample = dict(zip(_INPUTS, (query, key, eye, mask), strict=True))
        (probabilities,) = self._session.run(sample).values()
        scores = q @ k * self._scale + mask
        # Rounding of each of D products and sums, and of the sum with the mask; of a score and of the row's maximum.
        error = _EPS * ((q.shape[-1] / 2 + 2) * (np.abs(q) @ np.abs(k)) * abs(self._scale) + np.abs(scores))
        if self._int16_products:
            # A row of 16-bit integers is off by half of its largest magnitude / 32767 in each of its elements.
            q_step, k_step = np.abs(q).max(-1, keepdims=True) / 65534, np.abs(k).max(-2, keepdims=True) / 65534
            error = error + abs(self._scale) * (
                q_step * np.abs(k).sum(-2, keepdims=True) + np.abs(q).sum(-1, keepdims=True) * k_step
            )
        error = np.where(np.isfinite(error), error, 0.0)
        # What masked keys are off by, whose scores are large, moves neither the row's maximum nor its sum.
        counts = scores + error >= (scores - error).max(-1, keepdims=True) - UNDERFLOW_NATS
        of_row = np.where(counts, error, 0.0).max(-1, keepdims=True, initial=0.0)
        return scores, self._with_masked_rows(scores, probabilities), error + of_row

    def wrong_contexts(self, value: Array, context: Array, scores: Array, probabilities: Array, error: Array) -> int:
        """Number of elements of the context that are not the product of the probabilities and V."""
        p, v = np.nan_to_num(probabilities.astype(np.float64)), value.transpose(self._v_perm).astype(np.float64)
        magnitude = np.abs(v)
        # A sum over L_k keys is rounded L_k times, half an ULP each at most.
        rounding = LEVEL_TOLERANCE + _EPS * p.shape[-1] / 2
        flips = self._flips(scores, p, error)
        moved = rounding + flips.sum(-1, keepdims=True)  # by normalization, a flip moves the rest of the row
        allowed = moved * (np.abs(p) @ magnitude) + flips @ magnitude + np.finfo(np.float32).tiny
        if any(one.bits is None or one.normalize is not Normalize.UNIT for one in schemes_of(self._scheme)):
            allowed += (np.abs(p) * error) @ magnitude  # values follow the scores, not only their codes
        if (
            schemes_of(self._scheme)[0].pruned is Pruned.MEAN
        ):  # what a key gives to the pruned is spread over the sample
            stride = numerics.sample_stride(p.shape[-1])
            allowed += flips.sum(-1, keepdims=True) * magnitude[..., ::stride, :].max(-2, keepdims=True)
        return int((np.abs(context - (p @ v).transpose(self._out_perm)) > allowed.transpose(self._out_perm)).sum())

    def _flips(self, scores: Array, probabilities: Array, error: Array) -> Array:
        """How much each probability may change because the model multiplied in another order than the op alone did.

        Next to an edge the code may be another one, which moves the value by one level.
        """
        scores, error = np.broadcast_arrays(scores, error)
        return for_heads(self._scheme, _flips, scores, probabilities, error)

    def _with_masked_rows(self, scores: Array, probabilities: Array) -> Array:
        """The probabilities, with NaN for fully masked rows that the op zeroes as the original's guard did."""
        if not self._zeroes_masked_rows:
            return probabilities
        masked = np.isneginf(scores).all(axis=-1, keepdims=True)
        zeroed = masked & (probabilities == 0.0).all(axis=-1, keepdims=True)
        return np.where(zeroed, np.nan, probabilities)

    def _model(self, node: ir.Node, model: ir.Model) -> ir.Model:
        inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in _INPUTS]
        identity = tuple(range(len(self._q_perm)))
        attributes = {**node.attributes, "v_perm": ir.AttrInt64s("v_perm", identity)}
        attributes["out_perm"] = ir.AttrInt64s("out_perm", identity)
        alone = ir.Node(DOMAIN, node.op_type, inputs, tuple(attributes.values()))
        alone.outputs[0].name = "context"
        alone.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        imports = {"": opset(model), DOMAIN: DOMAIN_VERSION}
        graph = ir.Graph(inputs, alone.outputs, nodes=[alone], opset_imports=imports, name="attention")
        return ir.Model(graph, ir_version=model.ir_version, functions=[model.functions[node.op_identifier()].clone()])


def _flips(scores: Array, probabilities: Array, error: Array, scheme: QuantScheme) -> Array:
    x = numerics.relative_scores(scores) if scheme.reference is Reference.ROW_MAX else numerics.softmax(scores)
    near = numerics.near_edge(x, scheme, error)
    if scheme.pruned is Pruned.MEAN:
        width = np.minimum(numerics.EDGE_ULPS * _EPS + error, UNDERFLOW_NATS)  # of masked keys it is beyond all
        low, high = (numerics.continued_levels(x * np.exp(sign * width), scheme) for sign in (-1.0, 1.0))
        near |= (low != high) & (scheme.bits is not None)
    step = 0.0 if scheme.bits is None else scheme.step
    level = x * np.exp(step) if scheme.spacing is not Spacing.LINEAR else x + step
    scale = probabilities.max(-1, keepdims=True) / np.maximum(x.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(scale * np.where(near, level, 0.0))
