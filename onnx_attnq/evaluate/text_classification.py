"""Text classification: the class with the largest logit; accuracy."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from onnx_attnq.errors import InvalidData
from onnx_attnq.evaluate.data import LabelledText, labelled_texts_from_rows, read_labelled_texts
from onnx_attnq.evaluate.records import FloatArray, Metric, mean_of
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Progress, no_progress


@dataclasses.dataclass(frozen=True, slots=True)
class TextClassification:
    """SST-2 and whatever else has one text and one class.

    Accuracy can hide damage, so the negative log-likelihood of the right class is reported beside it.

    Records: 1 where the class is right; negative log-likelihood of the right class in nats.
    """

    texts: tuple[LabelledText, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "text-classification"
    unit: ClassVar = "texts"
    format: ClassVar = "SST-2: TSV with sentence and label"
    read: ClassVar = staticmethod(read_labelled_texts)
    from_rows: ClassVar = staticmethod(labelled_texts_from_rows)
    metrics: ClassVar = (Metric("accuracy", mean_of(0)), Metric("NLL", mean_of(1), higher_is_better=False))

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(texts, 2), float64.

        Raises:
            InvalidData: A label is not a class of the model.
        """
        require("evaluate")
        from scipy.special import log_softmax

        rows = []
        for done, item in enumerate(self.texts, start=1):
            tokens = model.tokenizer([item.text], truncation=True, max_length=self.max_length)
            log_probabilities = log_softmax(model.logits(tokens)[0].astype(np.float64))
            if not 0 <= item.label < len(log_probabilities):
                raise InvalidData(f"label {item.label} in the data, but the model has {len(log_probabilities)} classes")
            rows.append([float(log_probabilities.argmax() == item.label), -log_probabilities[item.label]])
            progress(self.name, done, len(self.texts))
        return np.array(rows, dtype=np.float64)


__all__ = ["TextClassification"]
