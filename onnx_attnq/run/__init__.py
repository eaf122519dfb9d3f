"""Running models in onnxruntime, with or without the native library. The only package that imports onnxruntime."""

from onnx_attnq.run.cpu_times import cpu_times
from onnx_attnq.run.memory import OneRun, give_memory_back, machine_memory, peak_memory
from onnx_attnq.run.native import native_library
from onnx_attnq.run.sessions import Arrays, Session, session
from onnx_attnq.run.settings import MEMORY, RunSettings
from onnx_attnq.run.transformer_optimizer import optimize_transformer
from onnx_attnq.run.weight_quantizers import WEIGHTS, quantize_weights

__all__ = [
    "MEMORY",
    "WEIGHTS",
    "Arrays",
    "OneRun",
    "RunSettings",
    "Session",
    "cpu_times",
    "give_memory_back",
    "machine_memory",
    "native_library",
    "optimize_transformer",
    "peak_memory",
    "quantize_weights",
    "session",
]
