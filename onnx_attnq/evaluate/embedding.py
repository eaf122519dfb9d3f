"""Sentence embeddings: what similarity and retrieval compare."""

from __future__ import annotations

from typing import Final

import numpy as np

from onnx_attnq.errors import InvalidModel
from onnx_attnq.evaluate.records import FloatArray
from onnx_attnq.evaluate.text_model import TextModel

EMBEDDING: Final = "sentence_embedding"
"""The output that an export of a sentence-transformers model has, pooled as the model's authors did."""
HIDDEN: Final = ("last_hidden_state", "token_embeddings")


def embed(model: TextModel, text: str, max_length: int) -> FloatArray:
    """The embedding of one text, (D,), float64, length 1.

    It is the model's own sentence embedding where it has that output, otherwise the mean of its last hidden states.

    Raises:
        InvalidModel: The model has neither.
    """
    outputs = model.run(model.tokenizer([text], truncation=True, max_length=max_length))
    if EMBEDDING in outputs:
        vector = outputs[EMBEDDING][0].astype(np.float64)
    else:
        hidden = next((outputs[name] for name in HIDDEN if name in outputs), None)
        if hidden is None:
            raise InvalidModel(f"no output {EMBEDDING!r} or {HIDDEN[0]!r}; the outputs are {', '.join(outputs)}")
        vector = hidden[0].astype(np.float64).mean(axis=0)
    return np.asarray(vector / np.linalg.norm(vector))


__all__ = ["embed"]
