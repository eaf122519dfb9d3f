"""Of several plans, the one whose model is measured to be the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from onnx_attnq.find import Sites
from onnx_attnq.inputs import Sample
from onnx_attnq.rewriting import Plan
from onnx_attnq.run import RunSettings, Session, cpu_times, native_library
from onnx_attnq.tune.apply import plan_of, write_model
from onnx_attnq.tune.choice import Choice
from onnx_attnq.tune.search import Files

ROUNDS: Final = 9
"""Timed runs of each model, in turn."""


def fastest(choices: Sequence[Choice], files: Files, sample: Sample, run: RunSettings) -> int:
    """The index of the plan whose model takes the least CPU time, by the native library where there is one.

    Args:
        choices: The plans, at least one.
        files: Where the original is, and a folder for the models.
        sample: What the models are run on.
        run: Threads and custom ops.
    """
    if len(choices) == 1:
        return 0
    sessions = []
    for number, choice in enumerate(choices):

        def plan(sites: Sites, choice: Choice = choice) -> Plan:
            return plan_of(sites, choice)

        path = files.trial.with_name(f"timed-{number}.onnx")
        write_model(files.source, path, plan)
        sessions.append(Session(path, run, native=native_library() is not None))
    times = cpu_times(sessions, sample, ROUNDS)
    return times.index(min(times))


__all__ = ["ROUNDS", "fastest"]
