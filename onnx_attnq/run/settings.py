"""How to run models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from onnx_attnq.errors import InvalidData

MEMORY: Final = 256 * 2**20
"""Bytes of values inside of a model that one run may return, unless more is allowed."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How to run models in onnxruntime.

    Attributes:
        threads: Threads inside an op; None leaves it to onnxruntime.
        custom_ops: Libraries with custom ops that the models need, other than this package's own.
        memory: Bytes of values inside of a model that one run may return; they are fetched in groups of this size.
        seconds: The longest that one run may take, above 0; None for no limit. It ends at the next op.

    Raises:
        InvalidData: No such time.

    >>> RunSettings(threads=2).memory // 2**20
    256
    """

    threads: int | None = None
    custom_ops: tuple[Path, ...] = ()
    memory: int = MEMORY
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0.0:  # NaN neither
            raise InvalidData(f"a time limit of {self.seconds:g} s; it has to be more than 0")

    def absolute(self) -> RunSettings:
        """With paths that a process in another folder finds, too."""
        return dataclasses.replace(self, custom_ops=tuple(path.absolute() for path in self.custom_ops))


__all__ = ["MEMORY", "RunSettings"]
