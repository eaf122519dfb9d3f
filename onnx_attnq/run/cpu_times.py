"""How long runs of several models take, beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from onnx_attnq.run.sessions import Session


def cpu_times(sessions: Sequence[Session], sample: Mapping[str, npt.NDArray[Any]], rounds: int) -> list[float]:
    """Median CPU time of one run of each model, seconds, measured in turn after one of each that is not timed.

    Args:
        sessions: One for each model.
        sample: What all are run on.
        rounds: Timed runs of each, at least 1.
    """
    spent: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds + 1):
        for session, times in zip(sessions, spent, strict=True):
            started = time.process_time()
            session.run(sample)
            times.append(time.process_time() - started)
    return [statistics.median(times[1:]) for times in spent]


__all__ = ["cpu_times"]
