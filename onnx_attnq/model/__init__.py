"""Model files: loaded, checked, saved, and named by their structure."""

from onnx_attnq.model.external_data import set_reference
from onnx_attnq.model.files import (
    ExternalData,
    check_output,
    input_files,
    load,
    opset,
    recheck,
    save,
    sha256,
    size_on_disk,
    tensors,
    without_old_data,
)
from onnx_attnq.model.structure_hash import SMALL_TENSOR, structure_hash
from onnx_attnq.model.weights_in_file import WeightInFile, bare_proto, place_of, same_bytes, sharing_weights
from onnx_attnq.model.wellformed import MAX_RANK, check_tensor

__all__ = [
    "MAX_RANK",
    "SMALL_TENSOR",
    "ExternalData",
    "WeightInFile",
    "bare_proto",
    "check_output",
    "check_tensor",
    "input_files",
    "load",
    "opset",
    "place_of",
    "recheck",
    "same_bytes",
    "save",
    "set_reference",
    "sha256",
    "sharing_weights",
    "size_on_disk",
    "structure_hash",
    "tensors",
    "without_old_data",
]
