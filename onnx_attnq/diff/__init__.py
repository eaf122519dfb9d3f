"""Comparing two graphs: whether they compute the same, and what differs."""

from onnx_attnq.diff.as_text import LIMIT, format_diff
from onnx_attnq.diff.canonical import CanonicalModel, canonicalize, fingerprint
from onnx_attnq.diff.comparison import CONTEXT, diff_models
from onnx_attnq.diff.node_places import node_name
from onnx_attnq.diff.result import Difference, Kind, ModelDiff

__all__ = [
    "CONTEXT",
    "LIMIT",
    "CanonicalModel",
    "Difference",
    "Kind",
    "ModelDiff",
    "canonicalize",
    "diff_models",
    "fingerprint",
    "format_diff",
    "node_name",
]
