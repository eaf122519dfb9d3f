"""Running models in onnxruntime, with or without the native library. The only package that imports onnxruntime."""

from onnx_attnq.run.native import native_library
from onnx_attnq.run.sessions import Arrays, Session, optimize_transformer, session
from onnx_attnq.run.settings import MEMORY, RunSettings

__all__ = ["MEMORY", "Arrays", "RunSettings", "Session", "native_library", "optimize_transformer", "session"]
