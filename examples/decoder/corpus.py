"""Text for a small language model: the documentation strings of Python's standard library.

Every Python has them, so nothing is downloaded. They are under the PSF licence (PSF-2.0). Paragraphs that occur twice
are kept once, or the held-out text would leak into the training text: docstrings are often copied.
"""

from __future__ import annotations

import ast
import hashlib
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

HELD_OUT = pathlib.Path(__file__).parent / "held_out.txt"
SHORTEST = 40
"""Characters: shorter paragraphs are mostly headings and signatures."""


def standard_library() -> list[str]:
    """All paragraphs, each once, in the order of the files."""
    paragraphs = {}
    for docstring in _docstrings():
        for paragraph in docstring.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= SHORTEST:
                paragraphs.setdefault(words, paragraph.strip("\n"))
    return list(paragraphs.values())


def held_out(paragraphs: list[str], share: float = 0.04, block: int = 16) -> list[str]:
    """Whole blocks of neighbouring paragraphs, drawn by a hash of their text, so that a context can form."""
    blocks = (paragraphs[i : i + block] for i in range(0, len(paragraphs), block))
    return [paragraph for block in blocks if _uniform("".join(block)) < share for paragraph in block]


def training_text() -> str:
    """The paragraphs of this Python that the committed held-out text does not have."""
    seen = {" ".join(paragraph.split()) for paragraph in HELD_OUT.read_text(encoding="utf-8").split("\n\n")}
    return "\n\n".join(p for p in standard_library() if " ".join(p.split()) not in seen)


def _docstrings() -> Iterator[str]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # the library ships files that are wrong on purpose
            continue
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (docstring := ast.get_docstring(node)):
                yield docstring


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


if __name__ == "__main__":
    HELD_OUT.write_text("\n\n".join(held_out(standard_library())), encoding="utf-8")
