"""From a model of ``transformers`` to a folder with ONNX files, its tokenizer, and a check against PyTorch."""

from onnx_attnq.export.exporting import export
from onnx_attnq.export.result import ATOL, AttentionImplementation, Exported, Exporter

__all__ = ["ATOL", "AttentionImplementation", "Exported", "Exporter", "export"]
