"""A text model as the tasks see it: a tokenizer, and an ONNX model that takes what the tokenizer gives."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.errors import InvalidData, InvalidModel, first_line
from onnx_attnq.extras import require
from onnx_attnq.inputs import ModelInput, Sample, model_inputs
from onnx_attnq.model import load
from onnx_attnq.run import RunSettings, Session

Array = npt.NDArray[Any]

MAX_LENGTH: Final = 320
"""Tokens of one window; what Ji et al. 2021 used for SQuAD (section 3)."""


@dataclasses.dataclass(frozen=True, slots=True)
class TextModel:
    """An ONNX model and the tokenizer that belongs to it.

    Attributes:
        session: Runs one sample, an array for each input by name, and returns every output by name.
        inputs: What it must be fed.
        tokenizer: A tokenizer of ``transformers``.
    """

    session: Callable[[Sample], Mapping[str, Array]]
    inputs: tuple[ModelInput, ...]
    tokenizer: Any

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizer: Any, *, run: RunSettings = RunSettings()) -> TextModel:
        """A model that onnxruntime runs.

        Args:
            path: The ONNX file.
            tokenizer: As `load_tokenizer` gives it.
            run: Threads and custom ops.

        Raises:
            InvalidModel: Not a model, or none that onnxruntime takes.
        """
        return cls(Session(path, run).run, model_inputs(load(path)), tokenizer)

    def sample(self, tokens: Mapping[str, Any]) -> Sample:
        """What the model is fed for one batch of texts with the same number of tokens, so that nothing is padded.

        Args:
            tokens: ``input_ids`` (B, L), and what else the tokenizer gives. Inputs that follow from it are made up:
                a mask of ones, positions 0 … L - 1, token types of zero, and a past of length 0.

        Raises:
            InvalidModel: The model has an input that does not follow from the tokens.
            InvalidData: The model has fixed shapes that the tokens do not have.
        """
        ids = np.asarray(tokens["input_ids"])
        feeds = {}
        for item in self.inputs:
            feed = _feed(item, ids, tokens).astype(item.dtype)
            axes = zip(item.shape or (), feed.shape, strict=False)
            if any(isinstance(axis, int) and axis != size for axis, size in axes):
                raise InvalidData(
                    f"input {item.name!r} is {item}, the tokens need {list(feed.shape)}; export with dynamic axes"
                )
            feeds[item.name] = feed
        return feeds

    def run(self, tokens: Mapping[str, Any]) -> Mapping[str, Array]:
        """Every output for one batch of tokens; see `sample`."""
        return self.session(self.sample(tokens))

    def logits(self, tokens: Mapping[str, Any], last_axis: int | None = None) -> Array:
        """The output ``logits`` of `run`, or the only output.

        Raises:
            InvalidModel: There is no such output, or its last axis is not ``last_axis`` long.
        """
        outputs = self.run(tokens)
        logits = outputs.get("logits", next(iter(outputs.values())) if len(outputs) == 1 else None)
        if logits is None:
            raise InvalidModel(f"no output 'logits'; the outputs are {', '.join(outputs)}")
        if last_axis is not None and logits.shape[-1] != last_axis:
            raise InvalidModel(f"the logits are {list(logits.shape)}, but the tokenizer has {last_axis} tokens")
        return logits


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The tokenizer that was saved in ``folder``, by ``transformers``.

    Raises:
        MissingExtra: ``transformers`` is not installed.
        InvalidData: The folder has no tokenizer.
    """
    require("evaluate")
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise InvalidData(f"{folder}: no such folder; give the folder that has the tokenizer's files")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers has an error of its own for each file that it looks for
        raise InvalidData(f"{folder}: no tokenizer there ({first_line(error)})") from error


def _feed(item: ModelInput, ids: Array, tokens: Mapping[str, Any]) -> Array:
    if item.name in tokens:
        return np.asarray(tokens[item.name])
    batch, length = ids.shape
    match item.name:
        case "attention_mask":
            return np.ones_like(ids)
        case "position_ids":
            return np.broadcast_to(np.arange(length), ids.shape)
        case "token_type_ids":
            return np.zeros_like(ids)
        case "use_cache_branch":  # a merged decoder of optimum: False is the branch without a past
            return np.array([False])
    if item.name.startswith("past_key_values") and item.shape is not None and len(item.shape) == 4:
        # (batch, heads, past, head size): the axes that have no fixed length are the batch and the past
        return np.zeros([axis if isinstance(axis, int) else batch * (i == 0) for i, axis in enumerate(item.shape)])
    raise InvalidModel(f"input {item.name!r} is not known for a text model")


__all__ = ["MAX_LENGTH", "Array", "TextModel", "load_tokenizer"]
