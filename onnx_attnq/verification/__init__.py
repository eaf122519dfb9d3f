"""Proof in onnxruntime: are the codes right, and how far do the outputs move?"""

from onnx_attnq.verification.bisection import Bisection, bisect
from onnx_attnq.verification.deviation import Deviation, deviation_of
from onnx_attnq.verification.limits import Limit, Limits
from onnx_attnq.verification.outputs import is_distribution, real_tokens, token_masks
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
    "Limit",
    "Limits",
    "RewriteProof",
    "Rows",
    "SiteRows",
    "VariantCheck",
    "Verification",
    "VerifySettings",
    "bisect",
    "deviation_of",
    "is_distribution",
    "prove_rewrite",
    "real_tokens",
    "site_groups",
    "token_masks",
    "verify",
]
