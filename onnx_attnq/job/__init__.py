"""The jobs that a user asks for in one call, and their stable JSON forms."""

from onnx_attnq.job.compression import Compression, compress, plan_only
from onnx_attnq.job.folder import FolderCompression, compress_folder, plan_folder
from onnx_attnq.job.stable_json import compression_json, file_json, folder_json, inspection_json
from onnx_attnq.job.timing import CONTROL, Timing, TimingSettings, bench

__all__ = [
    "CONTROL",
    "Compression",
    "FolderCompression",
    "Timing",
    "TimingSettings",
    "bench",
    "compress",
    "compress_folder",
    "compression_json",
    "file_json",
    "folder_json",
    "inspection_json",
    "plan_folder",
    "plan_only",
]
