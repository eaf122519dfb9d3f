"""The optional packages: a clear message when an extra is missing or other versions than its pins are installed.

Heavy packages (torch, transformers, optimum, scipy, scikit-learn, datasets) are imported inside functions, after
`require`. What an extra needs is listed once, in pyproject.toml; it is read back from the metadata of the installation.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement

from onnx_attnq.errors import MissingExtra

DISTRIBUTION: Final = "onnx-attnq"


OFFLINE: Final = "without a network, HF_HUB_OFFLINE=1 looks only for what was downloaded before, and does not wait"
"""What to say where the hub was not reached."""


@contextlib.contextmanager
def only_errors(*loggers: str) -> Iterator[None]:
    """Keeps what these loggers say below errors from the user."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    try:
        for logger in found:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


def quiet_hub() -> contextlib.AbstractContextManager[None]:
    """Keeps a warning for each try to reach the hub from the user; what came of it is raised."""
    return only_errors("huggingface_hub", "datasets")


def require(extra: str) -> None:
    """Check that what ``onnx-attnq[extra]`` asks for is installed, in versions that it allows.

    Raises:
        MissingExtra: A package is missing or has another version; the message says which, and what to run.
    """
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed: nothing to check against
        return
    if problem := first_problem(declared, extra):
        raise MissingExtra(f"{problem}; run: pip install '{DISTRIBUTION}[{extra}]'")


def first_problem(requirements: Iterable[str], extra: str) -> str | None:
    """What is wrong with the first requirement of ``extra`` that is not met; None when all are.

    >>> first_problem(["numpy>=1", "numpy>=99 ; extra == 'far'"], "near") is None
    True
    >>> first_problem(["no-such-package>=2 ; extra == 'far'"], "far")
    "'far' needs no-such-package>=2, which is not installed"
    """
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}):  # a marker on something else, such as the Python version
            continue
        needed = f"{extra!r} needs {requirement.name}{requirement.specifier}"
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return f"{needed}, which is not installed"
        if not requirement.specifier.contains(installed, prereleases=True):
            return f"{needed}, but {requirement.name} {installed} is installed"
    return None


__all__ = ["OFFLINE", "first_problem", "only_errors", "quiet_hub", "require"]
