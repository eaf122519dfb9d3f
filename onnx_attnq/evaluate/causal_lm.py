"""Causal language modelling: each token is predicted from those before it; perplexity."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate.data import read_texts, texts_from_rows
from onnx_attnq.evaluate.records import FloatArray, Metric, exp_ratio_of, ratio_of
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Progress, no_progress


@dataclasses.dataclass(frozen=True, slots=True)
class CausalLanguageModelling:
    """Perplexity of the texts, joined by newlines, in windows of ``max_length`` tokens.

    Neighbouring windows overlap by half. A window scores only the tokens that none before it scored, so that each token
    but those of the first window has at least half a window before it.

    Records: of each window the summed negative log-likelihood in nats, the tokens predicted right, the tokens scored.
    """

    texts: tuple[str, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "text-generation"
    unit: ClassVar = "windows"
    format: ClassVar = "plain text"
    read: ClassVar = staticmethod(read_texts)
    from_rows: ClassVar = staticmethod(texts_from_rows)
    metrics: ClassVar = (
        Metric("perplexity", exp_ratio_of(0, 2), higher_is_better=False),
        Metric("accuracy", ratio_of(1, 2)),
    )

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(windows, 3), float64.

        Raises:
            InvalidData: The texts have fewer than two tokens.
        """
        require("evaluate")
        from scipy.special import log_softmax

        ids = np.array(model.tokenizer("\n".join(self.texts), add_special_tokens=False, verbose=False)["input_ids"])
        if len(ids) < 2:
            raise InvalidData(f"the texts have {len(ids)} token(s); there is nothing to predict")
        windows = self.windows(len(ids))
        rows = []
        for done, (start, first, stop) in enumerate(windows, start=1):
            logits = model.logits({"input_ids": ids[None, start:stop]})[0, first - start - 1 : -1]
            predicted = ids[first:stop]
            nll = -log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(predicted)), predicted].sum()
            rows.append([nll, (logits.argmax(axis=-1) == predicted).sum(), len(predicted)])
            progress(self.name, done, len(windows))
        return np.array(rows, dtype=np.float64)

    def windows(self, tokens: int) -> list[tuple[int, int, int]]:
        """(start, first token that it scores, stop) of each window of so many tokens.

        >>> CausalLanguageModelling((), max_length=4).windows(10)
        [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
        """
        return _windows(tokens, self.max_length)


def _windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """(start of the window, first token that it scores, its stop); together they score tokens 1 to count - 1 once.

    >>> _windows(10, 4)
    [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    """
    windows = [(0, 1, min(length, count))]
    while (scored := windows[-1][2]) < count:
        stop = min(scored + length // 2, count)
        windows.append((stop - length, scored, stop))
    return windows


__all__ = ["CausalLanguageModelling"]
