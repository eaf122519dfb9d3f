"""Where the native library is.

The library holds kernels for the ops of a rewritten model. It is built from custom_ops/ when the package is
installed and a C++ compiler is there, or in place by ``make native``; without it the models still run, on the
standard ops that they carry. docs/native.md shows how programs in Python, C, C++ and C# register it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_SUFFIXES: Final = {"win32": ".dll", "darwin": ".dylib"}


def native_library() -> Path | None:
    """The library's file, for onnxruntime's ``SessionOptions.register_custom_ops_library``; None when it was not built.

    >>> library = native_library()
    >>> library is None or library.is_absolute()
    True
    """
    name = "libonnx_attnq" + _SUFFIXES.get(sys.platform, ".so")
    # An editable installation has two directories: the sources, where `make native` puts it, and where pip did.
    candidates = (Path(directory).resolve() / name for directory in sys.modules["onnx_attnq"].__path__)
    return max((path for path in candidates if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)


__all__ = ["native_library"]
