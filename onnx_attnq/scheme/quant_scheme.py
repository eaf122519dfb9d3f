"""What a quantization scheme is: seven fields from which every edge and level follows.

A scheme maps a relative attention value x in [0, 1] to one of n + 1 codes, n = 2**bits - 1. The
n edges lie at equal distance ``step`` in the scheme's own scale f (f = ln for ``log`` spacing,
the identity for ``linear``), the lowest at f(threshold), and the n levels lie half a step above
the edges. Rounding decides only how long a step is:

* ``floor`` (Ji et al. 2021, section 5): n whole bins between the threshold and 1;
  step = (f(1) - f(threshold)) / n. The top level is half a step below 1.
* ``nearest``: the top level is 1 itself, so its bin is half as wide;
  step = (f(1) - f(threshold)) / (n - 1/2).

This is why one closed form, and one op, serves every scheme of the literature.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from onnx_attnq.errors import InvalidScheme


class Reference(enum.StrEnum):
    """What a probability is measured against before it is compared with the edges."""

    ABSOLUTE = "absolute"
    """x = p."""
    ROW_MAX = "row-max"
    """x = p / max_j p_j = exp(s - max_j s_j), which needs neither the softmax sum nor the sequence length."""


class Spacing(enum.StrEnum):
    """The scale in which edges and levels are equidistant."""

    LOG = "log"
    LINEAR = "linear"


class Rounding(enum.StrEnum):
    """Where x = 1 lies: on the upper end of the top bin, or on the top level."""

    FLOOR = "floor"
    NEAREST = "nearest"


class Normalize(enum.StrEnum):
    """What a row sums to after quantization."""

    NONE = "none"
    """Whatever comes out (the paper). With ``row-max`` the level is multiplied by the row's maximum."""
    UNIT = "unit"
    """What the softmax summed to, which is 1; zero when every value was pruned."""
    MASS = "mass"
    """What the probabilities that were kept summed to before."""


class Pruned(enum.StrEnum):
    """How pruned values are treated."""

    ZERO = "zero"
    """They are set to zero (the paper)."""
    MEAN = "mean"
    """What they summed to is shared evenly by a sample of the row's keys, as in SparQ attention (arXiv 2312.04985)."""


TAIL_NATS: Final = 25.0
"""How far below x = 1 an execution has to follow the levels of a log scheme for the sum of pruned values.

exp(-25) is 1.4e-11: what lies below, of any row of up to a million keys, is within rounding of the row's sum.
"""

_SMALLEST_STEP: Final = 1e-3
"""Narrower bins would be no wider than a few float32 roundings of a score."""
_SMALLEST_STEP_WITH_TAIL: Final = TAIL_NATS / 255
"""So that the codes that continue below the threshold fit a byte, as a body of standard ops and a kernel need them."""


@dataclasses.dataclass(frozen=True, slots=True)
class QuantScheme:
    """A prune-and-quantize rule for attention probabilities.

    Attributes:
        reference: What p is divided by to give x.
        normalize: What a row sums to afterwards.
        threshold: The lowest edge, on the scale of x: x < threshold becomes 0. In (0, 1); 0 is
            allowed when ``bits`` is None.
        bits: 1 to 8, for 2**bits - 1 non-zero levels; None prunes and keeps the other values.
        spacing: Scale of edges and levels; None exactly when ``bits`` is None.
        rounding: See the module's text; None exactly when ``bits`` is None.
        pruned: How values below the threshold are treated. ``mean`` takes log spacing, or none, a threshold above 0, a
            normalization other than ``mass``, and steps of TAIL_NATS / 255 = 0.098 nats at least.
        name: A label for people, not used in the arithmetic.

    Raises:
        InvalidScheme: A field is out of range, or fields do not go together.

    >>> from onnx_attnq.scheme import preset
    >>> scheme = preset("row-log")
    >>> scheme.levels, scheme.threshold, round(scheme.step, 4), scheme.offset
    (7, 0.01, 0.7085, 6.5)
    >>> QuantScheme.from_json(scheme.to_json()) == scheme
    True
    """

    reference: Reference
    normalize: Normalize
    threshold: float
    bits: int | None = None
    spacing: Spacing | None = None
    rounding: Rounding | None = None
    pruned: Pruned = Pruned.ZERO
    name: str = "custom"

    def __post_init__(self) -> None:
        # Strings, as JSON has them, become enum members.
        object.__setattr__(self, "reference", _member("reference", Reference, self.reference))
        object.__setattr__(self, "normalize", _member("normalize", Normalize, self.normalize))
        object.__setattr__(self, "pruned", _member("pruned", Pruned, self.pruned))
        if self.spacing is not None:
            object.__setattr__(self, "spacing", _member("spacing", Spacing, self.spacing))
        if self.rounding is not None:
            object.__setattr__(self, "rounding", _member("rounding", Rounding, self.rounding))
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise InvalidScheme(f"threshold must be a number, not {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))
        if not isinstance(self.name, str) or not self.name:
            raise InvalidScheme(f"name must be a non-empty string, not {self.name!r}")
        if self.bits is None:
            if self.spacing is not None or self.rounding is not None:
                raise InvalidScheme("spacing and rounding need bits; a prune-only scheme has none of the three")
            if not 0.0 <= self.threshold < 1.0:
                raise InvalidScheme(f"threshold must be in [0, 1), not {self.threshold!r}")
            self._check_mean()
            return
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise InvalidScheme(f"bits must be a whole number from 1 to 8, not {self.bits!r}")
        if self.spacing is None or self.rounding is None:
            raise InvalidScheme("a scheme with bits needs spacing and rounding")
        if not 0.0 < self.threshold < 1.0:
            raise InvalidScheme(f"threshold must be in (0, 1), not {self.threshold!r}")
        if self.step < _SMALLEST_STEP:
            raise InvalidScheme(f"threshold {self.threshold!r} leaves {self.levels} levels no room below 1")
        self._check_mean()

    def _check_mean(self) -> None:
        if self.pruned is Pruned.ZERO:
            return
        if self.threshold == 0.0:
            raise InvalidScheme("pruned values cannot be their mean where threshold 0 prunes none; use pruned zero")
        if self.normalize is Normalize.MASS:
            raise InvalidScheme("normalize mass gives pruned mass up, which pruned mean keeps; use normalize unit")
        if self.spacing is Spacing.LINEAR:
            raise InvalidScheme("pruned mean needs log spacing: linear levels do not continue below the threshold")
        if self.bits is not None and self.step < _SMALLEST_STEP_WITH_TAIL:
            raise InvalidScheme(
                f"pruned mean needs steps of {_SMALLEST_STEP_WITH_TAIL:.3f} nats or more; {self.bits} bits above "
                f"threshold {self.threshold:g} have {self.step:.3f}: take fewer bits, a lower threshold, or pruned zero"
            )

    @property
    def levels(self) -> int:
        """The number n of non-zero levels, 2**bits - 1. Only for a scheme with bits."""
        return (1 << self._bits()) - 1

    @property
    def step(self) -> float:
        """The distance between neighbouring edges, in the scheme's own scale (nats for log)."""
        bins = self.levels - (0.5 if self.rounding is Rounding.NEAREST else 0.0)
        return (self.scale(1.0) - self.scale(self.threshold)) / bins

    @property
    def offset(self) -> float:
        """-f(threshold) / step; floor(f(x) / step + offset) is the code less one."""
        self._bits()
        if self.spacing is Spacing.LOG:
            return self.levels - (0.5 if self.rounding is Rounding.NEAREST else 0.0)
        return -self.threshold / self.step

    def scale(self, x: float) -> float:
        """f(x): the natural logarithm for ``log`` spacing, x itself for ``linear``."""
        return math.log(x) if self.spacing is Spacing.LOG else x

    @property
    def is_identity(self) -> bool:
        """True when the scheme changes no value."""
        return self.bits is None and self.threshold == 0.0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; enum members become their strings."""
        return {
            field.name: str(value) if isinstance(value := getattr(self, field.name), enum.StrEnum) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantScheme:
        """The inverse of `to_json`, exact for every field; unknown or missing fields are errors."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping):
            raise InvalidScheme(f"a scheme must be a JSON object, not {data!r}")
        if unknown := sorted(set(data) - known):
            raise InvalidScheme(f"unknown field {unknown[0]!r} in a scheme; the fields are {', '.join(sorted(known))}")
        if missing := sorted({"reference", "normalize", "threshold"} - set(data)):
            raise InvalidScheme(f"field {missing[0]!r} is missing from a scheme")
        return cls(**data)

    def _bits(self) -> int:
        if self.bits is None:
            raise InvalidScheme(f"scheme {self.name!r} prunes only: it has no levels")
        return self.bits


_E = TypeVar("_E", bound=enum.StrEnum)


def _member(field: str, kind: type[_E], value: object) -> _E:
    try:
        return kind(str(value))
    except ValueError:
        raise InvalidScheme(f"{field} must be one of {', '.join(kind)}, not {value!r}") from None


__all__ = ["TAIL_NATS", "Normalize", "Pruned", "QuantScheme", "Reference", "Rounding", "Spacing"]
