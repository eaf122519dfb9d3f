"""The schemes that have a name: those of the literature, and this project's own. A new one is a row of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.scheme.quant_scheme import Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing


@dataclasses.dataclass(frozen=True)
class _Row:
    """A preset as its table has it.

    Attributes:
        reference: As in `QuantScheme`; so are ``normalize``, ``spacing``, ``rounding`` and ``pruned``.
        threshold: The default; None where the bits decide it and none may be given.
        bits: The default; None for schemes without levels, which take no bits.
        lowest_edge: From the threshold (0 where none may be given) and the bits to the lowest edge.
    """

    reference: Reference
    normalize: Normalize
    threshold: float | None
    bits: int | None = None
    spacing: Spacing | None = None
    rounding: Rounding | None = None
    lowest_edge: Callable[[float, int], float] = lambda threshold, bits: threshold
    pruned: Pruned = Pruned.ZERO


# Where the paper splits [threshold, 1] into 2**bits bins and sends the lowest to zero, the lowest edge is that bin's
# upper end, which describes the same edges and levels.
def _above_lowest_log_bin(threshold: float, bits: int) -> float:
    return float(threshold ** (1.0 - 2.0**-bits))


def _above_lowest_linear_bin(threshold: float, bits: int) -> float:
    return float(threshold + (1.0 - threshold) * 2.0**-bits)


def _halfway_below_lowest_power(_: float, bits: int) -> float:
    return float(2.0 ** -(2**bits - 1.5))


_ABSOLUTE, _ROW_MAX = Reference.ABSOLUTE, Reference.ROW_MAX
_LOG, _LINEAR, _FLOOR, _NEAREST = Spacing.LOG, Spacing.LINEAR, Rounding.FLOOR, Rounding.NEAREST

_TABLE: Final[Mapping[str, _Row]] = MappingProxyType(
    {
        "row-log-mean": _Row(_ROW_MAX, Normalize.UNIT, 3e-2, 3, _LOG, _NEAREST, pruned=Pruned.MEAN),
        "row-log": _Row(_ROW_MAX, Normalize.UNIT, 1e-2, 3, _LOG, _NEAREST),
        "log-mean": _Row(_ABSOLUTE, Normalize.UNIT, 1e-2, 4, _LOG, _NEAREST, pruned=Pruned.MEAN),
        "ji2021": _Row(_ABSOLUTE, Normalize.NONE, 1e-3, 3, _LOG, _FLOOR),
        "ji2021-log": _Row(_ABSOLUTE, Normalize.NONE, 1e-10, 3, _LOG, _FLOOR, _above_lowest_log_bin),
        "ji2021-linear": _Row(_ABSOLUTE, Normalize.NONE, None, 3, _LINEAR, _FLOOR, _above_lowest_linear_bin),
        "ji2021-linear-pruned": _Row(_ABSOLUTE, Normalize.NONE, 1e-3, 3, _LINEAR, _FLOOR, _above_lowest_linear_bin),
        "boolean": _Row(_ABSOLUTE, Normalize.UNIT, 1e-3, 1, _LOG, _FLOOR),
        "fq-log2": _Row(_ABSOLUTE, Normalize.NONE, None, 3, _LOG, _NEAREST, _halfway_below_lowest_power),
        "prune-only": _Row(_ABSOLUTE, Normalize.NONE, 1e-3),
        "prune-only-row-max": _Row(_ROW_MAX, Normalize.NONE, 1e-2),
        "identity": _Row(_ABSOLUTE, Normalize.NONE, None),
    }
)

PRESETS: Final = tuple(_TABLE)
"""The names that `preset` knows, the default first."""

DEFAULT: Final = PRESETS[0]


def preset(
    name: str = DEFAULT, *, bits: int | None = None, threshold: float | None = None, pruned: Pruned | None = None
) -> QuantScheme:
    """A scheme of the literature, or this project's own.

    ====================  =====  =========  ==========================================================
    name                  bits   threshold  what it is
    ====================  =====  =========  ==========================================================
    row-log-mean          3      3e-2       as row-log; pruned values share what they summed to
    row-log               3      1e-2       ours: row-max, log, nearest, unit
    log-mean              4      1e-2       as row-log-mean, measured against 1: many small values become a mean
    ji2021                3      1e-3       Ji et al. 2021: pruned log; absolute, log, floor, none
    ji2021-log            3      1e-10      the paper's unpruned log: 2**bits bins over [threshold, 1]
    ji2021-linear         3      --         the paper's linear: 2**bits bins over [0, 1]
    ji2021-linear-pruned  3      1e-3       the paper's pruned linear: 2**bits bins over [threshold, 1]
    boolean               1      1e-3       kept values share the row evenly
    fq-log2               3      --         FQ-ViT (arXiv 2111.13824): round(-log2 p), power-of-two levels
    prune-only            none   1e-3       p < threshold becomes 0
    prune-only-row-max    none   1e-2       p < threshold * row maximum becomes 0
    identity              none   --         changes nothing; for tests
    ====================  =====  =========  ==========================================================

    Args:
        name: One of `PRESETS`.
        bits: 1 to 8; None is the default of the scheme.
        threshold: In (0, 1), or [0, 1) for a scheme without levels; None is the default of the scheme.
        pruned: How pruned values are treated, ``zero`` or ``mean``; None is the default of the scheme.

    Raises:
        InvalidScheme: Unknown name, or an argument that the preset does not take.

    >>> preset("ji2021-linear", bits=2).threshold
    0.25
    """
    row = _TABLE.get(name)
    if row is None:
        raise InvalidScheme(f"unknown scheme {name!r}; known: {', '.join(PRESETS)}")
    if threshold is not None and row.threshold is None:
        raise InvalidScheme(f"scheme {name!r} takes no threshold")
    if threshold is not None and not 0.0 <= threshold < 1.0:
        raise InvalidScheme(f"threshold must be in (0, 1), not {threshold!r}")
    if bits is not None:
        if row.bits is None:
            raise InvalidScheme(f"scheme {name!r} takes no bits")
        if name == "boolean" and bits != 1:
            raise InvalidScheme("scheme 'boolean' has 1 bit")
        if not 1 <= bits <= 8:
            raise InvalidScheme(f"bits must be a whole number from 1 to 8, not {bits!r}")
    used = row.bits if bits is None else bits
    given = row.threshold if threshold is None else threshold
    lowest = row.lowest_edge(given or 0.0, used or 0)
    treatment = row.pruned if pruned is None else pruned
    return QuantScheme(row.reference, row.normalize, lowest, used, row.spacing, row.rounding, treatment, name)


__all__ = ["PRESETS", "preset"]
