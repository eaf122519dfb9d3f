"""Tasks with a metric, on an original and a compressed model: one module per task.

>>> from onnx_attnq.evaluate import TASKS
>>> sorted(TASKS)[0]
'fill-mask'
"""

from __future__ import annotations

from onnx_attnq.evaluate.attention import AttentionFigures, attention_figures
from onnx_attnq.evaluate.bootstrap import RESAMPLES, SEED, Bootstrap, Comparison, Interval, compare, interval
from onnx_attnq.evaluate.causal_lm import CausalLanguageModelling
from onnx_attnq.evaluate.evaluation import CompressedModel, Evaluation, evaluate
from onnx_attnq.evaluate.masked_lm import MaskedLanguageModelling
from onnx_attnq.evaluate.question_answering import QuestionAnswering
from onnx_attnq.evaluate.records import Metric
from onnx_attnq.evaluate.retrieval import Retrieval
from onnx_attnq.evaluate.sentence_similarity import SentenceSimilarity
from onnx_attnq.evaluate.task import TASKS, Task, load_task, task_from_hub
from onnx_attnq.evaluate.text_classification import TextClassification
from onnx_attnq.evaluate.text_model import MAX_LENGTH, TextModel, load_tokenizer

__all__ = [
    "MAX_LENGTH",
    "RESAMPLES",
    "SEED",
    "TASKS",
    "AttentionFigures",
    "Bootstrap",
    "CausalLanguageModelling",
    "Comparison",
    "CompressedModel",
    "Evaluation",
    "Interval",
    "MaskedLanguageModelling",
    "Metric",
    "QuestionAnswering",
    "Retrieval",
    "SentenceSimilarity",
    "Task",
    "TextClassification",
    "TextModel",
    "attention_figures",
    "compare",
    "evaluate",
    "interval",
    "load_task",
    "load_tokenizer",
    "task_from_hub",
]
