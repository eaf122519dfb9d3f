"""What ends a run of onnxruntime: a limit on its time, or Ctrl-C, which Python handles only when it has returned."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Protocol, TypeVar


class Stoppable(Protocol):
    """The options of a run, which ends at its next op once the flag is set."""

    terminate: bool


_Options = TypeVar("_Options", bound=Stoppable)

_running: list[Stoppable] = []


@contextlib.contextmanager
def running(options: _Options, seconds: float | None = None) -> Iterator[_Options]:
    """Within the block, a signal stops what is run with these options, and so does the end of a time."""
    _running.append(options)
    watch = None if seconds is None else threading.Timer(min(seconds, threading.TIMEOUT_MAX), _stop, (options,))
    try:
        if watch is not None:
            watch.daemon = True
            watch.start()
        yield options
    finally:
        if watch is not None:
            watch.cancel()
        _running.remove(options)


def _stop(options: Stoppable) -> None:
    options.terminate = True


@contextlib.contextmanager
def stopping_runs() -> Iterator[None]:
    """Within the block, a signal that Python handles stops what runs, so that it is handled at once.

    Does nothing outside of the main thread, and where someone else waits for signals in this way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    with reading, writing:
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
            yield
            return
        watcher = threading.Thread(target=_watch, args=(reading,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            writing.shutdown(socket.SHUT_RDWR)
            watcher.join()


def _watch(signals: socket.socket) -> None:
    while signals.recv(64):
        for options in tuple(_running):
            _stop(options)


__all__ = ["Stoppable", "running", "stopping_runs"]
