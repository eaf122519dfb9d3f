"""What every command has: a file of settings, a level of logging, and help that is not cut."""

from __future__ import annotations

import functools
import logging
import tomllib
from pathlib import Path
from typing import Any, Final

import click

from onnx_attnq.cli.guard import CONFIG, guard
from onnx_attnq.one_line import one_line
from onnx_attnq.reading import open_regular

BROKEN_PIPE: Final = 141
"""Exit code when nobody reads what is printed any more, as in `onnx-attnq inspect MODEL | head`."""

LEVELS: Final = ("debug", "info", "warning", "error")


class Command(click.Command):
    """A command with the options --config, -v and --log-level."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                metavar="TOML",
                is_eager=True,
                expose_value=False,
                callback=_use_config,
                help=f"Read options from the table [{self.name}] of a TOML file; the command line takes precedence.",
            ),
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                callback=_be_verbose,
                help="Log each step to standard error; -vv logs details, too.",
            ),
            click.Option(
                ["--log-level"],
                type=click.Choice(LEVELS),
                expose_value=False,
                callback=_set_level,
                help="Log messages of this level and above to standard error.  [default: warning]",
            ),
            click.Option(["--debug"], is_flag=True, expose_value=False, help="On an error, print the traceback."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, once its paths have been found to be harmless."""
        guard(ctx)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit with 1, which says that something failed
            raise click.exceptions.Exit(BROKEN_PIPE) from None


command = functools.partial(click.command, cls=Command)
"""As ``click.command``, for a `Command`."""


def _use_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        ctx.meta[CONFIG] = path
        ctx.default_map = settings(path, ctx)


def settings(path: Path, ctx: click.Context) -> dict[str, Any]:
    """The values that a TOML file has for a command's options, by the names of its parameters.

    Args:
        path: A file with a table for each command, whose keys are the long options without their dashes.
        ctx: Of the command.

    Raises:
        BadParameter: The file cannot be read, or has a key or a value that the command does not take.
    """
    from onnx_attnq.cli.group import COMMANDS  # which imports the commands, when they are used

    try:
        with open_regular(path) as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", ctx, param_hint="--config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise click.BadParameter(f"{path}: not a TOML file: {error}", ctx, param_hint="--config") from None
    for name, table in tables.items():
        if name not in COMMANDS or not isinstance(table, dict):
            raise click.BadParameter(
                f"{path}: {name!r} is not a table of a command, such as [compress]", ctx, param_hint="--config"
            )
    options = {
        option.removeprefix("--"): parameter
        for parameter in ctx.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help", "--verbose")
    }
    found = {}
    for key, value in tables.get(ctx.command.name or "", {}).items():
        where = f"{path}: [{ctx.command.name}] {key}"
        if key not in options:
            raise click.BadParameter(f"{where}: there is no option --{key}", ctx, param_hint="--config")
        found[options[key].name or ""] = _value(options[key], value, where, ctx)
    return found


def _value(parameter: click.Parameter, value: Any, where: str, ctx: click.Context) -> Any:
    """A value of TOML as the command line would have it."""
    values = value if isinstance(value, list) else [value]
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    fits = all(isinstance(item, bool if is_flag else (str, int, float)) for item in values)
    if not fits or (not is_flag and any(isinstance(item, bool) for item in values)):
        raise click.BadParameter(f"{where}: {value!r} is not {'true or false' if is_flag else 'a string or a number'}")
    if len(values) != 1 and not parameter.multiple:
        raise click.BadParameter(f"{where}: takes one value", ctx, param_hint="--config")
    words: Any = value if is_flag else [str(item) for item in values] if parameter.multiple else str(values[0])
    try:
        parameter.type_cast_value(ctx, words)
    except click.BadParameter as error:
        raise click.BadParameter(f"{where}: {error.message}", ctx, param_hint="--config") from None
    return words


class _ToStandardError(logging.Handler):
    """Writes to standard error as it is at the time: a progress bar puts its own in place."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(one_line(self.format(record)), err=True)


def _log(level: int) -> None:
    logger = logging.getLogger("onnx_attnq")
    logger.setLevel(level)
    if not any(isinstance(handler, _ToStandardError) for handler in logger.handlers):
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("%(relativeCreated)6d ms %(name)s: %(message)s"))
        logger.addHandler(handler)


def _be_verbose(_: click.Context, __: click.Parameter, count: int) -> None:
    if count:
        _log(logging.INFO if count == 1 else logging.DEBUG)


def _set_level(_: click.Context, __: click.Parameter, level: str | None) -> None:
    if level is not None:
        _log(logging.getLevelNamesMapping()[level.upper()])


__all__ = ["Command", "command", "settings"]
