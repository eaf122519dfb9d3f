"""Proof in onnxruntime: are the codes right, and how far do the outputs move?"""

from onnx_attnq.verification.bisection import Bisection, bisect
from onnx_attnq.verification.rewritten_model import Limit, Progress, Verification, verify
from onnx_attnq.verification.site_rows import SiteRows
from onnx_attnq.verification.two_models import Bounds, Comparison, Tolerance, compare_models

__all__ = [
    "Bisection",
    "Bounds",
    "Comparison",
    "Limit",
    "Progress",
    "SiteRows",
    "Tolerance",
    "Verification",
    "bisect",
    "compare_models",
    "verify",
]
