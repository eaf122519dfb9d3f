"""What a rewritten model says about itself, in its own metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import onnx_ir as ir

from onnx_attnq.errors import AlreadyRewritten, InvalidModel, InvalidScheme
from onnx_attnq.find import Form
from onnx_attnq.graph import Undo
from onnx_attnq.reading import check_fields, parse_json
from onnx_attnq.rewriting.bodies import DOMAIN
from onnx_attnq.scheme import SiteScheme, site_scheme_from_json

METADATA: Final = "onnx_attnq"
"""Key of the model's metadata under which a `Record` is kept."""


@dataclasses.dataclass(frozen=True)
class RewrittenSite:
    """What was done to one site.

    Attributes:
        id: The site's id.
        op_type: Op that was there.
        node: Name of that node.
        scope: ``main``, or the path of the subgraph.
        form: What was replaced.
        scheme: What it was replaced by; one for each head where they differ.
        inputs: Names of the float32 values that enter the new op: scores, probabilities, or query, key, value, mask.
        output: Name of the value that leaves it: quantized probabilities or, of an attention, the context.
    """

    id: str
    op_type: str
    node: str
    scope: str
    form: Form
    scheme: SiteScheme
    inputs: tuple[str, ...]
    output: str

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**dataclasses.asdict(self), "form": str(self.form), "scheme": self.scheme.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RewrittenSite:
        """The inverse of `to_json`.

        Raises:
            ValueError: A field is missing, unknown or of the wrong type.
            InvalidScheme: The scheme is not one.
        """
        text = dict.fromkeys(("id", "op_type", "node", "scope", "form", "output"), str)
        check_fields(data, "a site of the record", {**text, "scheme": dict, "inputs": list})
        if not all(isinstance(name, str) for name in data["inputs"]):
            raise ValueError("'inputs' of a site of the record must be names")
        scheme = site_scheme_from_json(data["scheme"])
        return cls(**{**data, "form": Form(data["form"]), "scheme": scheme, "inputs": tuple(data["inputs"])})


@dataclasses.dataclass(frozen=True)
class Record:
    """What a rewritten model says about itself.

    Attributes:
        version: Version of onnx-attnq that wrote it.
        structure_hash: `onnx_attnq.structure_hash` of the model before.
        plan: `Plan.hash` of the plan that was carried out.
        inlined: True when the ops were replaced by their bodies.
        sites: The sites that were rewritten.
        undo: How to get the original graph back, or None.
        irreversible: Why there is none; else empty.
    """

    version: str
    structure_hash: str
    plan: str
    inlined: bool
    sites: tuple[RewrittenSite, ...]
    undo: Undo | None = dataclasses.field(default=None, repr=False)
    irreversible: str = ""


def read_record(model: ir.Model) -> Record | None:
    """What a rewritten model says about itself; None for a model that was not rewritten.

    Raises:
        InvalidModel: The model's metadata was damaged.
    """
    text = model.metadata_props.get(METADATA)
    if text is None:
        return None
    try:
        data = parse_json(text)
        if isinstance(data, dict) and "original" in data:  # as version 0.1.0 called it
            data["structure_hash"] = data.pop("original")
        check_fields(data, "the record", _FIELDS)
        sites = tuple(RewrittenSite.from_json(site) for site in data["sites"])
        undo = None if data["undo"] is None else Undo.from_json(data["undo"])
        return Record(
            data["version"], data["structure_hash"], data["plan"], data["inlined"], sites, undo, data["irreversible"]
        )
    except (ValueError, InvalidScheme) as error:
        raise InvalidModel(f"the metadata {METADATA!r} of the model cannot be read: {error}") from None


_FIELDS: Final = {
    "version": str,
    "structure_hash": str,
    "plan": str,
    "inlined": bool,
    "sites": list,
    "undo": object,
    "irreversible": str,
}


def refuse_rewritten(model: ir.Model) -> None:
    """Raise AlreadyRewritten for a model that carries quantized attention already."""
    if METADATA in model.metadata_props or DOMAIN in model.graph.opset_imports:
        raise AlreadyRewritten("the model is rewritten already; start from the original")


def write_record(model: ir.Model, record: Record) -> None:
    """Put the record into the model's metadata."""
    data = {
        "version": record.version,
        "structure_hash": record.structure_hash,
        "plan": record.plan,
        "inlined": record.inlined,
        "sites": [site.to_json() for site in record.sites],
        "undo": None if record.undo is None else record.undo.to_json(),
        "irreversible": record.irreversible,
    }
    model.metadata_props[METADATA] = json.dumps(data)
