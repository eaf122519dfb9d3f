"""What the documentation says is what the program does."""

from __future__ import annotations

import fnmatch
import importlib.util
import pkgutil
import re
import tomllib
from pathlib import Path

import click
import forms_page
import pytest
from click.testing import CliRunner

from onnx_attnq.cli.command import settings
from onnx_attnq.cli.group import COMMANDS, cli
from onnx_attnq.scheme import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("custom_ops/*.md")])


def test_page_of_forms_is_fresh() -> None:
    assert forms_page.PAGE.read_text(encoding="utf-8") == forms_page.page(), "run `python tests/forms_page.py`"


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages - {"index"} == set(COMMANDS)


def test_tables_of_schemes_name_every_preset() -> None:
    for page in ("README.md", "docs/schemes.md"):
        assert set(PRESETS) <= set(re.findall(r"^\| `([\w-]+)` +\|", (ROOT / page).read_text(encoding="utf-8"), re.M))


def test_names_of_the_package_that_a_page_writes_exist() -> None:
    for page in (*PAGES, *ROOT.glob("examples/**/*.md")):
        for name in sorted(set(re.findall(r"\bonnx_attnq(?:\.\w+)+", page.read_text(encoding="utf-8")))):
            if name == "onnx_attnq.olive_pass" and importlib.util.find_spec("olive") is None:
                continue  # an extra that is not installed for these tests
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                pytest.fail(f"{page.relative_to(ROOT)} writes {name}, which does not exist")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_that_a_page_names_exist(page: Path) -> None:
    """In commands: lines of code that call onnx-attnq with a subcommand or a model."""
    for line in re.findall(r"^[ $]*onnx-attnq (.*)$", page.read_text(encoding="utf-8").replace("\\\n", " "), re.M):
        words = line.split(" #")[0].split()
        command = cli.get_command(click.Context(cli), words[0] if words[0] in COMMANDS else "compress")
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--version"}
        assert {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_patterns_of_the_readme_match_sites_of_the_demo() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sites = set(re.findall(r"^(node_Softmax_\d+) ", text, re.M))
    patterns = re.findall(r"--(?:in|ex)clude '([^']+)'", text)
    assert sites
    assert patterns
    for pattern in patterns:
        assert fnmatch.filter(sites, pattern), pattern


def test_settings_that_the_page_shows_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "attnq.toml").write_text(block, encoding="utf-8")
    for name in tomllib.loads(block):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert settings(tmp_path / "attnq.toml", click.Context(command))


def test_readme_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The block in Python, on a small model under the name that it uses."""
    from attention_forms import FORMS
    from small_graphs import parse

    from onnx_attnq import save

    save(parse(FORMS["plain"].text), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "model.attnq.onnx").exists()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_takes_json_as_the_readme_says(name: str) -> None:
    assert "--json" in CliRunner().invoke(cli, [name, "--help"]).output
