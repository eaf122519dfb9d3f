"""The main job on a folder: every ONNX file of a model with several parts, and what lies beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from onnx_attnq.atomic import new_folder
from onnx_attnq.errors import CannotWrite, InvalidData, InvalidModel, NothingToRewrite
from onnx_attnq.inputs import load_samples, model_inputs
from onnx_attnq.job.compression import Compression, NotVerified, compress, plan_only
from onnx_attnq.job.genai import add_library
from onnx_attnq.model import load, save, tensors
from onnx_attnq.progress import Parts, Progress, no_progress
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import RunSettings
from onnx_attnq.verification import VerifySettings


@dataclasses.dataclass(frozen=True)
class FolderCompression:
    """The result of the main job on a folder.

    Attributes:
        source: The folder that was read.
        output: The folder that was written; None for a dry run, and where a part failed and was not kept.
        models: The models with attention, by name.
        untouched: The path of each model in which there was nothing to rewrite, and why. They were copied.
        skipped: What was not copied, and why: links that lead out of the folder, and what is no regular file.
        library: Of a folder of onnxruntime-genai, what was done with the native library, one sentence; None of others.
        given: The paths of the models that were verified with samples that were given.
    """

    source: Path
    output: Path | None
    models: tuple[Compression, ...]
    untouched: dict[Path, str]
    skipped: dict[Path, str]
    library: str | None = None
    given: frozenset[Path] = frozenset()


def compress_folder(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    rewriting: RewriteSettings = RewriteSettings(),
    verification: VerifySettings | None = VerifySettings(),
    data: Path | None = None,
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> FolderCompression:
    """Compress every ONNX file of a folder into a new folder, under the same names, and copy all other files.

    An export with several parts, such as an encoder, a decoder and a decoder with past key/values, thus becomes a
    folder that loads in the same way. Hidden files are left out. Nothing is written until all parts are done.

    A folder of onnxruntime-genai gets the native library, too, where it was built: see `job.genai`.

    Args:
        source: The folder, with its subfolders; never changed.
        output: A folder that does not exist yet, or is empty; FOLDER.attnq beside the source if None.
        rewriting: What to rewrite in each part, and into what.
        verification: How to verify each part; None to run no model.
        data: Samples to verify with: of the only model; or a folder with those of NAME.onnx in NAME.npz, or in the
            folder NAME. Models without get made-up ones.
        run: How to run the models.
        progress: Called after each run. The parts that were not begun count as many as the one that runs.

    Raises:
        NothingToRewrite: No part has anything to rewrite.
        AttnqError: As by `compress`; and there is no ONNX file, or the output is not empty or within the source.
    """
    source, parts = _parts(source)
    _check_names(parts, verification)
    named = source if source.name.strip(".") else source.resolve()  # "." and ".." have no name of their own
    target = named.with_name(f"{named.name}.attnq") if output is None else Path(output)
    if target.resolve().is_relative_to(source.resolve()):
        raise CannotWrite(f"{target} lies in {source}, which is never written to; give another folder")

    given = {} if data is None else _data_of(source, parts, data)
    runs = Parts(progress)

    def compress_part(part: Path) -> Compression:
        later = len(parts) - parts.index(part) - 1
        advance = runs.next(part.relative_to(source).as_posix(), lambda total: total * later)
        file = made / part.relative_to(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = _of_part(part, verification, given.get(part))
        return compress(part, file, rewriting=rewriting, verification=settings, run=run, progress=advance)

    written: Path | None = None
    with contextlib.suppress(NotVerified), new_folder(target) as made:
        weights = {path for part in parts for path in _external_data(part)}
        files, skipped = _contents(source)
        for file in files:
            if file.suffix != ".onnx" and file.resolve() not in weights:
                _copy(file, made / file.relative_to(source))
        models, untouched = _each(parts, compress_part)
        for part in untouched:
            _copy_model(part, made / part.relative_to(source))
        rewritten = [m.output.relative_to(made).as_posix() for m in models if m.record is not None and m.output]
        library = add_library(made, rewritten)
        written = target
        if any(model.failed for model in models):
            # All parts or none: a folder that lacks one, or has one that is wrong, loads as if it were whole.
            written = target.with_name(f"{target.name}.failed") if verification and verification.keep_failed else None
            if written is not None:
                with new_folder(written) as kept:
                    shutil.copytree(made, kept, dirs_exist_ok=True)
            raise NotVerified
    # The parts were written under the folder's temporary name.
    models = [
        dataclasses.replace(
            m, output=None if written is None or m.output is None else written / m.output.relative_to(made)
        )
        for m in models
    ]
    return FolderCompression(source, written, tuple(models), untouched, skipped, library, frozenset(given))


def plan_folder(source: str | os.PathLike[str], rewriting: RewriteSettings = RewriteSettings()) -> FolderCompression:
    """What `compress_folder` would do, without writing or running anything."""
    source, parts = _parts(source)
    models, untouched = _each(parts, lambda part: plan_only(part, rewriting))
    return FolderCompression(source, None, tuple(models), untouched, _contents(source)[1])


def _parts(source: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    files, skipped = _contents(Path(source))
    parts = [file for file in files if file.suffix == ".onnx"]
    if not parts:
        left_out = "".join(f"; {path}: {reason}" for path, reason in skipped.items() if path.suffix == ".onnx")
        raise InvalidModel(f"{source}: no ONNX file in this folder{left_out}")
    return Path(source), parts


def _each(parts: list[Path], do: Callable[[Path], Compression]) -> tuple[list[Compression], dict[Path, str]]:
    """The result of each part, and why there was nothing to rewrite in others."""
    models, untouched = [], {}
    for part in parts:
        try:
            models.append(do(part))
        except NothingToRewrite as reason:
            untouched[part] = str(reason).removeprefix(f"{part}: ")
    if not models:
        raise NothingToRewrite("; ".join(f"{path}: {reason}" for path, reason in untouched.items()))
    return models, untouched


def _check_names(parts: list[Path], verification: VerifySettings | None) -> None:
    if verification is None or not verification.input_shapes:
        return
    names = {entry.name for part in parts for entry in model_inputs(load(part))}
    if unknown := [name for name in verification.input_shapes if name not in names]:
        raise InvalidData(f"{unknown[0]!r} is not an input of any part; theirs are {', '.join(sorted(names))}")


def _data_of(source: Path, parts: list[Path], data: Path) -> dict[Path, Path]:
    """Where the samples of each part are, for those that have some."""
    if not data.exists():
        raise InvalidData(f"{data} does not exist")
    if len(parts) == 1 and not _of_name(source, parts[0], data):
        return {parts[0]: data}
    found = {part: place[0] for part in parts if (place := _of_name(source, part, data))}
    if not found:
        stem = parts[0].relative_to(source).with_suffix("")
        raise InvalidData(
            f"{data}: no samples by the name of one of the {len(parts)} models; those of {parts[0].name} are looked "
            f"for in {data / f'{stem}.npz'} and in the folder {data / stem}"
        )
    return found


def _of_name(source: Path, part: Path, data: Path) -> list[Path]:
    place = data / part.relative_to(source)
    return [path for path in (place.with_suffix(""), place.with_suffix(".npz")) if path.exists()]


def _of_part(part: Path, verification: VerifySettings | None, data: Path | None) -> VerifySettings | None:
    """With the samples of this part, and the shapes of the inputs that it has."""
    if verification is None or (data is None and not verification.input_shapes):
        return verification
    model = load(part)
    if data is not None:
        return dataclasses.replace(verification, samples=load_samples(data, model))
    names = {entry.name for entry in model_inputs(model)}
    shapes = {name: shape for name, shape in verification.input_shapes.items() if name in names}
    return dataclasses.replace(verification, input_shapes=shapes)


def _copy_model(part: Path, target: Path) -> None:
    if _external_data(part):
        target.parent.mkdir(parents=True, exist_ok=True)
        save(load(part), target)  # a copy of the file would refer to data that may lie elsewhere
    else:
        _copy(part, target)


def _contents(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Every file that is not hidden, in order; and what is left out, with the reason.

    A link may lead to anything that its reader may read, which is not to end up in a folder that is given away.
    """
    files, skipped = [], {}
    inside = _root(folder)
    try:
        paths = sorted(folder.rglob("*"))
    except OSError as error:
        raise InvalidModel(f"{folder} cannot be read: {error.strerror}") from None
    for path in paths:
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if not Path(os.path.realpath(path)).is_relative_to(inside):
            skipped[path] = "it is a symbolic link that leads out of the folder"
        elif path.is_file():
            files.append(path)
        elif path.is_symlink() or not path.is_dir():
            skipped[path] = "it is not a regular file"
    return files, skipped


def _root(folder: Path) -> Path:
    """The folder that links may lead to: the folder itself, or the model's folder in the cache of the hub.

    There, each file in snapshots/REVISION is a link to ../../blobs.
    """
    real = Path(os.path.realpath(folder))
    repository = real.parent.parent
    return repository if real.parent.name == "snapshots" and (repository / "blobs").is_dir() else real


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


__all__ = ["FolderCompression", "compress_folder", "plan_folder"]
