"""What a comparison of two models finds, as data."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from onnx_attnq.diff.tensor_content import ValueDifference


class Kind(enum.StrEnum):
    """What differs."""

    OPSET = "opset"
    INPUT = "input"
    OUTPUT = "output"
    OPERATOR = "operator"
    ATTRIBUTE = "attribute"
    WIRING = "wiring"
    CONSTANT = "constant"
    REPLACED = "replaced"
    ADDED = "added"
    REMOVED = "removed"
    FUNCTION = "function"
    METADATA = "metadata"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A node in one of the models, under the names it has there.

    Attributes:
        node: The node's name; the name of its first output where it has none.
        op: Its operator, ``com.microsoft.Attention``.
        inside: What it is part of, innermost first: ``then_branch of node 'If_0'``, ``function pkg.attn``.
        line: The node in ONNX text syntax.
        before: The nodes it reads, in the same syntax.
        after: The nodes that read it.
    """

    node: str
    op: str
    inside: tuple[str, ...]
    line: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", in ".join((f"node {self.node!r} ({self.op})", *self.inside))


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One difference between model A and model B.

    Attributes:
        kind: What differs.
        message: One line that says what A has and what B has.
        a: The node in A, if the difference is at a node that A has.
        b: The node in B.
        more_a: Further nodes of A that are part of the same change, along the data flow; `a` is the first.
        more_b: The same of B.
        values: For constants of the same type, how far their values are apart.
    """

    kind: Kind
    message: str
    a: Place | None = None
    b: Place | None = None
    values: ValueDifference | None = None
    more_a: tuple[Place, ...] = ()
    more_b: tuple[Place, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class ModelDiff:
    """All differences, along the data flow: opsets and inputs, nodes, outputs, functions, metadata.

    Attributes:
        fingerprint_a: Canonical hash of A.
        fingerprint_b: Canonical hash of B; equal to A's exactly when `differences` is empty.
        differences: The first is the first place along the data flow.
    """

    fingerprint_a: str
    fingerprint_b: str
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether the models differ in nothing that matters."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; a difference that is not finite is a string."""
        return {"equal": self.equal, **_plain(dataclasses.asdict(self))}


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case enum.StrEnum():
            return str(value)
        case float() if value in (float("inf"), float("-inf")):
            return str(value)
    return value


__all__ = ["Difference", "Kind", "ModelDiff", "Place"]
