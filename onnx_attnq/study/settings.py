"""What to study."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Final

from onnx_attnq.scheme import QuantScheme, preset

DEFAULT_SCHEMES: Final = (preset(), preset(bits=2), preset("row-log"), preset("ji2021"), preset("ji2021", bits=2))
"""Ours at 3 and 2 bits, the same with pruned values of zero, and the paper's at 3 and 2 bits."""


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """What to study of a model.

    Attributes:
        schemes: What to quantize with; each is measured on its own, all else left as it is.
        include: Shell patterns of the sites to observe; all if empty.
        exclude: Shell patterns of sites to leave out.
        separator_ids: Token ids of separators, for the attention to them.
        labels: Tokens by id, for the example.
    """

    schemes: tuple[QuantScheme, ...] = DEFAULT_SCHEMES
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    separator_ids: Collection[int] = ()
    labels: Mapping[int, str] | None = None


__all__ = ["DEFAULT_SCHEMES", "StudySettings"]
