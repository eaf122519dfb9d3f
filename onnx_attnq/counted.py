"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """A number and what it counts, whose plural ends in s.

    >>> counted(1, "sample"), counted(1200, "made-up sample")
    ('1 sample', '1,200 made-up samples')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


__all__ = ["counted"]
