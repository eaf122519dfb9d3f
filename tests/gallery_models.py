"""The models of a gallery: those in tests/gallery, or those of the folder that ONNX_ATTNQ_GALLERY names."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ.get("ONNX_ATTNQ_GALLERY") or Path(__file__).parent / "gallery")


@dataclasses.dataclass(frozen=True)
class GalleryModel:
    """A model file, what is in it, and a sample that it runs on.

    Attributes:
        path: The file.
        sites: Number of attentions in it.
        fused: How many of these are inside of a fused op.
        others: Number of softmax that are no attention.
    """

    path: Path
    sites: int
    fused: int
    others: int

    @property
    def name(self) -> str:
        return self.path.stem

    def sample(self) -> dict[str, np.ndarray[Any, Any]]:
        with np.load(self.path.with_suffix(".npz")) as arrays:
            return dict(arrays)


def gallery() -> list[GalleryModel]:
    entries = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return [
        GalleryModel(FOLDER / e["file"], e["n_attention_sites"], e["n_fused"], e["n_softmax_not_attention"])
        for e in entries
    ]
