"""Masked language modelling: each token is masked in turn and predicted; pseudo-perplexity and accuracy."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

import numpy as np

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate.data import read_texts, texts_from_rows
from onnx_attnq.evaluate.records import FloatArray, Metric, exp_ratio_of, ratio_of
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Examples, Progress, no_progress

BATCH: Final = 16
"""Copies of a text, each with another token masked, in one run. They have the same length, so nothing is padded."""


@dataclasses.dataclass(frozen=True, slots=True)
class MaskedLanguageModelling:
    """Pseudo-perplexity (Salazar et al. 2020, arXiv 1910.14659): exp of the mean NLL of each token given all others.

    Records: of each text the summed negative log-likelihood in nats, the tokens predicted right, the tokens.
    """

    texts: tuple[str, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "fill-mask"
    unit: ClassVar = "texts"
    format: ClassVar = "plain text, one example a line"
    read: ClassVar = staticmethod(read_texts)
    from_rows: ClassVar = staticmethod(texts_from_rows)
    metrics: ClassVar = (
        Metric("pseudo-perplexity", exp_ratio_of(0, 2), higher_is_better=False),
        Metric("accuracy", ratio_of(1, 2)),
    )

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(texts, 3), float64.

        Raises:
            InvalidData: The tokenizer has no mask token.
        """
        require("evaluate")
        from scipy.special import log_softmax

        mask = model.tokenizer.mask_token_id
        if mask is None:
            raise InvalidData("the tokenizer has no mask token: not a masked language model")
        rows = []
        examples = Examples(len(self.texts), progress)
        for text in self.texts:
            tokens = model.tokenizer(
                [text], truncation=True, max_length=self.max_length, return_special_tokens_mask=True
            )
            ids = np.array(tokens["input_ids"][0])
            positions = np.flatnonzero(np.array(tokens.pop("special_tokens_mask")[0]) == 0)
            nll, right = 0.0, 0
            for first in range(0, len(positions), BATCH):
                chosen = positions[first : first + BATCH]
                copies = np.tile(ids, (len(chosen), 1))
                copies[np.arange(len(chosen)), chosen] = mask
                repeated = {name: np.repeat(np.array(tokens[name]), len(chosen), axis=0) for name in tokens}
                logits = model.logits(repeated | {"input_ids": copies})[np.arange(len(chosen)), chosen]
                nll -= log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(chosen)), ids[chosen]].sum()
                right += int((logits.argmax(axis=-1) == ids[chosen]).sum())
            rows.append([nll, right, len(positions)])
            examples.advance(self.name, -(-len(positions) // BATCH))
        return np.array(rows, dtype=np.float64)


__all__ = ["MaskedLanguageModelling"]
