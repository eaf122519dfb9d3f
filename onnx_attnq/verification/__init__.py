"""Proof in onnxruntime: are the codes right, and how far do the outputs move?"""

from onnx_attnq.verification.bisection import Bisection, bisect
from onnx_attnq.verification.deviation import Deviation
from onnx_attnq.verification.limits import Limit, Limits
from onnx_attnq.verification.outputs import FloatOutputs
from onnx_attnq.verification.rewrite_proof import RewriteProof, prove_rewrite
from onnx_attnq.verification.settings import VerifySettings
from onnx_attnq.verification.site_groups import site_groups
from onnx_attnq.verification.site_rows import Rows, SiteRows
from onnx_attnq.verification.verifier import NATIVE, STANDARD, VariantCheck, Verification, verify

__all__ = [
    "NATIVE",
    "STANDARD",
    "Bisection",
    "Deviation",
    "FloatOutputs",
    "Limit",
    "Limits",
    "RewriteProof",
    "Rows",
    "SiteRows",
    "VariantCheck",
    "Verification",
    "VerifySettings",
    "bisect",
    "prove_rewrite",
    "site_groups",
    "verify",
]
