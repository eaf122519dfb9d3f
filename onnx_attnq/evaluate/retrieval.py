"""Passage retrieval: which paragraph holds the answer, by the cosine of embeddings; accuracy at 1 and MRR."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from onnx_attnq.evaluate.data import Question, questions_from_rows, read_questions
from onnx_attnq.evaluate.embedding import embed
from onnx_attnq.evaluate.records import FloatArray, Metric, mean_of
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Progress, no_progress


@dataclasses.dataclass(frozen=True, slots=True)
class Retrieval:
    """Every question against every paragraph of the data; the paragraph that it was asked about is the right one.

    Records: 1 where the right paragraph is nearest; the reciprocal of its rank.
    """

    questions: tuple[Question, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "retrieval"
    unit: ClassVar = "questions"
    format: ClassVar = "SQuAD v1.1 JSON, such as XQuAD"
    read: ClassVar = staticmethod(read_questions)
    from_rows: ClassVar = staticmethod(questions_from_rows)
    metrics: ClassVar = (Metric("accuracy@1", mean_of(0)), Metric("MRR", mean_of(1)))

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(questions, 2), float64."""
        require("evaluate")
        from sklearn.metrics import label_ranking_average_precision_score

        paragraphs = tuple(dict.fromkeys(item.context for item in self.questions))
        total = len(paragraphs) + len(self.questions)
        embedded = []
        for text in (*paragraphs, *(item.question for item in self.questions)):
            embedded.append(embed(model, text, self.max_length))
            progress(self.name, len(embedded), total)
        cosines = np.stack(embedded[len(paragraphs) :]) @ np.stack(embedded[: len(paragraphs)]).T
        rows = []
        for item, row in zip(self.questions, cosines, strict=True):
            right = np.array([[paragraph == item.context for paragraph in paragraphs]])
            # With one right paragraph the average precision of a ranking is the reciprocal rank.
            reciprocal_rank = float(label_ranking_average_precision_score(right, row[None]))
            rows.append([float(reciprocal_rank == 1.0), reciprocal_rank])
        return np.array(rows, dtype=np.float64)


__all__ = ["Retrieval"]
