"""Model files: loaded, checked, saved, and named by their structure."""

from onnx_attnq.model.files import ExternalData, load, opset, save, sha256, size_on_disk, tensors
from onnx_attnq.model.structure_hash import fingerprint
from onnx_attnq.model.wellformed import MAX_RANK, check_tensor

__all__ = [
    "MAX_RANK",
    "ExternalData",
    "check_tensor",
    "fingerprint",
    "load",
    "opset",
    "save",
    "sha256",
    "size_on_disk",
    "tensors",
]
