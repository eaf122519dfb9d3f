"""What no command may do to files, whatever its options say: overwrite an input, or one output by another.

All paths of a command line are looked at here, before the command runs; that only regular files are replaced is
`atomic`'s rule, and is applied here too, so that it does not show after an hour of work.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from onnx_attnq.atomic import check_replaceable
from onnx_attnq.errors import CannotWrite, InvalidData

WRITTEN: Final = frozenset({"output", "json_path", "write_plan"})
"""Parameters whose paths are written to; every other path is an input."""

_SWEEP: Final = ("points.csv", "points.json", "points.journal", "report.html")

_ANALYSIS: Final = ("study.npz", "numbers.json", "heads.csv", "report.html")

_OUTPUT: Final = ("--output", "the output")

_MAKE_FOLDERS: Final = ("analyze", "sweep", "export")
"""Commands whose output is a folder, which they make, and those that it lies in."""

_WRITE_MODELS: Final = ("compress", "revert")

CONFIG: Final = "onnx_attnq.config"
"""Where the context keeps the path of --config, which is no parameter of the command itself."""


def guard(ctx: click.Context) -> None:
    """Refuse paths of a command line that would do harm.

    Raises:
        CannotWrite: An output is an input, or the same as another output, or there is something that is no file, or the
            folder that it belongs into does not exist.
        InvalidData: An input is a device, a pipe or a socket.
    """
    paths = [
        (parameter, Path(path))
        for parameter in ctx.command.params
        if isinstance(parameter.type, click.Path)
        for path in _values(ctx.params.get(parameter.name or ""))
    ]
    inputs = [path for parameter, path in paths if parameter.name not in WRITTEN]
    inputs += [path for path in [ctx.meta.get(CONFIG)] if path is not None]
    for path in inputs:
        _refuse_special(path)
    model = next((path for parameter, path in paths if parameter.name == "model"), None)
    outputs = [(parameter.opts[-1], path) for parameter, path in paths if parameter.name in WRITTEN]
    if ctx.command.name == "evaluate" and model is not None and ctx.params.get("tokenizer") is None:
        inputs.append(model.parent)  # the tokenizer is there
    if not any(parameter.name == "output" for parameter, _ in paths) and (default := _default(ctx, model)) is not None:
        outputs.append(("the output", default))
    written: dict[str, str] = {}
    for option, path in outputs:
        files, folder = _files(ctx, option, path, model)
        for file in files:
            _refuse_clash(option, file, written)
            if not folder:
                check_replaceable(file)
                _refuse_input(file, inputs, is_model=ctx.command.name in _WRITE_MODELS and option in _OUTPUT)
    _refuse_missing_folders(ctx, outputs)


def _values(value: object) -> Iterable[str | os.PathLike[str]]:
    values = value if isinstance(value, tuple) else (value,)
    return [item for item in values if isinstance(item, str | os.PathLike) and item != "-"]


def _default(ctx: click.Context, model: Path | None) -> Path | None:
    """Where a command writes that was not told."""
    if model is None or ctx.params.get("dry_run"):
        return None
    if ctx.command.name == "compress":
        named = model if model.name.strip(".") else model.resolve()  # "." and ".." have no name of their own
        return named.with_name(f"{named.name}.attnq" if model.is_dir() else f"{named.stem}.attnq.onnx")
    named_after = {"analyze": "analysis", "tune": "plan.json", "sweep": "sweep"}.get(ctx.command.name or "")
    return model.with_name(f"{model.stem}.{named_after}") if named_after and model.name else None


def _files(ctx: click.Context, option: str, path: Path, model: Path | None) -> tuple[tuple[Path, ...], bool]:
    """The files that become of an output; or the folder, where their names depend on what is read, and True."""
    command = ctx.command.name
    if option not in _OUTPUT:
        return (path,), False
    if command == "analyze":
        return tuple(path / name for name in _ANALYSIS), False
    if command == "sweep":
        return tuple(path / name for name in _SWEEP), False
    if command == "export" or (command == "compress" and model is not None and model.is_dir()):
        return (path,), True
    if command == "tune" and path.name:
        return (path, path.with_name(f"{path.name}.journal")), False
    if command in _WRITE_MODELS and path.name:
        models = [path]
        if ctx.params.get("keep_failed"):
            models.append(path.with_name(f"{path.stem}.failed{path.suffix}"))
        models += _tuning_files(ctx, path if option == "--output" else model or path)
        return (*models, *(file.with_name(f"{file.name}.data") for file in models)), False
    return (path,), False


def _tuning_files(ctx: click.Context, model: Path) -> list[Path]:
    """The plan and the journal of `onnx-attnq MODEL --max-loss`; the plan that was named is looked at as an option."""
    if ctx.params.get("max_loss") is None and ctx.params.get("min_pruned") is None:
        return []
    named = ctx.params.get("write_plan")
    plan = model.with_suffix(".plan.json") if named is None else Path(named)
    return [*([plan] if named is None else []), plan.with_name(f"{plan.name}.journal")]


def _refuse_clash(option: str, file: Path, written: dict[str, str]) -> None:
    place = os.path.join(os.path.realpath(file.parent), file.name)
    for other, owner in written.items():
        if owner != option and (place == other or place.startswith(other + os.sep) or other.startswith(place + os.sep)):
            raise CannotWrite(f"{option} {file}: {owner} writes there, too; name another file")
    written[place] = option


def _refuse_input(output: Path, inputs: Iterable[Path], *, is_model: bool) -> None:
    """An output that is not there yet overwrites nothing."""
    if not output.exists():
        return
    for path in inputs:
        if path.is_dir():
            if output.resolve().is_relative_to(path.resolve()):
                raise CannotWrite(f"{output} is a file of {path}, which is never overwritten; name another file")
        # `save` compares a model with the data files of its input itself, when it has read them.
        elif path.exists() and (output.samefile(path) or (not is_model and _is_data_of(path, output))):
            raise CannotWrite(f"{output} is an input, which is never overwritten; name another file")


def _refuse_missing_folders(ctx: click.Context, outputs: Iterable[tuple[str, Path]]) -> None:
    """What was not named lies beside the model, which the command looks for itself."""
    made: set[Path] = set()
    for option, path in outputs:
        if ctx.command.name in _MAKE_FOLDERS and option in _OUTPUT:
            made |= {path.absolute(), *path.absolute().parents}
    for option, path in outputs:
        folder = path.absolute().parent
        later = option != "--write-plan" and folder in made  # a plan is written first
        if option != "the output" and not later and not os.path.isdir(folder):
            raise CannotWrite(f"{option} {path}: the folder {path.parent} does not exist; make it first")


def _is_data_of(model: Path, file: Path) -> bool:
    """Whether a file has weights of a model. Only looked at for a file that exists in the model's folder."""
    if not any(file.resolve().is_relative_to(folder) for folder in (model.parent.resolve(), model.resolve().parent)):
        return False
    from onnx_attnq.errors import AttnqError
    from onnx_attnq.model import input_files, load

    try:
        return any(path.exists() and path.samefile(file) for path in input_files(load(model)))
    except AttnqError:
        return False  # no model, or one that the command will refuse


def _refuse_special(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # the command says it better
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidData(f"{path} is not a regular file; name one that is")


__all__ = ["CONFIG", "WRITTEN", "guard"]
