"""What MODEL names when it is no ONNX file: a model of transformers, which is exported first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from onnx_attnq.errors import InvalidModel, MissingExtra

_ON_THE_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME, as the hub calls its models."""

_BARE_NAME: Final = re.compile(r"[\w-]+(\.[\w-]+)*")

_WEIGHTS: Final = ("*.safetensors", "*.bin")
"""How transformers calls the weights that lie beside config.json."""

_ONNX: Final = frozenset({".onnx", ".ort", ".pb"})


def is_transformers_model(model: Path) -> bool:
    """Whether this is a folder of transformers without ONNX files, or may be the name of a model on the hub.

    Raises:
        InvalidModel: There is no such file, but a model of the hub may have this name.
    """
    if model.is_dir():
        weights = any(next(model.glob(pattern), None) is not None for pattern in _WEIGHTS)
        return weights and (model / "config.json").is_file() and next(model.rglob("*.onnx"), None) is None
    if model.exists() or model.suffix in _ONNX:
        return False
    name = model.as_posix()
    if _BARE_NAME.fullmatch(name):
        raise InvalidModel(
            f"{name} does not exist; if it is a model of the hub, export it first: "
            f"onnx-attnq export {name} -o {name}-onnx --compress"
        )
    return _ON_THE_HUB.fullmatch(name) is not None and not model.parent.exists()


def export_first(model: Path, *, quiet: bool) -> Path:
    """Export a model of transformers to a folder NAME-onnx: beside its own, or in the working directory.

    Args:
        model: A folder, or OWNER/NAME on the hub.
        quiet: Print nothing.

    Returns:
        The ONNX file; or the folder, where the model has several parts.

    Raises:
        AttnqError: There is no such model, the extra ``export`` is missing, or the export failed.
    """
    from onnx_attnq.export import export

    folder = Path(f"{model.resolve()}-onnx") if model.is_dir() else Path(f"{model.name}-onnx")
    try:
        made = export(model.as_posix(), folder)
    except MissingExtra as error:
        raise MissingExtra(f"{model.as_posix()} is no ONNX model and has to be exported first: {error}") from None
    if not quiet:
        for name in made.files:
            click.echo(f"Wrote {folder / name} ({made.task}, by {made.exporter}, equal to PyTorch)")
    return folder / made.files[0] if len(made.files) == 1 else folder


__all__ = ["export_first", "is_transformers_model"]
