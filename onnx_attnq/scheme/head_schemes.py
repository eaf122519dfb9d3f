"""One scheme for each head of a site. They are of one family, since one op serves all heads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.scheme.quant_scheme import Pruned, QuantScheme

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class HeadSchemes:
    """What each head of a site gets: schemes that differ in bits and threshold only.

    Attributes:
        heads: A scheme for each head, in the order of the heads.

    Raises:
        InvalidScheme: There is none, or one differs from the first in more than bits and threshold.

    >>> from onnx_attnq.scheme import preset
    >>> both = HeadSchemes((preset("row-log", bits=2), preset("row-log", threshold=0.1)))
    >>> both.name, HeadSchemes.from_json(both.to_json()) == both
    ('row-log by head', True)
    """

    heads: tuple[QuantScheme, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        if not self.heads:
            raise InvalidScheme("a scheme for each head needs at least one")
        for head, scheme in enumerate(self.heads):
            for field in ("reference", "normalize", "spacing", "rounding", "pruned"):
                if getattr(scheme, field) != getattr(self.heads[0], field):
                    raise InvalidScheme(
                        f"heads of one site may differ in bits and threshold only: {field} of head {head} is "
                        f"{getattr(scheme, field)}, of head 0 {getattr(self.heads[0], field)}"
                    )

    @property
    def name(self) -> str:
        """A label for people."""
        names = dict.fromkeys(scheme.name for scheme in self.heads)
        return f"{'/'.join(names)} by head"

    def to_json(self) -> dict[str, Any]:
        """``heads``: the schemes as JSON values."""
        return {"heads": [scheme.to_json() for scheme in self.heads]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadSchemes:
        """The inverse of `to_json`."""
        if not isinstance(data, Mapping) or set(data) != {"heads"} or not isinstance(data["heads"], list):
            raise InvalidScheme(f"schemes of heads must be a JSON object with a list 'heads', not {data!r}")
        return cls(tuple(QuantScheme.from_json(scheme) for scheme in data["heads"]))


@functools.cache
def left_alone(family: QuantScheme) -> QuantScheme:
    """The scheme of a head that is to stay as it is in a site whose other heads are rewritten, by one op for all.

    It has 8 bits: a value above the threshold moves by 2 % at most, by 5 % where pruned values share what they summed
    to, whose steps have to be wider. Without bits next to nothing changes.

    Args:
        family: Of the other heads.

    >>> from onnx_attnq.scheme import preset
    >>> left = left_alone(preset("row-log-mean"))
    >>> left.bits, round(left.step, 3), round(left_alone(preset("row-log")).step, 3)
    (8, 0.1, 0.036)
    """
    shares = family.pruned is Pruned.MEAN
    return dataclasses.replace(
        family,
        bits=None if family.bits is None else LEFT_BITS,
        threshold=LEFT_THRESHOLD_SHARED if shares else LEFT_THRESHOLD,
    )


LEFT_BITS: Final = 8
LEFT_THRESHOLD: Final = 1e-4
LEFT_THRESHOLD_SHARED: Final = 1e-11
"""The highest at which 8 bits have the steps that ``pruned`` mean needs."""

SiteScheme = QuantScheme | HeadSchemes
"""What a site gets: one scheme, or one for each of its heads."""


def schemes_of(scheme: SiteScheme) -> tuple[QuantScheme, ...]:
    """The schemes of the heads, or the one of them all."""
    return scheme.heads if isinstance(scheme, HeadSchemes) else (scheme,)


def site_scheme_from_json(data: Mapping[str, Any]) -> SiteScheme:
    """The inverse of `to_json` of either."""
    by_head = isinstance(data, Mapping) and "heads" in data
    return HeadSchemes.from_json(data) if by_head else QuantScheme.from_json(data)


def split_heads(scheme: SiteScheme, *arrays: npt.ArrayLike) -> list[tuple[QuantScheme, tuple[Array, ...]]]:
    """Each head's scheme with its part of arrays (B, ..heads.., L_q, L_k), or (H, L_q, L_k), of one shape.

    Without schemes by head it is everything at once. All axes between the first and the last two are of heads.

    >>> from onnx_attnq.scheme import preset
    >>> parts = split_heads(HeadSchemes((preset(bits=2), preset(bits=3))), np.zeros((4, 2, 5, 7)))
    >>> [(scheme.bits, array.shape) for scheme, (array,) in parts]
    [(2, (4, 5, 7)), (3, (4, 5, 7))]

    Raises:
        InvalidScheme: The arrays have another number of heads.
    """
    given = [np.asarray(array) for array in arrays]
    if isinstance(scheme, QuantScheme):
        return [(scheme, tuple(given))]
    folded = [array.reshape(_folded(array.shape, len(scheme.heads))) for array in given]
    return [(one, tuple(array[:, head] for array in folded)) for head, one in enumerate(scheme.heads)]


def for_heads(scheme: SiteScheme, compute: Callable[..., Array], *arrays: npt.ArrayLike) -> Array:
    """The result of compute(*arrays, scheme), which has the arrays' shape, with each head's scheme for its part.

    >>> from onnx_attnq.scheme import numerics, preset
    >>> both = HeadSchemes((preset("row-log", bits=1, threshold=0.5), preset("row-log", bits=1, threshold=0.1)))
    >>> for_heads(both, numerics.quantize_scores, [[[0.0, -1.0]], [[0.0, -1.0]]]).round(3).tolist()
    [[[1.0, 0.0]], [[0.5, 0.5]]]
    """
    if isinstance(scheme, QuantScheme):
        return np.asarray(compute(*arrays, scheme))
    parts = [compute(*of_head, one) for one, of_head in split_heads(scheme, *arrays)]
    return np.stack(parts, axis=1).reshape(np.shape(arrays[0]))


def table_shape(scheme: HeadSchemes, scores: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape of a table with a number for each head, which broadcasts to scores of a shape; None is an unknown size.

    A single axis of heads whose size is unknown is taken to be as long as the schemes; onnxruntime refuses to run the
    model where it is not.

    >>> from onnx_attnq.scheme import preset
    >>> table_shape(HeadSchemes((preset(),) * 6), (None, 3, 2, None, None))
    (3, 2, 1, 1)
    >>> table_shape(HeadSchemes((preset(),) * 6), (None, None, None, None))
    (6, 1, 1)

    Raises:
        InvalidScheme: The scores have another number of heads, or it is unknown.
    """
    axes = scores[1:-2] if len(scores) > 3 else scores[:-2]
    sizes = [len(scheme.heads)] if len(axes) == 1 and axes[0] is None else [size for size in axes if size is not None]
    if len(sizes) != len(axes) or not axes:
        raise InvalidScheme("a scheme for each head needs a known number of heads, which the model does not tell")
    _folded((1, *sizes, 1, 1), len(scheme.heads))
    return (*sizes, 1, 1)


def _folded(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    outer = shape[:1] if len(shape) > 3 else (1,)
    there = int(np.prod(shape[len(outer) if len(shape) > 3 else 0 : -2]))
    if there != heads:
        raise InvalidScheme(f"there are schemes for {heads} heads, and the site has {there}")
    return (*outer, heads, *shape[-2:])


__all__ = [
    "HeadSchemes",
    "SiteScheme",
    "for_heads",
    "left_alone",
    "schemes_of",
    "site_scheme_from_json",
    "split_heads",
    "table_shape",
]
