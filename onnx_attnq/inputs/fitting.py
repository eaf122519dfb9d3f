"""Search for sizes that something takes: change one size at a time until the first complaint is gone, then the next."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final, Generic, TypeVar

from onnx_attnq.inputs.shape_check import Misfit

Dim = TypeVar("Dim", bound=Hashable)
"""What names a size."""

COMMON: Final = (224, 256, 384, 512, 64, 128, 32, 640, 1024, 336, 448, 518, 320, 160, 96, 48, 80, 77, 1500, 3000, 16000)
"""Sizes that models are made for: edges of images, lengths of texts, frames, samples of a second."""

LARGEST: Final = 2**16
"""Where doubling ends."""

MOST_CHECKS: Final = 400


@dataclasses.dataclass(frozen=True)
class Fitted(Generic[Dim]):
    """What a search found.

    Attributes:
        sizes: Those that fit, or the ones that got furthest.
        misfit: Why these do not fit; None where they do.
        tried: The sizes that were tried against it, by dim.
    """

    sizes: Mapping[Dim, int]
    misfit: Misfit | None = None
    tried: Mapping[Dim, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def fit(
    check: Callable[[Mapping[Dim, int]], Misfit | None],
    start: Mapping[Dim, int],
    groups: Sequence[tuple[Dim, ...]],
    *,
    hints: Sequence[int] = (),
    most_checks: int = MOST_CHECKS,
) -> Fitted[Dim]:
    """Sizes for which ``check`` has no complaint.

    Where a complaint names two sizes that should be equal and are not, the size is found by bisection, since what a
    graph makes of a longer input is never shorter. Otherwise the hints, and sizes that are common, are tried.

    Args:
        check: The first complaint about sizes.
        start: The sizes to begin with.
        groups: Dims that are changed together, those first that are most likely wrong.
        hints: Sizes that are tried first.
        most_checks: How often to ask.

    >>> def check(sizes):  # 16 patches along an edge
    ...     patches = sizes["side"] // 4
    ...     return None if patches == 16 else Misfit(3, "Add", "no broadcast", ((patches, 16),))
    >>> fit(check, {"side": 24, "batch": 2}, [("batch",), ("side",)]).sizes
    {'side': 66, 'batch': 2}
    """
    left = most_checks

    def ask(sizes: Mapping[Dim, int]) -> Misfit | None:
        nonlocal left
        left -= 1
        return check(sizes)

    sizes, misfit = dict(start), ask(start)
    while misfit is not None:
        tried: dict[Dim, tuple[int, ...]] = {}
        for group in groups:
            search = _Search(sizes[group[0]], misfit, hints)
            for size in search:
                changed = {**sizes, **dict.fromkeys(group, size)}
                found = ask(changed)
                if found is None or found.progress > misfit.progress:
                    sizes, misfit = changed, found
                    break
                search.tell(size, found)
                if left <= 0:
                    break
            else:
                tried[group[0]] = search.tried
                continue
            tried[group[0]] = search.tried
            break
        else:
            return Fitted(sizes, misfit, tried)
        if misfit is not None and left <= 0:
            return Fitted(sizes, misfit, tried)
    return Fitted(sizes)


class _Search:
    """Sizes for one dim, each depending on what was said to the ones before."""

    def __init__(self, size: int, misfit: Misfit, hints: Sequence[int]) -> None:
        self._start, self._misfit = max(size, 1), misfit
        self._hints = (*itertools.chain(*misfit.gaps), *hints)
        self._sides: dict[int, int] = {}
        self._matters = False
        if misfit.gaps:
            self._sides[self._start] = _sign(misfit.gaps[0])
        self.tried: tuple[int, ...] = ()

    def tell(self, size: int, found: Misfit) -> None:
        """The result of the check for a size."""
        self._matters |= (found.place, found.gaps) != (self._misfit.place, self._misfit.gaps)
        if found.place == self._misfit.place and found.gaps:
            self._sides[size] = _sign(found.gaps[0])

    def __iter__(self) -> Iterator[int]:
        """The sizes to try."""
        seen: set[int] = set()
        for size in self._candidates():
            if size not in seen and size > 0:
                seen.add(size)
                self.tried += (size,)
                yield size

    def _candidates(self) -> Iterator[int]:
        yield from (self._start * 2, self._start * 16)
        if not self._matters:  # the node does not depend on this dim
            return
        yield from (size for size in self._hints if 1 < size <= LARGEST)
        size = self._start * 4
        while size <= LARGEST and self._between() is None and self._sides:
            yield size
            size *= 2
        size = self._start // 2
        while size > 1 and self._between() is None and self._sides:
            yield size
            size //= 2
        while (bounds := self._between()) is not None:
            low, high = bounds
            if high - low < 2:
                break
            middle = (low + high) // 2
            yield middle
            if middle not in self._sides:
                break
        yield from COMMON
        yield 1  # late, since an axis of one fits too much
        yield from (self._start + step for step in range(-8, 9))

    def _between(self) -> tuple[int, int] | None:
        """Two neighbours among the sizes that were tried, one too small and one too large."""
        known = sorted(self._sides.items())
        return next(((a, b) for (a, x), (b, y) in itertools.pairwise(known) if x != y), None)


def _sign(gap: tuple[int, int]) -> int:
    return 1 if gap[0] > gap[1] else -1


__all__ = ["Fitted", "fit"]
