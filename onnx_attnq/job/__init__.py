"""The jobs that a user asks for in one call, and their stable JSON forms."""

from onnx_attnq.job.compression import Compression, compress, output_of, plan_only
from onnx_attnq.job.folder import FolderCompression, compress_folder, plan_folder
from onnx_attnq.job.stable_json import compression_json, file_json, folder_json, inspection_json
from onnx_attnq.job.timing import CONTROL, Timing, TimingSettings, bench
from onnx_attnq.job.weights import WeightCompression, compress_weights

__all__ = [
    "CONTROL",
    "Compression",
    "FolderCompression",
    "Timing",
    "TimingSettings",
    "WeightCompression",
    "bench",
    "compress",
    "compress_folder",
    "compress_weights",
    "compression_json",
    "file_json",
    "folder_json",
    "inspection_json",
    "output_of",
    "plan_folder",
    "plan_only",
]
