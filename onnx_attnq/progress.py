"""How a long job says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called after each step with what was done, how many steps are done, and how many there are, as far as is known.

A step is a run of a model, unless the job has other steps: drawing pictures, tuning.
"""


def no_progress(what: str, done: int, total: int) -> None:
    """The callback that does nothing."""


class Steps:
    """Counts the steps of a job.

    Args:
        total: How many there will be; may be set anew when more is known.
        progress: Called after each of them.

    >>> steps = Steps(2, print)
    >>> steps.advance("loading")
    loading 1 2
    """

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self.done = 0
        self._progress = progress

    def advance(self, what: str, count: int = 1) -> None:
        """Some more steps are done."""
        self.done += count
        self._progress(what, self.done, self.total)


class Examples:
    """Counts the runs of examples that take several each: those of all are expected to take as many as those so far.

    Args:
        examples: How many there are.
        progress: Called after each of them.

    >>> examples = Examples(3, print)
    >>> examples.advance("fill-mask", 4)
    fill-mask 4 12
    >>> examples.advance("fill-mask", 1)
    fill-mask 5 8
    """

    def __init__(self, examples: int, progress: Progress) -> None:
        self._examples = examples
        self._progress = progress
        self._done = 0
        self._runs = 0

    def advance(self, what: str, runs: int) -> None:
        """One more example is done, in so many runs."""
        self._done += 1
        self._runs += runs
        self._progress(what, self._runs, -(-self._runs * self._examples // self._done))


def _none(_: int) -> int:
    return 0


class Parts:
    """One count for the parts of a job, which come one after the other.

    Args:
        progress: The job's.

    >>> parts = Parts(print)
    >>> parts.next("a.onnx", after=lambda total: 2 * total)("identity", 1, 5)
    a.onnx: identity 1 15
    >>> parts.next()("standard ops", 1, 5)
    standard ops 2 6
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0

    def next(self, name: str = "", after: Callable[[int], int] = _none) -> Progress:
        """The callback of the next part.

        Args:
            name: Comes before what the part says.
            after: How many steps will follow it, by how many it has.
        """
        before = self._done

        def advance(what: str, done: int, total: int) -> None:
            self._done = before + done
            self._progress(f"{name}: {what}" if name else what, self._done, before + total + after(total))

        return advance


__all__ = ["Examples", "Parts", "Progress", "Steps", "no_progress"]
