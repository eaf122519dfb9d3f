"""What to rewrite, and into what."""

from __future__ import annotations

import dataclasses

from onnx_attnq.errors import InvalidPlan
from onnx_attnq.rewriting.plan import Plan
from onnx_attnq.scheme import QuantScheme


@dataclasses.dataclass(frozen=True)
class RewriteSettings:
    """What to rewrite, and into what.

    Attributes:
        scheme: What every site gets; `preset` with no arguments if None.
        include: Shell patterns of the sites to rewrite; all if empty.
        exclude: Shell patterns of sites to leave.
        plan: What each site gets, in place of ``scheme``, ``include`` and ``exclude``.
        keep_fused: Leave fused attention ops as they are; False to take them apart; None to take those apart whose
            place one kernel of the native library takes, and leave the others, which would become slower. With a plan,
            and with ``inline``, None is False.
        inline: Plain ops instead of ops with a function.
        quantize_outputs: Where probabilities are an output of the model, quantize that output too.
        int16_products: Let the native library multiply query and key in 16-bit integers.

    Raises:
        InvalidPlan: A plan beside what it says already.
    """

    scheme: QuantScheme | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    plan: Plan | None = None
    keep_fused: bool | None = None
    inline: bool = False
    quantize_outputs: bool = False
    int16_products: bool = False

    def __post_init__(self) -> None:
        if self.plan is not None and (self.scheme is not None or self.include or self.exclude):
            raise InvalidPlan("a plan says what every site gets: leave scheme, include and exclude out")


__all__ = ["RewriteSettings"]
