"""The public surface: short, complete, and enough for the main job."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from small_transformers import bert_like

import onnx_attnq
from onnx_attnq.errors import AttnqError


def test_the_public_names_are_these() -> None:
    # Each name is what the package that defines it calls so: a lazy import cannot hand out anything else.
    assert sorted(onnx_attnq.__all__, key=str) == sorted({*onnx_attnq._PACKAGE_OF, "AttnqError", "__version__"})
    for name, package in onnx_attnq._PACKAGE_OF.items():
        value = getattr(onnx_attnq, name)
        assert value is getattr(importlib.import_module(f"onnx_attnq.{package}"), name)
        assert getattr(value, "__module__", f"onnx_attnq.{package}").startswith(f"onnx_attnq.{package}")
    assert all(callable(getattr(onnx_attnq, name)) for name in onnx_attnq.__all__ if name[0].islower())


def test_type_checkers_see_the_names_that_the_interpreter_imports() -> None:
    tree = ast.parse(Path(onnx_attnq.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        a.name: (n.module or "").split(".")[1] for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    assert seen == onnx_attnq._PACKAGE_OF


def test_no_public_name_hides_a_module_of_its_name() -> None:
    folder = Path(onnx_attnq.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert not modules & set(onnx_attnq.__all__)


def test_importing_the_package_loads_neither_onnxruntime_nor_onnx() -> None:
    code = "import sys, onnx_attnq; print(sorted({'onnxruntime', 'onnx', 'onnx_ir', 'numpy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_main_job_in_a_few_calls(tmp_path: Path) -> None:
    onnx_attnq.save(bert_like(17), tmp_path / "model.onnx")
    result = onnx_attnq.compress(tmp_path / "model.onnx")
    assert result.verification is not None
    assert result.verification.passed
    assert result.output == tmp_path / "model.attnq.onnx"


def test_the_main_job_step_by_step(tmp_path: Path) -> None:
    onnx_attnq.save(bert_like(17), tmp_path / "model.onnx")
    original = onnx_attnq.load(tmp_path / "model.onnx")
    model = original.clone()
    found = onnx_attnq.find_sites(onnx_attnq.expose(model))
    ids = [site.id for site in found.sites]
    plan = onnx_attnq.uniform_plan(
        onnx_attnq.structure_hash(original), ids, onnx_attnq.preset("ji2021"), exclude=["*p0"]
    )
    onnx_attnq.save_plan(plan, tmp_path / "plan.json")
    record = onnx_attnq.rewrite(model, found, onnx_attnq.load_plan(tmp_path / "plan.json"))
    onnx_attnq.save(model, tmp_path / "out.onnx")
    written = onnx_attnq.load(tmp_path / "out.onnx")
    assert onnx_attnq.read_record(written) == record
    assert [site.id for site in record.sites] == ["Softmax_p1"]
    samples = onnx_attnq.generate_samples(original, 2, 0)
    assert onnx_attnq.verify(original, written, samples).passed


PROGRAM = Path(__file__).parent / "public_program.py"


def test_a_program_of_public_names_uses_all_of_them() -> None:
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text(encoding="utf-8"))))
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {n.id for n in nodes if isinstance(n, ast.Name)}
    assert used >= set(onnx_attnq.__all__)
    modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    assert modules == {"onnx_attnq", "pathlib"}
    assert (Path(onnx_attnq.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_program_of_public_names_passes_mypy_strict(tmp_path: Path) -> None:
    # Away from the sources and their settings, as a user has the package; `make check` looks at it by the way.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", program.name]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_error_is_one_that_a_caller_can_catch() -> None:
    from onnx_attnq import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(c, AttnqError) for c in classes)
    assert {c.exit_code for c in classes} == {1, 2, 3}
    assert onnx_attnq.AttnqError is AttnqError
