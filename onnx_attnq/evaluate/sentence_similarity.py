"""Sentence similarity: cosine of two embeddings against human scores; Spearman's rank correlation."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from onnx_attnq.evaluate.data import Pair, pairs_from_rows, read_pairs
from onnx_attnq.evaluate.embedding import embed
from onnx_attnq.evaluate.records import FloatArray, Metric
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Progress, Steps, no_progress


def spearman(records: FloatArray) -> float:
    """Spearman's rank correlation of the first two columns, by scipy.

    >>> spearman(np.array([[1.0, 0.1], [2.0, 0.2], [3.0, 0.9]]))
    1.0
    """
    from scipy.stats import spearmanr

    return float(spearmanr(records[:, 0], records[:, 1]).statistic)


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceSimilarity:
    """STS-B.

    Records: the human score of each pair, and the cosine of the two embeddings.
    """

    pairs: tuple[Pair, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "sentence-similarity"
    unit: ClassVar = "pairs"
    format: ClassVar = "STS-B: CSV sentence, sentence, score"
    read: ClassVar = staticmethod(read_pairs)
    from_rows: ClassVar = staticmethod(pairs_from_rows)
    metrics: ClassVar = (Metric("Spearman", spearman),)

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(pairs, 2), float64."""
        require("evaluate")
        rows = []
        runs = Steps(2 * len(self.pairs), progress)
        for pair in self.pairs:
            cosine = embed(model, pair.first, self.max_length) @ embed(model, pair.second, self.max_length)
            rows.append([pair.score, cosine])
            runs.advance(self.name, 2)
        return np.array(rows, dtype=np.float64)


__all__ = ["SentenceSimilarity", "spearman"]
