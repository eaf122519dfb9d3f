"""Export the models of this folder that come from PyTorch again.

    pip install '.[gallery]'
    python tests/gallery/regenerate.py FOLDER

Weights are random and the vocabulary has 40 tokens, which keeps a model under 300 kB. The files in this folder were
made by several versions of torch, transformers, optimum and onnxruntime; what a new run gives has the
same attention, not the same bytes. `fused_*` and the quantized models are made from others by tools that
are named in the manifest's `exporter`, and are not made again here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

VOCABULARY, WIDTH, HEADS = 40, 64, 4


class Odd(nn.Module):
    """One attention layer between an embedding and logits; ``attend`` is the trap."""

    def __init__(
        self, attend: Callable[[Odd, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.attend = attend
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.emb(input_ids)
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        bias = (1.0 - attention_mask[:, None, None].float()) * -1e4
        context = self.attend(self, q, k, v, bias)
        return self.o(context.transpose(1, 2).reshape(batch, length, -1))


def scores(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias


def decomposed(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    s = scores(q, k, bias)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


def einsum(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    s = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5 + bias
    return torch.einsum("bhij,bhjd->bhid", s.softmax(-1), v)


def logsoftmax(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return scores(q, k, bias).log_softmax(-1).exp() @ v


def talking_heads(m: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return m.mix(scores(q, k, bias).softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v


def two_v(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    p = scores(q, k, bias).softmax(-1)
    return p @ v + p @ torch.tanh(v)


def v_left(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (v.transpose(-1, -2) @ scores(q, k, bias).softmax(-1).transpose(-1, -2)).transpose(-1, -2)


def linear_attention(_: Odd, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return q.softmax(-1) @ (k.softmax(-2).transpose(-1, -2) @ v)


ODD = {
    "odd_decomposed__ts17": decomposed,
    "odd_einsum__ts17": einsum,
    "odd_logsoftmax__ts17": logsoftmax,
    "odd_talking_heads__ts17": talking_heads,
    "odd_two_v__ts17": two_v,
    "odd_vleft__ts17": v_left,
    "odd_linear_attn__ts17": linear_attention,
}


def export_odd(folder: Path) -> None:
    """TorchScript exports of one attention layer each."""
    random = np.random.default_rng(0)
    sample = {
        "input_ids": random.integers(0, VOCABULARY, (2, 9)),
        "attention_mask": np.array([[1] * 9, [1] * 6 + [0] * 3]),
    }
    axes = {name: {0: "batch", 1: "length"} for name in (*sample, "logits")}
    for name, attend in ODD.items():
        torch.manual_seed(0)
        torch.onnx.export(
            Odd(attend).eval(),
            tuple(torch.from_numpy(array) for array in sample.values()),
            str(folder / f"{name}.onnx"),
            input_names=list(sample),
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        np.savez(folder / f"{name}.npz", **sample)


def export_transformers(folder: Path) -> None:
    """Exports of transformers' own architectures by optimum; the samples here fit them."""
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model

    small = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    albert = transformers.AlbertConfig(
        **small, embedding_size=32, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2
    )
    t5 = transformers.T5Config(
        **small, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2, decoder_start_token_id=0
    )
    for name, model, task, file in (
        ("albert__optimum", transformers.AlbertModel(albert), "feature-extraction", "model.onnx"),
        (
            "t5-decoder_model_merged__optimum",
            transformers.T5ForConditionalGeneration(t5),
            "text2text-generation-with-past",
            "decoder_model_merged.onnx",
        ),
    ):
        with tempfile.TemporaryDirectory() as place:
            onnx_export_from_model(model.eval(), Path(place), task=task, do_validation=False, no_dynamic_axes=False)
            (folder / f"{name}.onnx").write_bytes((Path(place) / file).read_bytes())


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    export_odd(target)
    export_transformers(target)
