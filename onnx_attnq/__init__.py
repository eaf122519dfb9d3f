"""Prune and log-quantize the attention probabilities of ONNX transformers, and prove it in onnxruntime.

The public names are those below; they are imported when they are first used, so that a program, or a command of
``onnx-attnq``, loads only what it needs.

>>> import onnx_attnq
>>> onnx_attnq.preset("row-log").bits
3
"""

import importlib
from typing import TYPE_CHECKING, Any

from onnx_attnq.errors import AttnqError
from onnx_attnq.version import __version__

if TYPE_CHECKING:
    from onnx_attnq.diff import Difference, ModelDiff, canonicalize, diff_models, fingerprint
    from onnx_attnq.find import AttentionSite, Exposed, Rejection, Sites, expose, find_sites
    from onnx_attnq.inputs import generate_samples, load_samples
    from onnx_attnq.job import Compression, compress
    from onnx_attnq.model import load, save, structure_hash
    from onnx_attnq.rewriting import (
        Plan,
        Record,
        RewriteSettings,
        SitePlan,
        load_plan,
        read_record,
        revert,
        rewrite,
        save_plan,
        uniform_plan,
    )
    from onnx_attnq.run import RunSettings, native_library, session
    from onnx_attnq.scheme import PRESETS, QuantScheme, preset
    from onnx_attnq.verification import Limit, Limits, Verification, VerifySettings, verify

_NAMES = {
    "diff": ("Difference", "ModelDiff", "canonicalize", "diff_models", "fingerprint"),
    "find": ("AttentionSite", "Exposed", "Rejection", "Sites", "expose", "find_sites"),
    "inputs": ("generate_samples", "load_samples"),
    "job": ("Compression", "compress"),
    "model": ("load", "save", "structure_hash"),
    "rewriting": (
        *("Plan", "Record", "RewriteSettings", "SitePlan", "load_plan", "read_record"),
        *("revert", "rewrite", "save_plan", "uniform_plan"),
    ),
    "run": ("RunSettings", "native_library", "session"),
    "scheme": ("PRESETS", "QuantScheme", "preset"),
    "verification": ("Limit", "Limits", "Verification", "VerifySettings", "verify"),
}
"""The package that each public name is imported from: the imports above, for the interpreter (PEP 562)."""

_PACKAGE_OF = {name: package for package, names in _NAMES.items() for name in names}

__all__ = [
    "PRESETS",
    "AttentionSite",
    "AttnqError",
    "Compression",
    "Difference",
    "Exposed",
    "Limit",
    "Limits",
    "ModelDiff",
    "Plan",
    "QuantScheme",
    "Record",
    "Rejection",
    "RewriteSettings",
    "RunSettings",
    "SitePlan",
    "Sites",
    "Verification",
    "VerifySettings",
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
    "revert",
    "rewrite",
    "save",
    "save_plan",
    "session",
    "structure_hash",
    "uniform_plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PACKAGE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
