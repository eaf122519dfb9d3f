"""Heads measured on a dask cluster: joblib sends the units there in place of processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from onnx_attnq.errors import InvalidData
from onnx_attnq.extras import require


@contextlib.contextmanager
def dask_cluster(address: str | None, shared: Sequence[Any] = ()) -> Iterator[None]:
    """While this is open, joblib works on a cluster.

    Workers read the model by the path that the command was given, so it has to be on a file system that all share.
    A worker that dies has its units measured again by another.

    Args:
        address: HOST:PORT of the scheduler.
        shared: Objects that every task takes: each worker gets them once.

    Raises:
        MissingExtra: dask.distributed is not installed.
        InvalidData: No address, no scheduler answers there, or it has no workers, or a single thread.
    """
    require("cluster")
    import joblib
    from distributed import Client

    if address is None:
        raise InvalidData("--backend dask needs --address HOST:PORT of the scheduler")
    try:
        client = Client(address, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise InvalidData(f"--address {address}: no dask scheduler answers there ({error})") from None
    with client, joblib.parallel_config(backend="dask", wait_for_workers_timeout=30, scatter=list(shared) or None):
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise InvalidData(f"--address {address}: the scheduler has no workers; start some") from None
        if sum(client.ncores().values()) < 2:  # joblib would work in this process
            raise InvalidData(
                f"--address {address}: the cluster has a single thread; give it two workers, or leave it out"
            )
        yield


__all__ = ["dask_cluster"]
