"""A comparison as text for people, in the manner of a unified text diff."""

from __future__ import annotations

from typing import Final

from onnx_attnq.diff.result import Difference, ModelDiff, Place

LIMIT: Final = 10
"""Differences shown in full."""

NODES: Final = 8
"""Nodes of a difference shown for each model."""


def format_diff(diff: ModelDiff, a: str = "A", b: str = "B", limit: int = LIMIT) -> str:
    """The differences, the first one along the data flow first.

    Args:
        diff: What was found.
        a: What to call model A, usually its file.
        b: What to call model B.
        limit: Differences to show; the number of the others is stated.
    """
    if diff.equal:
        return f"{a} and {b} are equal ({diff.fingerprint_a[:16]})"
    count = len(diff.differences)
    shown = diff.differences[:limit]
    lines = [f"--- {a}", f"+++ {b}"]
    for difference in shown:
        lines += format_difference(difference)
    lines.append(f"{count} difference{'' if count == 1 else 's'}{_rest(count - len(shown))}")
    return "\n".join(lines)


def format_difference(difference: Difference) -> list[str]:
    """One difference: a header that names the node in both models, and the node among its neighbours."""
    a, b = difference.a, difference.b
    header = f"@@ {difference.message}"
    if a is not None:
        header += f" @@ {a}"
    if b is not None and (a is None or (b.node, b.inside) != (a.node, a.inside)):
        header += f" @@ {'' if a is None else 'in the other model '}{b}"
    lines = [header]
    neighbours = a or b
    if neighbours is None:
        return lines
    lines += [f"  {line}" for line in neighbours.before]
    lines += _nodes("-", a, difference.more_a)
    lines += _nodes("+", b, difference.more_b)
    last = (difference.more_b if a is None else difference.more_a)[-1:]
    return lines + [f"  {line}" for line in (*last, neighbours)[0].after]


def _nodes(sign: str, first: Place | None, more: tuple[Place, ...]) -> list[str]:
    """The nodes of one model, the first and the last ones."""
    lines = [f"{sign} {place.line}" for place in ((first,) if first is not None else ()) + more]
    left_out = len(lines) - NODES
    if left_out > 1:
        lines[NODES // 2 : -(NODES // 2)] = [f"{sign} … {left_out} more nodes"]
    return lines


def _rest(count: int) -> str:
    return f", {count} not shown" if count else ""


__all__ = ["LIMIT", "format_diff", "format_difference"]
