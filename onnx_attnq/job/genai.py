"""Folders of onnxruntime-genai: put the native library where it is looked for, and say so in genai_config.json.

genai finds a library of custom ops only in the folder of the model, by a relative name in the session options of the
part that needs it. Without that line, and without the library, the same folder runs on the standard ops.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from onnx_attnq.errors import InvalidModel
from onnx_attnq.reading import parse_json, read_regular
from onnx_attnq.run import native_library

CONFIG: Final = "genai_config.json"
_OPTION: Final = "custom_ops_library"


def add_library(folder: Path, rewritten: Collection[str]) -> str | None:
    """Give the parts that were rewritten the native library, in place.

    Args:
        folder: With genai_config.json; others are left alone.
        rewritten: File names of the models.

    Returns:
        What was done, or why nothing was: one sentence. None where this is no folder of genai.

    Raises:
        InvalidModel: The configuration is not JSON.
    """
    place, library = folder / CONFIG, native_library()
    if not place.is_file():
        return None
    try:
        config = parse_json(read_regular(place))
    except ValueError as error:
        raise InvalidModel(f"{place} is not JSON: {error}") from None
    parts = [part for part in _parts(config) if part["filename"] in rewritten]
    if not parts:
        return None
    if library is None:
        return f"{CONFIG} names no library, since none was built here; the folder runs on the standard ops"
    others = {options[_OPTION] for part in parts if (options := part.get("session_options") or {}).get(_OPTION)}
    if others:
        return f"{CONFIG} names {sorted(others)[0]} already; genai takes one library, so the standard ops run"
    for part in parts:
        part["session_options"] = {**(part.get("session_options") or {}), _OPTION: library.name}
    shutil.copyfile(library, folder / library.name)
    place.write_text(json.dumps(config, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"{library.name} was copied beside the model, and {CONFIG} names it; without that line the standard ops run"


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """The entries of a configuration that name a model file: a decoder, an encoder, the stages of a pipeline."""
    if isinstance(config, dict):
        if isinstance(config.get("filename"), str):
            yield config
        for value in config.values():
            yield from _parts(value)
    elif isinstance(config, list):
        for value in config:
            yield from _parts(value)


__all__ = ["CONFIG", "add_library"]
