"""One attention op of a model, taken out of it: its probabilities are its context, with an identity matrix for V."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.errors import InvalidModel
from onnx_attnq.model import opset
from onnx_attnq.rewriting import DOMAIN, DOMAIN_VERSION, RewrittenSite
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import Normalize, Pruned, QuantScheme, Reference, Spacing, for_heads, numerics, schemes_of
from onnx_attnq.verification.codes import LEVEL_TOLERANCE, UNDERFLOW_NATS
from onnx_attnq.verification.row_blocks import Place, blocks, part

_INPUTS = ("query", "key", "value", "mask")
_EPS = float(np.finfo(np.float32).eps)

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class AttentionRows:
    """Some rows of an attention.

    Attributes:
        place: Which rows.
        shape: Shape of the probabilities, without the keys.
        scores: What the probabilities are made of, float64.
        probabilities: What the op makes of them, float32.
        error: How far the op's own scores may be from these.
        tail_error: How far those may be that it takes for what the pruned keys sum to.
        wrong: Elements of the context that are not the product of the probabilities and V.
    """

    place: Place
    shape: tuple[int, ...]
    scores: Array
    probabilities: Array
    error: Array
    tail_error: Array
    wrong: int


class AttentionAlone:
    """One attention op of a model, taken out of it."""

    def __init__(
        self, model: ir.Model, site: RewrittenSite, values: Mapping[str, ir.Value], sessions: AloneSessions
    ) -> None:
        """Take the op of a site out of a model.

        Args:
            model: Has the op's function.
            site: Of the model's record.
            values: Those of the site's graph, by name.
            sessions: Of all sites of the model.
        """
        output = values.get(site.output)
        node = None if output is None else output.producer()
        if node is None or node.op_identifier() not in model.functions:
            raise InvalidModel(f"site {site.id!r}: the op that the model's record names is not there")
        self._scheme = site.scheme
        self._scale = float(node.attributes["scale"].as_tensor().numpy()[0])
        self._q_perm, self._k_perm, self._v_perm, self._out_perm = (
            tuple(node.attributes[name].as_ints()) for name in ("q_perm", "k_perm", "v_perm", "out_perm")
        )
        capped = node.attributes.get("softcap")
        self._softcap = 0.0 if capped is None else float(capped.as_tensor().numpy()[0])
        self._zeroes_masked_rows = bool(np.isfinite(node.attributes["row_max_floor"].as_tensor().numpy()[0]))
        self._int16_products = sessions.native and bool(node.attributes["qk"].as_int())
        shares = schemes_of(site.scheme)[0].pruned is Pruned.MEAN
        self._rough_tail = sessions.native and shares and not self._int16_products
        self._session = sessions.of(_alone(node, model))

    def rows(self, inputs: Sequence[Array], context: Array) -> Iterator[AttentionRows]:
        """What the op makes of its inputs, a few rows at a time.

        Args:
            inputs: query, key, value and mask as they enter the op.
            context: What left it in the model.
        """
        q, k, v = (
            array.transpose(perm)
            for array, perm in zip(inputs, (self._q_perm, self._k_perm, self._v_perm), strict=False)
        )
        mask, c = inputs[3], context.transpose(_inverse(self._out_perm))
        shape = np.broadcast_shapes(
            (*np.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-1]), mask.shape
        )
        eye = np.eye(k.shape[-1], dtype=np.float32).reshape((1,) * (q.ndim - 2) + (k.shape[-1],) * 2)
        for place in blocks(shape, self._scheme):
            of_q, of_k, of_mask = part(q, place), part(k, place, queries=False), part(mask, place)
            back = of_q.transpose(_inverse(self._q_perm)), of_k.transpose(_inverse(self._k_perm))
            arrays = (np.ascontiguousarray(array) for array in (*back, eye, of_mask))
            (probabilities,) = self._session.run(dict(zip(_INPUTS, arrays, strict=True))).values()
            scores, error, tail_error = self._scores(_wide(of_q), _wide(of_k), of_mask)
            values, context_there = part(v, place, queries=False), part(c, place)
            wrong = self._wrong_contexts(values, context_there, scores, probabilities, error, tail_error)
            made = self._with_masked_rows(scores, probabilities)
            yield AttentionRows(place, shape[:-1], scores, made, error, tail_error, wrong)

    def _scores(self, q: Array, k: Array, mask: Array) -> tuple[Array, Array, Array]:
        """Scores in float64, how far the op's own may be off, and how far those of the pruned."""
        product = q @ k * self._scale
        if self._softcap:
            product = self._softcap * np.tanh(product / self._softcap)  # which brings errors no further apart
        scores = product + mask
        # Rounding of each of D products and sums, and of the sum with the mask; of a score and of the row's maximum.
        of_product = (q.shape[-1] / 2 + 2) * (np.abs(q) @ np.abs(k)) * abs(self._scale)
        error = _EPS * (of_product + np.abs(scores) + 4 * self._softcap)
        if self._int16_products:
            error = error + _rounded_products(q, k, self._scale)
        tail_error = error = _with_maximum(scores, error)
        if self._rough_tail:  # from the first look at scores, docs/native.md; the second is at what may be kept
            rough = np.maximum(_rounded_products(q, k, self._scale), _products_of_parts(q, k, self._scale))
            tail_error = error + _with_maximum(scores, rough)
        return scores, error, tail_error

    def _wrong_contexts(
        self, value: Array, context: Array, scores: Array, probabilities: Array, error: Array, tail_error: Array
    ) -> int:
        """Number of elements of the context that are not the product of the probabilities and V."""
        p, v = np.nan_to_num(probabilities.astype(np.float64)), _wide(value)
        magnitude = np.abs(v)
        # A sum over L_k keys is rounded L_k times, half an ULP each at most.
        rounding = LEVEL_TOLERANCE + _EPS * p.shape[-1] / 2
        size, product = np.abs(p) @ magnitude, p @ v
        off = np.abs(context - product)
        # What is NaN without a NaN in what it is made of; a NaN is never more than what is allowed.
        off[np.isnan(context) & np.isfinite(product) & ~np.isnan(probabilities).any(-1, keepdims=True)] = np.inf
        allowed = rounding * size + np.finfo(np.float32).tiny
        rest = ~(off <= allowed).all(-1, keepdims=True)  # of most rows no code differs
        if not rest.any():
            return 0
        flips = self._flips(scores, p, error, tail_error, rest)
        # By normalization, a flip moves the rest of the row.
        allowed += flips.sum(-1, keepdims=True) * size + flips @ magnitude
        if any(one.bits is None or one.normalize is not Normalize.UNIT for one in schemes_of(self._scheme)):
            allowed += (np.abs(p) * error) @ magnitude  # values follow the scores, not only their codes
        if schemes_of(self._scheme)[0].pruned is Pruned.MEAN:  # what a pruned key gives is spread over the sample
            stride = numerics.sample_stride(p.shape[-1])
            allowed += flips.sum(-1, keepdims=True) * magnitude[..., ::stride, :].max(-2, keepdims=True)
        return int((off > allowed).sum())

    def _flips(self, scores: Array, probabilities: Array, error: Array, tail_error: Array, rows: Array) -> Array:
        """How much each probability of some rows may change because the model multiplied in another order than the op
        alone did; 0 in the other rows.

        Next to an edge the code may be another one, which moves the value by one level.
        """
        arrays = np.broadcast_arrays(scores, probabilities, error, tail_error, rows)
        return for_heads(self._scheme, _flips, *arrays)

    def _with_masked_rows(self, scores: Array, probabilities: Array) -> Array:
        """The probabilities, with NaN for fully masked rows that the op zeroes as the original's guard did."""
        if not self._zeroes_masked_rows:
            return probabilities
        masked = np.isneginf(scores).all(axis=-1, keepdims=True)
        zeroed = masked & (probabilities == 0.0).all(axis=-1, keepdims=True)
        return np.where(zeroed, np.nan, probabilities)


class AloneSessions:
    """Sessions of ops alone, one for all sites whose ops are the same.

    Args:
        run: Threads and custom ops.
        native: Run the native library's kernels in place of the ops' standard bodies.
    """

    def __init__(self, run: RunSettings, native: bool) -> None:
        self.native = native
        self._run = run
        self._sessions: dict[bytes, Session] = {}

    def of(self, model: ir.Model) -> Session:
        """The session of a model."""
        key = ir.to_proto(model).SerializeToString(deterministic=True)
        if key not in self._sessions:
            self._sessions[key] = Session(model, self._run, native=self.native, frugal=True)
        return self._sessions[key]


def _alone(node: ir.Node, model: ir.Model) -> ir.Model:
    """A model of one attention op, which leaves the order of the axes of V and of the context as it is."""
    inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in _INPUTS]
    identity = tuple(range(len(node.attributes["q_perm"].as_ints())))
    attributes = {**node.attributes, "v_perm": ir.AttrInt64s("v_perm", identity)}
    attributes["out_perm"] = ir.AttrInt64s("out_perm", identity)
    alone = ir.Node(DOMAIN, node.op_type, inputs, tuple(attributes.values()))
    alone.outputs[0].name = "context"
    alone.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    imports = {"": opset(model), DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph(inputs, alone.outputs, nodes=[alone], opset_imports=imports, name="attention")
    return ir.Model(graph, ir_version=model.ir_version, functions=[model.functions[node.op_identifier()].clone()])


def _wide(array: Array) -> Array:
    """In float64, and in the order that products are fast for."""
    return array.astype(np.float64, order="C")


def _inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(perm))


def _rounded_products(q: Array, k: Array, scale: float) -> Array:
    """How far products of 16-bit integers are off: by half of a row's largest magnitude / 32767 in each element."""
    q_step, k_step = np.abs(q).max(-1, keepdims=True) / 65534, np.abs(k).max(-2, keepdims=True) / 65534
    off = q_step * np.abs(k).sum(-2, keepdims=True) + np.abs(q).sum(-1, keepdims=True) * k_step
    return np.asarray(off * abs(scale))


def _products_of_parts(q: Array, k: Array, scale: float) -> Array:
    """How far products of bfloat16 parts are off, which leave out up to 2^-14 of |q| |k|."""
    norms = np.linalg.norm(q, axis=-1, keepdims=True) * np.linalg.norm(k, axis=-2, keepdims=True)
    return np.asarray(norms * abs(scale) * 2**-14)


def _with_maximum(scores: Array, error: Array) -> Array:
    """What a score is off by, and its row's maximum."""
    error = np.where(np.isfinite(error), error, 0.0)
    # What masked keys are off by, whose scores are large, moves neither the row's maximum nor its sum.
    counts = scores + error >= (scores - error).max(-1, keepdims=True) - UNDERFLOW_NATS
    return np.asarray(error + np.where(counts, error, 0.0).max(-1, keepdims=True, initial=0.0))


def _flips(
    scores: Array, probabilities: Array, error: Array, tail_error: Array, rows: Array, scheme: QuantScheme
) -> Array:
    flips, rows = np.zeros(scores.shape), rows[..., 0]
    scores, probabilities, error, tail_error = (a[rows] for a in (scores, probabilities, error, tail_error))
    x = numerics.relative_scores(scores) if scheme.reference is Reference.ROW_MAX else numerics.softmax(scores)
    near = numerics.near_edge(x, scheme, error)
    if scheme.pruned is Pruned.MEAN:
        width = np.minimum(numerics.EDGE_ULPS * _EPS + tail_error, UNDERFLOW_NATS)  # of masked keys it is beyond all
        low, high = (numerics.continued_levels(x * np.exp(sign * width), scheme) for sign in (-1.0, 1.0))
        near |= (low != high) & (scheme.bits is not None)
    step = 0.0 if scheme.bits is None else scheme.step
    level = x * np.exp(step) if scheme.spacing is not Spacing.LINEAR else x + step
    scale = probabilities.max(-1, keepdims=True) / np.maximum(x.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    flips[rows] = scale * np.where(near, level, 0.0)
    return flips


__all__ = ["AloneSessions", "AttentionAlone", "AttentionRows"]
