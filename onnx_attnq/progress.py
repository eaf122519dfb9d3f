"""How a long job says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called after each step with what was done, how many steps are done, and how many there are."""


def no_progress(what: str, done: int, total: int) -> None:
    """The callback that does nothing."""


class Steps:
    """Counts the steps of a job.

    Args:
        total: How many there will be.
        progress: Called after each of them.

    >>> steps = Steps(2, print)
    >>> steps.advance("loading")
    loading 1 2
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self._progress = progress
        self._done = 0

    def advance(self, what: str, count: int = 1) -> None:
        """Some more steps are done."""
        self._done += count
        self._progress(what, self._done, self.total)


__all__ = ["Progress", "Steps", "no_progress"]
