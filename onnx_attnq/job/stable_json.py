"""The stable JSON forms of what was found and done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnx_attnq.find import AttentionSite, Rejection, Sites
from onnx_attnq.job.compression import Compression
from onnx_attnq.job.folder import FolderCompression
from onnx_attnq.model import files
from onnx_attnq.rewriting import Plan, Record
from onnx_attnq.verification import NATIVE, STANDARD, Verification


def compression_json(result: Compression, model: ir.Model) -> dict[str, Any]:
    """What ``onnx-attnq MODEL --json`` writes.

    Args:
        result: The result of the main job.
        model: The original.
    """
    left = [entry for entry in result.plan.sites if entry.scheme is None]
    by_id = {site.id: site for site in result.sites.sites}
    skipped = [
        Rejection(by_id[entry.site].node, by_id[entry.site].op_type, by_id[entry.site].scope, entry.reason)
        for entry in left
    ]
    rewritten = dataclasses.replace(
        result.sites,
        sites=tuple(site for site in result.sites.sites if result.plan.scheme_of(site.id) is not None),
        rejections=(*result.sites.rejections, *skipped),
    )
    return {
        "model": model_json(result.source, model),
        "output": None if result.output is None else file_json(result.output),
        "scheme": scheme_json(result.plan),
        **sites_json(rewritten),
        "verification": _variant_json(result.verification, STANDARD),
        "native_verification": _variant_json(result.verification, NATIVE),
        "warnings": list(result.warnings),
        "refused_samples": [] if result.made_up is None else list(result.made_up.refused),
    }


def _variant_json(found: Verification | None, way: str) -> dict[str, Any] | None:
    """What one way to run the model gave; null where it was not run."""
    if found is None or way not in found.runs:
        return None
    run = found.runs[way]
    failures = (*found.failures_of_rewrite, *run.failures(found.limits))
    return {
        "passed": not failures,
        "failures": list(failures),
        "notes": list(found.notes),
        "rewrite": None if found.rewrite is None else found.rewrite.to_json(),
        "samples": found.samples,
        "implementation": {
            "sites_checked": len(run.sites),
            "codes_checked": run.codes.codes,
            "disagreements": run.codes.disagreements,
            "errors": run.codes.errors,
        },
        "deviation": {name: output.deviation.to_json() for name, output in run.outputs.items()},
        "pruned": run.pruned,
    }


def folder_json(result: FolderCompression) -> dict[str, Any]:
    """What ``onnx-attnq FOLDER --json`` writes: what it writes for a model, for each of them."""
    return {
        "folder": str(result.source),
        "output": None if result.output is None else str(result.output),
        "models": [compression_json(part, files.load(part.source)) for part in result.models],
        "untouched": [{"path": str(path), "reason": reason} for path, reason in result.untouched.items()],
        "library": result.library,
        "skipped": [{"path": str(path), "reason": reason} for path, reason in result.skipped.items()],
    }


def inspection_json(path: Path, model: ir.Model, found: Sites, record: Record | None) -> dict[str, Any]:
    """What ``onnx-attnq inspect MODEL --json`` writes; a rewritten model shows what was done to it."""
    data = {"model": model_json(path, model), **sites_json(found)}
    if record is not None:
        schemes = {site.scheme for site in record.sites}
        data["sites"] = [site.to_json() for site in record.sites]
        data["scheme"] = schemes.pop().to_json() if len(schemes) == 1 else None
        data["original"] = {"structure_hash": record.structure_hash}
        data["plan"] = {"sha256": record.plan}
        data["revertible"] = record.undo is not None
        data["irreversible"] = record.irreversible
        data["written_by"] = record.version
    return data


def model_json(path: Path, model: ir.Model) -> dict[str, Any]:
    """Path, hash and opset of a model."""
    return {**file_json(path), "opset": files.opset(model)}


def file_json(path: Path) -> dict[str, Any]:
    """Path and hash of a file."""
    return {"path": str(path), "sha256": files.sha256(path)}


def scheme_json(plan: Plan) -> dict[str, Any] | None:
    """The scheme of a plan that has but one, else None."""
    schemes = {entry.scheme for entry in plan.sites if entry.scheme is not None}
    return schemes.pop().to_json() if len(schemes) == 1 else None


def sites_json(found: Sites) -> dict[str, Any]:
    """Sites and rejections."""
    return {
        "sites": [_site_json(site) for site in found.sites],
        "rejected": [
            {"node": r.node, "op_type": r.op_type, "scope": r.scope, "reason": r.reason} for r in found.rejections
        ],
    }


def _site_json(site: AttentionSite) -> dict[str, Any]:
    return {
        "id": site.id,
        "op_type": site.op_type,
        "node": site.node,
        "scope": site.scope,
        "form": str(site.form),
        "softmax_only": site.softmax_only,
        "heads": site.heads,
        "shape": None if site.shape is None else list(site.shape),
        "chain": list(site.chain),
    }
