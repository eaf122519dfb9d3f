"""Leave sympy for when it is used: onnx_ir imports it for arithmetic on symbolic sizes, which takes most of its import.

What only reads or runs graphs does no such arithmetic. onnx_ir's own module of that arithmetic is left for later, too,
since it looks sympy's functions up as it is imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Final

DEFERRED: Final = frozenset({"sympy", "onnx_ir._symbolic_shapes"})


class _Deferring(importlib.abc.MetaPathFinder):
    """Finds the modules as usual, but loads them at the first use of an attribute."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in DEFERRED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def defer_sympy() -> None:
    """Defer the import in this process, unless it was done."""
    if "onnx_ir" not in sys.modules:
        sys.meta_path.insert(0, _Deferring())


__all__ = ["DEFERRED", "defer_sympy"]
