"""A console and a table on which a name with control characters or markup stays a part of one line."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from onnx_attnq.one_line import one_line


class Lines(Console):
    """A console on which each text that is printed is one line, and no text is markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts, each escaped, or tables."""
        super().print(*(one_line(item) if isinstance(item, str) else item for item in objects), **options)

    def on_broken_pipe(self) -> None:
        """Let `main` handle it, which exits with the code for it."""
        raise BrokenPipeError


class Cells(Table):
    """A table whose cells are one line each."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts, each escaped."""
        super().add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in cells), **options)


__all__ = ["Cells", "Lines"]
