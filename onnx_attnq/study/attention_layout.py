"""Bring what a run returns of an attention into one layout: probabilities (B, H, L_q, L_k), V (B, H, L_k, D).

Exports have batch and heads in one axis, two or more, V on either side of the product, and the keys on
either axis. Which values are masked or padding is decided here, too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_attnq.find import Product
from onnx_attnq.inputs import Sample

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]

CONTEXT_TOLERANCE: Final = 2e-2
"""How far, relatively, P·V may be from the context that the model computed: float16 products of 4096 keys.

A wrong layout is off by about 1."""

_SMALLEST: Final = float(np.finfo(np.float32).tiny)


def batch_of(sample: Sample) -> int:
    """The number of rows of a sample's batch: the first dim of its first array that has one."""
    return next((array.shape[0] for array in sample.values() if array.ndim), 1)


def fold_probabilities(array: Array, axis: int, batch: int) -> Array:
    """Probabilities as (B, H, L_q, L_k).

    Args:
        array: (..., L_q, L_k), or (..., L_k, L_q) when ``axis`` is -2.
        axis: The axis of the keys, from the end.
        batch: Rows of the sample; tells (B·H, L_q, L_k) from a batch of single heads.

    >>> fold_probabilities(np.zeros((6, 4, 5)), -1, batch=2).shape
    (2, 3, 4, 5)
    """
    p = np.moveaxis(array, axis, -1)
    *outer, queries, keys = (1,) * (2 - p.ndim) + p.shape
    if len(outer) >= 2:
        return p.reshape(outer[0], math.prod(outer[1:]), queries, keys)
    rows = math.prod(outer)
    first = batch if batch > 0 and rows % batch == 0 else 1
    return p.reshape(first, rows // first, queries, keys)


def heads_first(probabilities: Array, sample: Sample) -> Array:
    """(B, H, L_q, L_k) also where a multi-query export has (B, L_q, H, L_k).

    Only the inputs tell: their second axis is the number of tokens.

    >>> heads_first(np.zeros((2, 5, 3, 5)), {"input_ids": np.zeros((2, 5))}).shape
    (2, 3, 5, 5)
    """
    lengths = {array.shape[1] for array in sample.values() if array.ndim == 2}
    turned = probabilities.shape[1] in lengths and probabilities.shape[2] not in lengths
    return np.swapaxes(probabilities, 1, 2) if turned else probabilities


def fold_value(array: Array, product: Product, probabilities: Array) -> Array | None:
    """V as (B, H, L_k, D), to go with folded probabilities; None when it cannot be told how.

    Args:
        array: The operand that the probabilities are multiplied with.
        product: That product.
        probabilities: The same run's probabilities, (B, H, L_q, L_k).
    """
    if array.dtype.kind == "V" or array.dtype.kind not in "f" or array.ndim < 2:
        return None
    if product.node.op_type == "Einsum":
        terms = _Einsum.of(product)
        if terms is None:
            return None
        array = terms.turn_value(array)
    elif product.is_left == bool(_flag(product.node, "transB" if product.is_left else "transA")):
        array = np.swapaxes(array, -1, -2)  # V is on the left, or is transposed by its product
    batch, heads, _, keys = probabilities.shape
    if array.shape[-2] != keys:
        return None
    return _outer(array, batch, heads)


def fold_context(array: Array, product: Product, batch: int, heads: int) -> Array | None:
    """The product's result as (B, H, L_q, D); None when it cannot be told how."""
    if array.dtype.kind != "f" or array.ndim < 2:
        return None
    if product.node.op_type == "Einsum":
        terms = _Einsum.of(product)
        return None if terms is None else _outer(terms.turn_context(array), batch, heads)
    return _outer(array if product.is_left else np.swapaxes(array, -1, -2), batch, heads)


def agrees(probabilities: Array, value: Array, context: Array, valid: BoolArray) -> bool:
    """Whether P·V is the context that the model computed, so that nothing lies between them but layout.

    Only rows with valid positions count: some models set the rows of padding to 0 after the softmax.
    """
    p = np.where(valid, np.nan_to_num(probabilities.astype(np.float32)), np.float32(0.0))
    expected = p @ np.broadcast_to(value.astype(np.float32), (*p.shape[:2], *value.shape[-2:]))
    if expected.shape != context.shape:
        return False
    context = np.nan_to_num(context.astype(np.float32)) * valid.any(axis=-1, keepdims=True)
    distance = float(np.linalg.norm(expected - context))
    return distance <= CONTEXT_TOLERANCE * float(np.linalg.norm(context))


def valid_positions(probabilities: Array, sample: Sample) -> BoolArray:
    """Which probabilities belong to tokens that a query may see, (B, H, L_q, L_k).

    A position was masked when its probability is below every normal float32 in every head: masks add -100 at least,
    which leaves less than 4e-44. A sharp head has such values without a mask, but not all heads at one position.
    Queries are padding where a mask input of their length says so; the keys of padding are masked already.
    A NaN counts as valid, so that it is not overlooked.

    >>> p = np.array([[[[1.0, 0.0], [0.5, 0.5]]]])
    >>> valid_positions(p, {"attention_mask": np.array([[1, 0]])}).tolist()
    [[[[True, False], [False, False]]]]
    """
    valid = ~(probabilities <= _SMALLEST).all(axis=1, keepdims=True)
    valid = np.broadcast_to(valid, probabilities.shape).copy()
    for mask in query_masks(sample, *(probabilities.shape[i] for i in (0, 2, 3))):
        valid &= mask[:, None, :, None]
    return np.asarray(valid)


def query_masks(sample: Sample, batch: int, queries: int, keys: int) -> list[BoolArray]:
    """The mask inputs that can be about the queries, each (B, L_q), true for tokens.

    A mask is a two-dimensional input of 0 and 1 with ``mask`` in its name; it is about the queries when it has their
    number, or, where there are past keys, the number of the keys, of which the queries are the last. What
    begins with ``encoder`` is about the keys of cross-attention. Where two masks fit, a query is a token in both.
    """
    masks = []
    has_past = any("past" in name for name in sample)
    for name, array in sample.items():
        is_mask = "mask" in name.lower() and not name.lower().startswith("encoder") and array.ndim == 2
        if not is_mask or array.shape[0] != batch or not np.isin(array.astype(np.float64), (0.0, 1.0)).all():
            continue
        if array.shape[1] == queries:
            masks.append(array.astype(np.bool_))
        elif has_past and array.shape[1] == keys > queries:
            masks.append(array[:, keys - queries :].astype(np.bool_))
    return masks


def _outer(array: Array, batch: int, heads: int) -> Array | None:
    """The axes before the last two made (B, H): by reshaping, or by repeating what is shared between heads."""
    outer, matrix = array.shape[:-2], array.shape[-2:]
    if math.prod(outer) == batch * heads:
        return array.reshape(batch, heads, *matrix)
    if len(outer) >= 2 and outer[0] == batch and heads % math.prod(outer[1:]) == 0:
        # Grouped queries: (B, H_kv, 1, L_k, D) serves (B, H_kv, G, L_q, L_k).
        shared = math.prod(outer[1:])
        return np.repeat(array.reshape(batch, shared, *matrix), heads // shared, axis=1)
    return None


def _flag(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


@dataclasses.dataclass(frozen=True)
class _Einsum:
    """The letters of a product P·V, and where its operands have them."""

    value: str
    context: str
    outer: str
    query: str
    key: str
    feature: str

    @classmethod
    def of(cls, product: Product) -> _Einsum | None:
        """None for an equation that is no such product."""
        equation = product.node.attributes["equation"].as_string().replace(" ", "")
        operands, _, context = equation.partition("->")
        terms = operands.split(",")
        if len(terms) != 2 or "." in equation:
            return None
        p, value = terms if product.is_left else terms[::-1]
        key = p[product.with_axis.axis]
        *outer, query = list(p.replace(key, ""))  # the probabilities are (..., L_q, L_k) once their keys are last
        feature = "".join(letter for letter in value if letter not in p)
        found = cls(value, context, "".join(outer), query, key, feature)
        fits = len(feature) == 1 and query not in value and sorted(found.outer + query + feature) == sorted(context)
        return found if fits else None

    def turn_value(self, array: Array) -> Array:
        """V as (outer axes that it has, L_k, D)."""
        outer = "".join(letter for letter in self.outer if letter in self.value)
        return np.transpose(array, [self.value.index(letter) for letter in outer + self.key + self.feature])

    def turn_context(self, array: Array) -> Array:
        """The context as (outer axes, L_q, D)."""
        return np.transpose(array, [self.context.index(letter) for letter in self.outer + self.query + self.feature])


__all__ = [
    "CONTEXT_TOLERANCE",
    "agrees",
    "batch_of",
    "fold_context",
    "fold_probabilities",
    "fold_value",
    "heads_first",
    "query_masks",
    "valid_positions",
]
