"""Heads measured on a dask cluster: joblib sends the units there in place of processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx_attnq.errors import InvalidData
from onnx_attnq.extras import require
from onnx_attnq.model import load, size_on_disk

WORKER: Final = 400 * 2**20
"""Bytes that a worker needs beside the model: Python with its libraries, and the arrays of a small unit."""


@contextlib.contextmanager
def dask_cluster(address: str | None, shared: Sequence[Any] = (), memory: int = WORKER) -> Iterator[None]:
    """While this is open, joblib works on a cluster.

    Workers read the model by the path that the command was given, so it has to be on a file system that all share.
    The units of a worker that crashes are measured again by another.

    Args:
        address: HOST:PORT of the scheduler.
        shared: Objects that every task takes: each worker gets them once.
        memory: Bytes that a worker needs.

    Raises:
        MissingExtra: dask.distributed is not installed.
        InvalidData: No address, no scheduler answers there, or it has no workers, or a single thread, or a worker may
            not use as much memory as it needs, or several died of the same unit.
    """
    require("cluster")
    import joblib
    from distributed import Client, KilledWorker

    if address is None:
        raise InvalidData("--backend dask needs --address HOST:PORT of the scheduler")
    try:
        client = Client(address, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise InvalidData(f"--address {address}: no dask scheduler answers there ({error})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise InvalidData(f"--address {address}: the scheduler has no workers; start some") from None
        if sum(client.ncores().values()) < 2:  # joblib would work in this process
            raise InvalidData(
                f"--address {address}: the cluster has a single thread; give it two workers, or leave it out"
            )
        _check_memory(client.scheduler_info(n_workers=-1)["workers"], memory)
        try:
            with joblib.parallel_config(backend=_backend(client, shared)):
                yield
        except KilledWorker as killed:
            raise InvalidData(
                f"--backend dask: {killed.allowed_failures + 1} workers died of the same unit, most likely of what "
                f"--memory-limit allows ({killed.last_worker.address}); give workers more, and go on with --resume"
            ) from None


def memory_of_worker(model: Path) -> int:
    """Bytes that a worker needs: the model and a part of it, beside `WORKER`. Long samples take more."""
    return WORKER + 2 * size_on_disk(load(model))


def _check_memory(workers: Mapping[str, Mapping[str, Any]], needed: int) -> None:
    """A worker near its limit takes no more tasks, for as long as it is, and reports nothing."""
    for address, worker in workers.items():
        if 0 < worker["memory_limit"] < needed:
            allowed = worker["memory_limit"] // 2**20
            raise InvalidData(
                f"--backend dask: the worker {address} may use {allowed} MiB of memory, and needs {needed // 2**20}; "
                "start it with a larger --memory-limit"
            )


def _backend(client: Any, shared: Sequence[Any]) -> Any:
    """The backend of joblib waits forever for a unit that dask has given up; this one raises."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
            future = super().submit(func, callback)

            def failed(done: Any) -> None:
                if callback is not None and done.exception() is not None:
                    callback(done.exception())

            future.add_done_callback(failed)
            return future

    return Backend(client=client, scatter=list(shared) or None)


__all__ = ["WORKER", "dask_cluster", "memory_of_worker"]
