"""What all commands have in common: quick help, suggestions, settings from a file, logging, widths, interruption."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from attention_forms import FORMS
from click.shell_completion import ShellComplete
from small_graphs import parse

from onnx_attnq import errors, evaluate, study
from onnx_attnq.cli import command as command_module
from onnx_attnq.cli import main
from onnx_attnq.cli.group import COMMANDS, cli
from onnx_attnq.diff import CONTEXT, LIMIT, fingerprint
from onnx_attnq.model import load, save

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(parse(FORMS["scale and additive mask"].text), path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    logger = logging.getLogger("onnx_attnq")
    yield
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


def get(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


# --- help


HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "sympy", "matplotlib", "torch")


def loaded_by(code: str) -> set[str]:
    check = f"; import sys; print(*({HEAVY!r} & sys.modules.keys()))".replace(repr(HEAVY), repr(set(HEAVY)))
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "from click.testing import CliRunner\nfrom onnx_attnq.cli.group import COMMANDS, cli\n"
        "for name in COMMANDS: assert CliRunner().invoke(cli, [name, '--help']).exit_code == 0\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\npass"
    )
    assert loaded_by(code) == set()
    assert loaded_by("import onnx_attnq.diff") >= {"numpy", "onnx_ir"}  # the check would see them


def test_a_fingerprint_needs_no_runtime() -> None:
    code = "import onnx_attnq.cli.fingerprint, onnx_attnq.diff, onnx_attnq.model"
    assert not loaded_by(code) & {"onnxruntime", "rich", "matplotlib", "torch"}


def test_commands_on_graphs_load_sympy_only_when_it_is_used(model: Path) -> None:
    run = f"""if True:
        import sys
        from onnx_attnq.cli import main
        try:
            main(["fingerprint", {str(model)!r}])
        except SystemExit as done:
            assert not done.code
        deferred = "sympy" in sys.modules and "sympy.core" not in sys.modules
        import onnx_ir
        size = onnx_ir.SymbolicDim("n + 1") * 2  # what needs it
        print(deferred, size.evaluate({{"n": 4}}), "sympy.core" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.split()[0] == fingerprint(load(model))
    assert second == "True 10 True"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_is_the_first_line_of_the_help(name: str) -> None:
    first = inspect.cleandoc(get(name).help or "").splitlines()[0]
    assert first.rstrip(".") == COMMANDS[name]


def test_summaries_are_whole_at_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help")[1].splitlines()
    for name, summary in COMMANDS.items():
        assert f"  {name:<12} {summary}" in lines
    assert "…" not in "".join(lines)


def test_help_is_as_wide_as_columns_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    for columns in ("60", "110"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(max(map(len, run("compress", "--help")[1].splitlines())))
        assert widths[-1] <= int(columns)
    assert widths[1] > 80


OPTIONS = [(name, option) for name in COMMANDS for option in get(name).params if isinstance(option, click.Option)]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_every_option_says_what_it_is_and_what_its_default_is(name: str, option: click.Option) -> None:
    text = option.help or ""
    assert text[:1].isupper()
    assert text.split("  [default")[0].endswith((".", ","))
    says_default = "[default: " in text or bool(option.show_default)
    needs_none = option.is_flag or option.count or option.required or option.name in NO_DEFAULT
    assert says_default or needs_none


NO_DEFAULT = {
    "custom_ops",
    "data",
    "tokenizer",
    "config",
    "json_path",
    "metrics",
    "max_deviation",
    "plan_path",
    "write_plan",
    "explain",
    "combine",
    "dataset",
}
"""Options without which nothing is done, or that are one of two."""


def test_the_same_option_has_the_same_default_everywhere() -> None:
    for flag in ("--threads", "--seed", "--scheme", "--bits", "--threshold"):
        defaults = {
            (option.help or "").partition("[default")[2] if flag == "--threads" else str(option.default)
            for _, option in OPTIONS
            if flag in option.opts and not option.multiple
        }
        assert len(defaults) == 1, (flag, defaults)


def test_defaults_that_are_written_twice_are_equal() -> None:
    def default(name: str, flag: str) -> object:
        return next(option.default for option in get(name).params if flag in option.opts)

    assert default("diff", "--context") == CONTEXT
    assert default("diff", "--limit") == LIMIT
    assert default("analyze", "--safe-error") == study.SAFE_ERROR
    assert default("evaluate", "--max-length") == evaluate.MAX_LENGTH
    assert default("evaluate", "--resamples") == evaluate.RESAMPLES
    assert default("evaluate", "--seed") == evaluate.SEED
    (task,) = (option for option in get("evaluate").params if "--task" in option.opts)
    assert isinstance(task.type, click.Choice)
    assert tuple(task.type.choices) == tuple(evaluate.TASKS)
    lines = {" ".join(line.split()) for line in (get("evaluate").help or "").splitlines()}
    for name, one in evaluate.TASKS.items():  # the table of the help
        assert f"{name} {one.format} {', '.join(metric.name for metric in one.metrics)}" in lines


# --- mistyped commands


@pytest.mark.parametrize(
    ("typed", "meant"), [("inspct", "inspect"), ("analyse", "analyze"), ("fingerprnt", "fingerprint")]
)
def test_a_mistyped_command_suggests_the_right_one(typed: str, meant: str, run: Run) -> None:
    code, out, err = run(typed, "model.onnx")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"onnx-attnq: error: {typed!r} is neither a command nor a file; did you mean `onnx-attnq {meant}`?"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("tune model.onnx", "Missing option '--data'; `onnx-attnq tune --help` lists what there is"),
        ("inspect", "Missing argument 'MODEL'; `onnx-attnq inspect --help` lists what there is"),
        (
            "model.onnx --bits x",
            "Invalid value for '--bits': 'x' is not a valid integer; `onnx-attnq compress --help` lists what there is",
        ),
    ],
)
def test_wrong_words_are_one_line(words: str, line: str, run: Run) -> None:
    assert run(*words.split()) == (2, "", f"onnx-attnq: error: {line}\n")


def test_the_word_help_says_where_help_is(run: Run) -> None:
    code, _, err = run("help")
    assert code == 2
    assert (
        err.splitlines()[-1]
        == "onnx-attnq: error: 'help' is no command; write `onnx-attnq --help`, or `onnx-attnq COMMAND --help`"
    )


def test_a_file_that_is_named_almost_like_a_command_is_a_model(
    model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    model.rename("inspct")
    assert run("inspct", "-o", "out.onnx")[0] == 0


# --- models of transformers: a folder, or a name of the hub


def test_a_bare_name_suggests_export(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bert-base-uncased", "gpt2"):
        code, out, err = run(name)
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].endswith(f"onnx-attnq export {name} -o {name}-onnx --compress")


@pytest.mark.parametrize("missing", ["model.onnx", "folder/model.onnx", "a/b/c", "folder/model"])
def test_a_path_that_is_none_of_the_hub_does_not_exist(
    missing: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code, out, err = run(missing)
    assert (code, out) == (2, "")
    assert err.strip() == f"onnx-attnq: error: {missing} does not exist"


DECODER = Path(__file__).parent.parent / "examples" / "decoder" / "model"


@pytest.mark.pipeline
def test_a_folder_of_transformers_is_exported_and_compressed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(DECODER, tmp_path / "decoder")
    assert "exported first; it does not go with --dry-run" in run(tmp_path / "decoder", "--dry-run")[2]
    code, out, _ = run(tmp_path / "decoder", "--bits", "2")
    assert code == 0
    assert "equal to PyTorch" in out
    assert "6 of 6 sites, row-log-mean (2 bits" in out
    assert (tmp_path / "decoder-onnx" / "model.attnq.onnx").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "decoder-onnx"]
    assert run(tmp_path / "decoder-onnx", "--no-verify")[0] != 0  # both files are in it now: one is rewritten already


@pytest.mark.slow
@pytest.mark.pipeline
def test_a_name_of_the_hub_is_exported_and_compressed(tmp_path: Path) -> None:
    # The hub's cache, as a download leaves it.
    cached = tmp_path / "hub" / "models--owner--decoder"
    shutil.copytree(DECODER, cached / "snapshots" / "1")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "onnx_attnq", "owner/decoder", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert json.loads(done.stdout)["output"]["path"] == str(Path("decoder-onnx", "model.attnq.onnx"))
    missing = subprocess.run(
        [*command[:3], "owner/none"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert missing.returncode == 2
    (line,) = missing.stderr.splitlines()
    assert "owner/none: not a model folder, and not reached on the hub" in line
    assert "HF_HUB_OFFLINE=1" in line


# --- schemes


def test_a_scheme_is_spelled_alike_everywhere(model: Path, run: Run) -> None:
    a, b = model.with_name("a.onnx"), model.with_name("b.onnx")
    assert run(model, "--scheme", "ji2021:bits=2,threshold=0.01", "-o", a)[0] == 0
    assert run(model, "--scheme", "ji2021", "--bits", 2, "--threshold", 0.01, "-o", b)[0] == 0
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", ["compress", "evaluate", "export", "analyze"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rowlog", "unknown scheme 'rowlog'"),
        ("row-log:", "'' is not of the form NAME[:bits=B,threshold=T,pruned=P]"),
        ("row-log:bit=2", "'bit=2' is not of the form"),
        ("row-log:bits=x", "bits must be a number, not 'x'"),
        ("row-log:bits=2,bits=3", "bits is given twice"),
        ("identity:bits=2", "takes no bits"),
    ],
)
def test_a_scheme_that_is_none_is_one_line(name: str, text: str, message: str, run: Run) -> None:
    code, out, err = run(
        name, "m.onnx", "-o" if name == "export" else "--scheme", *(["x", "--scheme"] * (name == "export")), text
    )
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "--scheme" in err.splitlines()[-1]


def test_bits_beside_a_scheme_with_bits_are_refused(model: Path, run: Run) -> None:
    code, _, err = run(model, "--scheme", "row-log:bits=2", "--bits", "3")
    assert code == 2
    assert "bits is given twice" in err


# --- settings from a file


def test_every_option_may_come_from_a_file(model: Path, run: Run) -> None:
    config = model.with_name("attnq.toml")
    config.write_text(
        '[compress]\nscheme = "ji2021"\nbits = 2\ninclude = ["*"]\nmax-deviation = ["max_abs=100"]\nthreads = 1\n'
        'json = "-"\n[bench]\ntokens = [16]\n'
    )
    code, out, _ = run(model, "--config", config)
    assert code == 0
    assert '"bits": 2' in out
    assert '"bits": 4' in run(model, "--config", config, "--bits", 4)[1]  # the command line comes first


def test_a_flag_and_a_required_option_may_come_from_a_file(model: Path, run: Run) -> None:
    config = model.with_name("attnq.toml")
    run(model)
    config.write_text(f'[compress]\ndry-run = true\n[revert]\noutput = "{model.with_name("back.onnx").as_posix()}"\n')
    assert "Nothing was written" in run(model, "--config", config)[1]
    assert run("revert", model.with_name("model.attnq.onnx"), "--config", config)[0] == 0
    assert model.with_name("back.onnx").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("bits = ", "not a TOML file"),
        ("bits = 3", "'bits' is not a table of a command, such as [compress]"),
        ("[compres]\nbits = 3", "'compres' is not a table of a command"),
        ("[compress]\nbit = 3", "[compress] bit: there is no option --bit"),
        ("[compress]\nbits = 3.5", "[compress] bits: '3.5' is not a valid integer"),
        ("[compress]\nbits = true", "[compress] bits: True is not a string or a number"),
        ("[compress]\nbits = [2, 3]", "[compress] bits: takes one value"),
        ("[compress]\nthreads = 0", "[compress] threads: 0 is not in the range"),
        ('[compress]\ninline = "yes"', "[compress] inline: 'yes' is not true or false"),
        ("[compress]\ninline = []", "[compress] inline: takes one value"),
        ('[compress]\nscheme = "row"', "[compress] scheme: unknown scheme 'row'"),
        ("[compress]\nscheme = {name = 1}", "[compress] scheme: {'name': 1} is not a string or a number"),
        ('[compress]\nconfig = "other.toml"', "[compress] config: there is no option --config"),
    ],
)
def test_a_bad_file_of_settings_is_one_line_that_names_it(
    text: str | None, message: str, model: Path, run: Run
) -> None:
    config = model.with_name("attnq.toml")
    if text is not None:
        config.write_text(text)
    code, out, err = run(model, "--config", config)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert str(config) in err.splitlines()[-1]
    assert not model.with_name("model.attnq.onnx").exists()


# --- logging


def test_nothing_is_logged_unless_asked_for(model: Path, run: Run) -> None:
    assert run(model)[2] == ""
    quiet = run(model, "-v")[2]
    assert f"{model}" in quiet
    assert "onnx_attnq" in quiet
    assert len(run(model, "-vv")[2].splitlines()) >= len(quiet.splitlines())
    assert run(model, "--log-level", "error")[2] == ""


# --- width


def test_rows_are_not_wrapped_in_a_pipe(model: Path) -> None:
    long = parse(FORMS["plain"].text)
    name = "encoder/" + "very_long_name_of_a_node/" * 12 + "Softmax"
    next(node for node in long.graph if node.op_type == "Softmax").name = name
    save(long, model)
    environment = {**os.environ, "COLUMNS": "40"}
    for arguments in (("inspect", str(model)), (str(model),)):
        done = subprocess.run(
            [sys.executable, "-m", "onnx_attnq", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert any(line.startswith(name) for line in done.stdout.splitlines())


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("columns", [50, 150])
def test_a_terminal_is_filled_and_not_exceeded(columns: int, model: Path) -> None:
    import pty

    host, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "onnx_attnq", "inspect", str(model)]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end was closed
            while chunk := os.read(host, 4096):
                shown += chunk
    os.close(host)
    assert process.returncode == 0
    widths = [len(click.unstyle(line)) for line in shown.decode().splitlines()]
    assert max(widths) <= columns
    assert columns == 50 or max(widths) > 80


# --- interruption


def take_interrupts() -> None:
    """Undo what shells and nohup do to jobs in the background: they, and their children, ignore some signals."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process")
@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.6, 1.0])
def test_an_interruption_is_one_line_at_any_moment(after: float, model: Path) -> None:
    # From when Python runs the program's own code: what comes before is the interpreter's.
    code = "import sys; print(flush=True); from onnx_attnq.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", f"from onnx_attnq.cli import main; {code}", str(model), "--samples", "3000"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=take_interrupts
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert err.strip() == "onnx-attnq: interrupted"
    assert process.returncode == 130
    assert [path.name for path in model.parent.iterdir() if path.suffix == ".tmp"] == []


IMPORT_THAT_IS_INTERRUPTED = """
import signal, sys

class Extension:  # what extension modules do whose initialization a signal interrupts
    def find_spec(self, name, path, target=None):
        if name == "onnx_attnq.cli.inspect":
            try:
                signal.raise_signal(getattr(signal, sys.argv[1]))
            except BaseException:
                raise ImportError("initialization failed") from None

from onnx_attnq.cli import main
sys.meta_path.insert(0, Extension())
main(["inspect", "model.onnx"])
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGHUP")
@pytest.mark.parametrize(
    ("name", "line", "code"),
    [("SIGINT", "interrupted", 130), ("SIGTERM", "terminated", 143), ("SIGHUP", "terminated", 129)],
)
def test_an_interruption_that_becomes_an_import_error_is_one(name: str, line: str, code: int) -> None:
    command = [sys.executable, "-c", IMPORT_THAT_IS_INTERRUPTED, name]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=take_interrupts, check=False)
    assert done.stderr == f"onnx-attnq: {line}\n"
    assert done.returncode == code


# --- shell completion


def complete(*words: str, incomplete: str) -> list[tuple[str, str]]:
    found = ShellComplete(cli, {}, "onnx-attnq", "_ONNX_ATTNQ_COMPLETE").get_completions(list(words), incomplete)
    return [(item.type, item.value) for item in found]


def test_commands_options_schemes_and_files_are_completed() -> None:
    assert complete(incomplete="in") == [("plain", "inspect")]
    assert complete(incomplete="mod") == [("file", "mod")]
    assert complete("inspect", incomplete="mod") == [("file", "mod")]
    assert complete("verify", "a.onnx", incomplete="") == [("file", "")]
    assert ("plain", "--max-deviation") in complete("model.onnx", incomplete="--max")
    assert ("plain", "ji2021-log") in complete("model.onnx", "--scheme", incomplete="ji")
    assert complete("diff", "a.onnx", incomplete="b") == [("file", "b")]
    assert complete("compress", "m.onnx", "--config", incomplete="at") == [("file", "at")]


def test_every_error_class_has_an_exit_code_that_the_help_names(run: Run) -> None:
    text = run("--help")[1]
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.AttnqError):
            assert f"{value.exit_code} " in text


def test_settings_are_read_for_their_own_command_only(model: Path) -> None:
    config = model.with_name("attnq.toml")
    config.write_text("[bench]\ntokens = [16]\n[compress]\nbits = 2\n")
    ctx = click.Context(get("bench"))
    assert command_module.settings(config, ctx) == {"tokens": ["16"]}
