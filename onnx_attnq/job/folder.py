"""The main job on a folder: every ONNX file of a model with several parts, and what lies beside them."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_attnq.atomic import new_folder
from onnx_attnq.errors import CannotWrite, InvalidModel, NothingToRewrite
from onnx_attnq.job.compression import Compression, compress
from onnx_attnq.model import load, save, tensors


@dataclasses.dataclass(frozen=True)
class FolderCompression:
    """What came of the main job on a folder.

    Attributes:
        source: The folder that was read.
        output: The folder that was written; None for a dry run.
        models: The models with attention, by name.
        untouched: The path of each model in which there was nothing to rewrite, and why. They were copied.
    """

    source: Path
    output: Path | None
    models: tuple[Compression, ...]
    untouched: dict[Path, str]


def compress_folder(
    source: str | os.PathLike[str], output: str | os.PathLike[str] | None = None, **options: Any
) -> FolderCompression:
    """Compress every ONNX file of a folder into a new folder, under the same names, and copy all other files.

    An export with several parts, such as an encoder, a decoder and a decoder with past key/values, thus becomes a
    folder that loads in the same way. Hidden files are left out. Nothing is written until all parts are done.

    Args:
        source: The folder, with its subfolders; never changed.
        output: A folder that does not exist yet, or is empty; FOLDER.attnq beside the source if None.
        options: What `compress` takes, for each part. External data is always copied.

    Raises:
        NothingToRewrite: No part has anything to rewrite.
        AttnqError: As by `compress`; and there is no ONNX file, or the output is not empty or within the source.
    """
    source = Path(source)
    named = source if source.name.strip(".") else source.resolve()  # "." and ".." have no name of their own
    target = named.with_name(f"{named.name}.attnq") if output is None else Path(output)
    if target.resolve().is_relative_to(source.resolve()):
        raise CannotWrite(f"{target} lies in {source}, which is never written to; give another folder")
    files = _files(source)
    parts = [file for file in files if file.suffix == ".onnx"]
    if not parts:
        raise InvalidModel(f"{source}: no ONNX file in this folder")
    if options.get("dry_run"):
        return _compress_parts(source, None, parts, options)
    with new_folder(target) as made:
        weights = {path for part in parts for path in _external_data(part)}
        for file in files:
            if file.suffix != ".onnx" and file.resolve() not in weights:
                _copy(file, made / file.relative_to(source))
        result = _compress_parts(source, made, parts, options)
    # The parts were written under the folder's temporary name.
    models = tuple(dataclasses.replace(m, output=target / m.source.relative_to(source)) for m in result.models)
    return dataclasses.replace(result, output=target, models=models)


def _compress_parts(source: Path, output: Path | None, parts: list[Path], options: dict[str, Any]) -> FolderCompression:
    models, untouched = [], {}
    for part in parts:
        made = None if output is None else output / part.relative_to(source)
        if made is not None:
            made.parent.mkdir(parents=True, exist_ok=True)
        try:
            models.append(compress(part, made, **options))
        except NothingToRewrite as reason:
            untouched[part] = str(reason).removeprefix(f"{part}: ")
            if made is None:
                continue
            if _external_data(part):
                save(load(part), made)  # a copy of the file would refer to data that may lie elsewhere
            else:
                _copy(part, made)
    if not models:
        raise NothingToRewrite("; ".join(f"{path}: {reason}" for path, reason in untouched.items()))
    return FolderCompression(source, output, tuple(models), untouched)


def _files(folder: Path) -> list[Path]:
    """Every file that is not hidden, in order."""
    try:
        return sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    except OSError as error:
        raise InvalidModel(f"{folder} cannot be read: {error.strerror}") from None


def _external_data(part: Path) -> set[Path]:
    """The data files of a model, without symbolic links."""
    return {Path(tensor.path).resolve() for tensor in tensors(load(part)) if isinstance(tensor, ir.ExternalTensor)}


def _copy(file: Path, target: Path) -> None:
    """Copy what is in a file, also where it is a link: the copy of one could lead nowhere."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    except OSError as error:
        raise CannotWrite(f"cannot copy {file}: {error.strerror}") from error


__all__ = ["FolderCompression", "compress_folder"]
