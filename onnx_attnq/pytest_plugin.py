"""Fixtures for teams that test the graphs they ship: pytest finds them when onnx-attnq is installed.

Each fixture is a function to call in a test. Models are paths or `onnx_ir` models; a failure reads like the
output of the command line and has no traceback.

* ``assert_models_equal(a, b)``: `diff` finds nothing.
* ``assert_rewrite(model, golden)``: the canonical form of a model is what a text file says;
  ``pytest --update-golden`` writes the file.
* ``assert_close(a, b, data)``: onnxruntime computes the same with both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from onnx_attnq.atomic import replacing
from onnx_attnq.diff import CanonicalModel, canonicalize, diff_models, format_diff, node_name
from onnx_attnq.inputs import Sample, check_sample, load_samples, model_inputs
from onnx_attnq.model import load
from onnx_attnq.run import Session

Model: TypeAlias = ir.Model | str | os.PathLike[str]
Data: TypeAlias = Mapping[str, npt.NDArray[Any]] | str | os.PathLike[str]

RTOL: Final = 1e-4
"""Of `assert_close`: float32 sums of a few thousand terms in another order stay below this."""
ATOL: Final = 1e-5
"""Of `assert_close`: for outputs near zero, where a relative tolerance means nothing."""


class AssertModelsEqual(Protocol):
    """What the fixture ``assert_models_equal`` is."""

    def __call__(self, a: Model, b: Model, *, metadata: bool = False) -> None:
        """Fail unless ``b`` equals ``a``, the model that is expected."""


class AssertRewrite(Protocol):
    """What the fixture ``assert_rewrite`` is."""

    def __call__(self, model: Model, golden: str | os.PathLike[str]) -> None:
        """Fail unless the canonical form of a model is the text of a file; a relative path is beside the test."""


class AssertClose(Protocol):
    """What the fixture ``assert_close`` is."""

    def __call__(self, a: Model, b: Model, data: Data, *, rtol: float = RTOL, atol: float = ATOL) -> None:
        """Fail unless all outputs fulfil |b - a| <= atol + rtol * |a|, NaN equal to NaN.

        ``data`` is one sample, arrays by input name, or a path as `inputs.load_samples` takes it.
        """


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``."""
    group = parser.getgroup("onnx-attnq")
    group.addoption("--update-golden", action="store_true", help="Write the golden files that assert_rewrite compares.")


@pytest.fixture
def assert_models_equal() -> AssertModelsEqual:
    """A function that fails, and says what differs, unless two models are equal."""

    def check(a: Model, b: Model, *, metadata: bool = False) -> None:
        diff = diff_models(_load(a), _load(b), metadata=metadata)
        if not diff.equal:
            pytest.fail(format_diff(diff, _label(a, "a"), _label(b, "b")), pytrace=False)

    return check


@pytest.fixture
def assert_rewrite(request: pytest.FixtureRequest) -> AssertRewrite:
    """A function that compares a model with a golden file, or writes it with ``--update-golden``."""

    def check(model: Model, golden: str | os.PathLike[str]) -> None:
        file = request.path.parent / golden
        form = canonicalize(_load(model))
        if request.config.getoption("--update-golden"):
            with replacing(file) as stream:
                stream.write(form.text.encode("utf-8", "surrogatepass"))
            return
        if not file.exists():
            pytest.fail(f"golden file {golden} does not exist; pytest --update-golden writes it", pytrace=False)
        text = file.read_text(encoding="utf-8", errors="surrogatepass")
        if text != form.text:
            pytest.fail(_golden_diff(text, form, str(golden), _label(model, "model")), pytrace=False)

    return check


@pytest.fixture
def assert_close() -> AssertClose:
    """A function that runs two models in onnxruntime and fails unless their outputs are close."""

    def check(a: Model, b: Model, data: Data, *, rtol: float = RTOL, atol: float = ATOL) -> None:
        session_a, session_b = Session(a), Session(b)
        for i, sample in enumerate(_samples(data, _load(a))):
            expected, actual = session_a.run(sample), session_b.run(sample)
            lines = [
                line
                for name in [*expected, *(actual.keys() - expected)]
                for line in _too_far(name, expected.get(name), actual.get(name), rtol, atol)
            ]
            if lines:
                header = f"--- {_label(a, 'a')}\n+++ {_label(b, 'b')}\n@@ sample {i}, rtol {rtol:g}, atol {atol:g}"
                pytest.fail("\n".join([header, *lines]), pytrace=False)

    return check


def _load(model: Model) -> ir.Model:
    return model if isinstance(model, ir.Model) else load(model)


def _label(model: Model, name: str) -> str:
    return name if isinstance(model, ir.Model) else os.fspath(model)


def _golden_diff(golden: str, form: CanonicalModel, golden_name: str, model_name: str) -> str:
    """A unified diff of the texts, and what the first line that differs is called in the model."""
    lines = [line.text for line in form.lines]
    expected = golden.splitlines()
    changes = list(difflib.unified_diff(expected, lines, golden_name, model_name, lineterm="", n=3))
    first = next((i for i, (x, y) in enumerate(zip(expected, lines, strict=False)) if x != y), None)
    node = None if first is None else form.lines[first].node
    if node is not None:
        changes.append(f"first at node {node_name(node)!r} ({node.op_type})")
    changes.append("if this is meant to be: pytest --update-golden")
    return "\n".join(changes)


def _samples(data: Data, model: ir.Model) -> tuple[Sample, ...]:
    if isinstance(data, Mapping):
        return (check_sample(data, model_inputs(model), "data"),)
    return load_samples(Path(data), model)


def _too_far(name: str, a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None, rtol: float, atol: float) -> list[str]:
    if a is None or b is None:
        return [f"output {name!r} exists in one of the models only"]
    if a.shape != b.shape or a.dtype != b.dtype:
        return [f"output {name!r}: {a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"]
    if a.dtype.kind not in "fc":
        count = int(np.count_nonzero(a != b))
        return [f"output {name!r}: {count} of {a.size} values differ"] if count else []
    far = ~np.isclose(b, a, rtol=rtol, atol=atol, equal_nan=True)
    if not far.any():
        return []
    apart = np.where(far, np.abs(b.astype(np.float64) - a.astype(np.float64)), 0.0)
    apart[np.isnan(apart)] = np.inf  # only one of the two is NaN
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(apart), apart.shape))
    return [
        f"output {name!r}: {int(far.sum())} of {a.size} values are too far apart, "
        f"at most {apart[worst]:.6g} at {list(worst)}: {a[worst]:.6g} became {b[worst]:.6g}"
    ]


__all__ = ["ATOL", "RTOL", "AssertClose", "AssertModelsEqual", "AssertRewrite"]
