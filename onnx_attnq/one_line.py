"""Texts for the terminal that cannot pretend to be more than one line, or anything else than text.

Names of nodes, values and files come from whoever made the model: a line break in one could print a line "Verified",
an escape sequence could erase one.
"""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""The text with control characters, and those that change the direction of writing, escaped as Python does it.

    >>> print(one_line("softmax\nVerified\x1b[2K"))
    softmax\nVerified\x1b[2K
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


__all__ = ["one_line"]
