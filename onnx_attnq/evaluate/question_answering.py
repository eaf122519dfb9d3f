"""Extractive question answering: the span of a paragraph that answers a question; exact match and F1 of SQuAD v1.1."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Final

import numpy as np

from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.evaluate.data import Question, questions_from_rows, read_questions
from onnx_attnq.evaluate.records import FloatArray, Metric, mean_of
from onnx_attnq.evaluate.text_model import MAX_LENGTH, Array, TextModel
from onnx_attnq.extras import require
from onnx_attnq.progress import Examples, Progress, no_progress

STRIDE: Final = 128
"""Tokens that neighbouring windows of a long paragraph share, as in the scripts of BERT and ``transformers``."""
MAX_ANSWER: Final = 30
"""Tokens of an answer, as there."""
N_BEST: Final = 20
"""Start and end positions that are combined, as there."""


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionAnswering:
    """SQuAD v1.1. A long paragraph is cut into overlapping windows; the span with the best score of all is the answer.

    Records: exact match and F1 of each question, in percent, the best over its answers.
    """

    questions: tuple[Question, ...]
    max_length: int = MAX_LENGTH

    name: ClassVar = "question-answering"
    unit: ClassVar = "questions"
    format: ClassVar = "SQuAD v1.1 JSON"
    read: ClassVar = staticmethod(read_questions)
    from_rows: ClassVar = staticmethod(questions_from_rows)
    metrics: ClassVar = (Metric("EM", mean_of(0)), Metric("F1", mean_of(1)))

    def records(self, model: TextModel, progress: Progress = no_progress) -> FloatArray:
        """(questions, 2), float64.

        Raises:
            InvalidData: A question has no answer, which SQuAD v2.0 allows and v1.1 does not.
        """
        require("evaluate")
        from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

        if unanswered := [item.question for item in self.questions if not item.answers]:
            raise InvalidData(
                f"{len(unanswered)} question(s) without an answer, such as {unanswered[0]!r}: not SQuAD v1.1"
            )
        rows = []
        examples = Examples(len(self.questions), progress)
        for item in self.questions:
            found, windows = answer(model, item.question, item.context, self.max_length)
            rows.append(
                [100.0 * max(score(gold, found) for gold in item.answers) for score in (compute_exact, compute_f1)]
            )
            examples.advance(self.name, windows)
        return np.array(rows, dtype=np.float64)


def answer(model: TextModel, question: str, context: str, max_length: int = MAX_LENGTH) -> tuple[str, int]:
    """The span of ``context`` with the highest sum of start and end logit, over all windows; and how many these are."""
    tokens = model.tokenizer(
        question.strip(),
        context,
        truncation="only_second",
        max_length=max_length,
        stride=min(STRIDE, max_length // 4),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best, text = -np.inf, ""
    for window in range(len(tokens["input_ids"])):
        outputs = model.run({name: [tokens[name][window]] for name in model.tokenizer.model_input_names})
        if not {"start_logits", "end_logits"} <= outputs.keys():
            raise InvalidModel(f"no outputs 'start_logits' and 'end_logits'; the outputs are {', '.join(outputs)}")
        in_context = np.array([part == 1 for part in tokens.sequence_ids(window)])
        score, first, last = _best_span(outputs["start_logits"][0], outputs["end_logits"][0], in_context)
        if score > best:
            offsets = tokens["offset_mapping"][window]
            best, text = score, context[offsets[first][0] : offsets[last][1]]
    return text, len(tokens["input_ids"])


def _best_span(start: Array, end: Array, allowed: Array) -> tuple[float, int, int]:
    start, end = (np.where(allowed, logits.astype(np.float64), -np.inf) for logits in (start, end))
    best = (-np.inf, 0, 0)
    for first in np.argsort(-start, kind="stable")[:N_BEST].tolist():
        for last in np.argsort(-end, kind="stable")[:N_BEST].tolist():
            if first <= last < first + MAX_ANSWER and (score := float(start[first] + end[last])) > best[0]:
                best = (score, first, last)
    return best


__all__ = ["QuestionAnswering", "answer"]
