"""Prune and log-quantize the attention probabilities of ONNX transformers, and prove it in onnxruntime.

>>> import onnx_attnq
>>> onnx_attnq.preset("row-log").bits
3
"""

from onnx_attnq.canonical import canonicalize
from onnx_attnq.compress import Compression, compress
from onnx_attnq.diff import diff_models
from onnx_attnq.difference import Difference, ModelDiff
from onnx_attnq.errors import AttnqError
from onnx_attnq.expose import expose
from onnx_attnq.generate import generate_samples
from onnx_attnq.inputs import load_samples
from onnx_attnq.model import fingerprint, load, save
from onnx_attnq.native import native_library
from onnx_attnq.plan import Plan, SitePlan, load_plan, save_plan, uniform_plan
from onnx_attnq.record import Record, read_record
from onnx_attnq.rewrite import rewrite
from onnx_attnq.runtime import session
from onnx_attnq.scheme import PRESETS, QuantScheme, preset
from onnx_attnq.sites import AttentionSite, Rejection, Sites, find_sites
from onnx_attnq.verify import Limit, Verification, verify
from onnx_attnq.version import __version__

__all__ = [
    "PRESETS",
    "AttentionSite",
    "AttnqError",
    "Compression",
    "Difference",
    "Limit",
    "ModelDiff",
    "Plan",
    "QuantScheme",
    "Record",
    "Rejection",
    "SitePlan",
    "Sites",
    "Verification",
    "__version__",
    "canonicalize",
    "compress",
    "diff_models",
    "expose",
    "find_sites",
    "fingerprint",
    "generate_samples",
    "load",
    "load_plan",
    "load_samples",
    "native_library",
    "preset",
    "read_record",
    "rewrite",
    "save",
    "save_plan",
    "session",
    "uniform_plan",
    "verify",
]
