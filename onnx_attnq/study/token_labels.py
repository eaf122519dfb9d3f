"""Labels for token ids, read from a tokenizer's own files without its library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from onnx_attnq.errors import InvalidData
from onnx_attnq.reading import read_regular

SEPARATORS: Final = frozenset({"[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>", "<sep>"})
"""How tokenizers write the token between or after texts."""

_MARKS: Final = str.maketrans({"Ġ": "␣", "▁": "␣", "Ċ": "⏎"})
"""Byte-level BPE and SentencePiece mark a leading space with letters that fonts show as something else."""


def load_token_labels(path: str | os.PathLike[str]) -> dict[int, str]:
    """Labels by token id.

    Args:
        path: A tokenizer.json of Hugging Face tokenizers, a vocab.json, a vocab.txt with one token a line, or a folder
            with one of these.

    Raises:
        InvalidData: There is no such file, or it is something else.
    """
    file = _find(Path(path))
    try:
        text = read_regular(file).decode()
        if file.suffix == ".txt":
            vocabulary: Mapping[str, Any] = {token: index for index, token in enumerate(text.splitlines())}
        else:
            vocabulary = _vocabulary(json.loads(text))
        return {int(index): token.translate(_MARKS) for token, index in vocabulary.items()}
    except FileNotFoundError:
        raise InvalidData(f"{file} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidData(f"{file} is no tokenizer.json, vocab.json or vocab.txt: {error}") from None


def separator_ids(labels: Mapping[int, str]) -> tuple[int, ...]:
    """The ids of the separator tokens among the labels.

    >>> separator_ids({0: "[CLS]", 1: "the", 2: "[SEP]"})
    (2,)
    """
    return tuple(index for index, label in sorted(labels.items()) if label in SEPARATORS)


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "vocab.json", "vocab.txt"):
        if (path / name).exists():
            return path / name
    raise InvalidData(f"{path} has no tokenizer.json, vocab.json or vocab.txt")


def _vocabulary(data: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token: of a vocab.json as it is, of a tokenizer.json from its model and its added tokens."""
    if "model" not in data or not isinstance(data["model"], Mapping):
        return dict(data)
    model = data["model"]["vocab"]
    # Unigram models have a list of [token, score] in the order of the ids.
    vocabulary = {entry[0]: index for index, entry in enumerate(model)} if isinstance(model, list) else dict(model)
    return vocabulary | {token["content"]: token["id"] for token in data.get("added_tokens", ())}


__all__ = ["SEPARATORS", "load_token_labels", "separator_ids"]
