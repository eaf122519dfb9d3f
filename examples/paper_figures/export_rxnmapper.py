"""Export the masked language model of rxnmapper (ALBERT, 12 layers, trained on reactions) to ONNX, checked.

Needs an environment of its own: torch==2.13.0, 'transformers<5', onnx, onnxruntime, onnxscript, and rxnmapper==0.4.3
(`pip install --no-deps`: only its weights are used).

    python export_rxnmapper.py rxnmapper.onnx
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import AlbertForMaskedLM

TOLERANCE = 1e-3  # of logits of about 10, in float32


class MaskedLanguageModel(torch.nn.Module):
    """Takes its inputs in order and returns the logits only."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The logits, (B, L, vocabulary)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def folder() -> Path:
    """Where rxnmapper keeps its weights; the package itself is not imported."""
    spec = importlib.util.find_spec("rxnmapper")
    if spec is None or spec.origin is None:
        sys.exit("rxnmapper is not installed: pip install --no-deps rxnmapper==0.4.3")
    (config,) = Path(spec.origin).parent.glob("models/transformers/*/config.json")
    return config.parent


def main(output: str) -> None:
    model = AlbertForMaskedLM.from_pretrained(folder(), attn_implementation="eager")
    wrapper = MaskedLanguageModel(model).eval()
    ids = torch.randint(20, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    dims = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        wrapper,
        (ids, mask),
        output,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes=dict.fromkeys(("input_ids", "attention_mask", "logits"), dims),
        opset_version=17,
        dynamo=False,
    )
    longer = torch.randint(20, 100, (1, 40), generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    for x, m in ((ids, mask), (longer, torch.ones_like(longer))):
        with torch.no_grad():
            expected = wrapper(x, m).numpy()
        found = session.run(None, {"input_ids": x.numpy(), "attention_mask": m.numpy()})[0]
        difference = float(np.abs(expected - found).max())
        if difference > TOLERANCE:
            sys.exit(f"the export differs from PyTorch by {difference:.2e}")
        print(f"{tuple(x.shape)}: differs from PyTorch by at most {difference:.1e}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
