"""The jobs that a user asks for in one call, and their stable JSON forms."""

from onnx_attnq.job.compression import Compression, compress
from onnx_attnq.job.folder import compress_folder
from onnx_attnq.job.stable_json import compression_json, file_json, folder_json, inspection_json
from onnx_attnq.job.timing import CONTROL, Timing, bench

__all__ = [
    "CONTROL",
    "Compression",
    "Timing",
    "bench",
    "compress",
    "compress_folder",
    "compression_json",
    "file_json",
    "folder_json",
    "inspection_json",
]
