"""How much memory a run takes, measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from onnx_attnq.model import load
from onnx_attnq.run.sessions import Session
from onnx_attnq.run.settings import RunSettings

_UNKNOWN_MEMORY: Final = 2**36
"""Bytes that a machine is taken to have which does not say."""


def peak_memory() -> float:
    """Peak resident memory of this process so far, megabytes.

    What getrusage reports on Linux includes the memory of the parent that the process was forked from; VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine_memory() -> int:
    """Bytes that this process may use: the machine's memory, or less where a container or ulimit allows less."""
    found = [_UNKNOWN_MEMORY]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            found.append(int(Path(limit).read_text()))
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        found += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(found)


def give_memory_back() -> None:
    """Return the memory of what was deleted to the system: glibc keeps that of whole models for later."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@dataclasses.dataclass(frozen=True)
class OneRun:
    """A model and what it is run on once.

    Attributes:
        path: The model file.
        native: Whether the native library is registered.
        sample: An array for each input.
        shared: For some inputs the output that is written over them; see `Session.bound`.
        settings: Threads and custom ops.
    """

    path: Path
    native: bool
    sample: Mapping[str, npt.NDArray[Any]]
    shared: Mapping[str, str] | None
    settings: RunSettings

    def __call__(self) -> None:
        """Make a session, and run it."""
        session = Session(load(self.path), self.settings, native=self.native)
        if self.shared is None:
            session.run(self.sample)
        else:
            session.bound(self.sample, self.shared)()

    def peak_memory(self) -> float | None:
        """Peak resident memory of a fresh process that does this, megabytes; None where it fails."""
        code = (
            "import pickle, sys\n"
            "from onnx_attnq.deferred import defer_sympy\n"
            "defer_sympy()\n"
            "from onnx_attnq.run.memory import peak_memory\n"
            "pickle.load(sys.stdin.buffer)()\n"
            "print(peak_memory())\n"
        )
        try:
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, input=pickle.dumps(self), capture_output=True, check=True)
        except subprocess.CalledProcessError:
            return None
        return float(done.stdout)


__all__ = ["OneRun", "give_memory_back", "machine_memory", "peak_memory"]
