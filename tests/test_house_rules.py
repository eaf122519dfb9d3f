"""House rules that the import contract in pyproject.toml does not cover."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx_attnq

PACKAGE = Path(onnx_attnq.__file__).parent


def test_every_module_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("*.py"):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert doc, path
        assert len(doc.splitlines()[0]) <= 117, path


def test_only_runtime_imports_onnxruntime() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(n.name.split(".")[0] == "onnxruntime" for n in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onnxruntime")
    }
    assert importers == {"run/arrays.py", "run/sessions.py", "run/weight_quantizers.py"}


def test_only_the_command_line_prints() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not any(isinstance(f, ast.Name) and f.id == "print" for f in calls), path


def test_the_command_line_writes_no_markup() -> None:
    # Its console shows text as it is, because names of files and nodes may look like markup.
    for path in (PACKAGE / "cli").glob("*.py"):
        assert "[/" not in path.read_text(encoding="utf-8"), path


def test_packages_are_entered_by_their_faces() -> None:
    # What a package gives to others is the list in its __init__. `report` has none: its modules need an extra.
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
            if len(parts) > 2 and parts[0] == "onnx_attnq" and parts[1] not in (own, "report"):
                raise AssertionError(f"{path} imports {node.module}, not {parts[0]}.{parts[1]}")


def test_no_module_is_over_400_lines() -> None:
    native = Path(__file__).parent.parent / "custom_ops"
    modules = [*PACKAGE.rglob("*.py"), *native.glob("*.h"), *native.glob("*.cpp")]
    long = {str(p): n for p in modules if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long


def test_no_function_takes_more_than_eight_parameters() -> None:
    # Commands of the command line take their options as parameters.
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or (path.parent.name == "cli" and node.decorator_list):
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= 8, (path, node.name)
