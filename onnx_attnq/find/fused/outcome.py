"""The result of a decomposition: the new softmax, or the reason why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir


@dataclasses.dataclass(frozen=True, slots=True)
class FusedOp:
    """A fused op that is no longer in the graph.

    Attributes:
        op: Its domain and op type.
        inputs: The values that entered it, None for those left out.
        outputs: The values that stand for what left it, None for those without a name.
        attributes: Its attributes.
    """

    op: tuple[str, str]
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, ir.Attr]

    @property
    def op_type(self) -> str:
        """The op's name in its domain."""
        return self.op[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Decomposed:
    """The fused node is gone; standard ops compute its outputs under the same names.

    Attributes:
        softmax: The Softmax node among the new nodes, over the last axis of (B, N, L_q, L_k) scores.
        fused: What they stand for.
    """

    softmax: ir.Node
    fused: FusedOp


@dataclasses.dataclass(frozen=True, slots=True)
class Declined:
    """The graph is as it was.

    Attributes:
        reason: One sentence that says what is in the way and what can be done about it.
    """

    reason: str


class Decline(Exception):
    """Raised while a node is read or rebuilt, and turned into `Declined` by `decompose`."""


__all__ = ["Decline", "Declined", "Decomposed", "FusedOp"]
