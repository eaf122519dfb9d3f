"""What the sample costs on the decoder of examples/decoder, and what a prompt in chunks gives: PyTorch, float32.

    python benchmarks/sharing.py [--bits 2 --threshold .2] [--causes]

Rows in which pruned values share what they summed to: with the mean over the pruned keys only, over all
unmasked keys, over every second, and over the sample of `numerics`; and with the sample that a prompt gets that is
fed in chunks, whose rows see fewer keys and so a smaller stride. Perplexity, relative to the original's, on windows of
256 tokens without overlap: of the first so many, of all, and of the second halves of all, which have more context, as
all tokens have in `onnx-attnq evaluate`. ``--causes``: what each part of the scheme costs by itself, on
the first so many windows only.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from onnx_attnq.scheme import numerics

DECODER = Path(__file__).parent.parent / "examples" / "decoder"
LENGTH = 256


@dataclasses.dataclass(frozen=True)
class Sharing:
    """2**bits - 1 levels above the threshold; ``mean_over`` says which keys (L_q, L_k) share, of pruned and unmasked.

    Without it pruned values stay as they are. ``levels``: whether kept values become levels, and what is shared a sum
    of levels; else all these are exact.
    """

    name: str
    bits: int
    threshold: float
    mean_over: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    levels: bool = True

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """(..., L_q, L_k), of scores with the mask added."""
        step = -math.log(self.threshold) / (2**self.bits - 1.5)
        distance = scores - scores.amax(dim=-1, keepdim=True)
        unmasked = distance >= numerics.MASKED_NATS
        code = torch.floor(distance / step + 0.5)  # 0 at the maximum, then -1, -2 …
        x = torch.where(unmasked, torch.exp(distance), 0.0)
        level = torch.where(unmasked, torch.exp(code * step), 0.0) if self.levels else x
        pruned = unmasked & (code < -(2**self.bits - 2))
        if self.mean_over is None:
            row = torch.where(pruned, x, level)
            return row / row.sum(dim=-1, keepdim=True)
        sharing = self.mean_over(pruned, unmasked)
        tail = torch.where(pruned, level, 0.0).sum(dim=-1, keepdim=True)
        share = tail / sharing.sum(dim=-1, keepdim=True).clamp(min=1)
        row = torch.where(pruned, 0.0, level) + torch.where(sharing, share, 0.0)
        return row / row.sum(dim=-1, keepdim=True)


def every(stride: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda pruned, unmasked: unmasked & (torch.arange(unmasked.shape[-1]) % stride == 0)


def in_chunks(size: int, pruned: torch.Tensor, unmasked: torch.Tensor) -> torch.Tensor:
    """The sample of each row where the prompt comes in chunks: of the keys that there are up to the chunk's end."""
    queries, keys = unmasked.shape[-2:]
    ends = [min(queries, (row // size + 1) * size) for row in range(queries)]
    strides = torch.tensor([numerics.sample_stride(end) for end in ends])
    return unmasked & (torch.arange(keys)[None] % strides[:, None] == 0)


def sharings(bits: int, threshold: float) -> list[Sharing]:
    kinds = {
        "pruned keys only": lambda pruned, unmasked: pruned,
        "all unmasked keys": every(1),
        "every second key": every(2),
        "every fourth key": every(4),
        "the sample, whole window": functools.partial(in_chunks, LENGTH),
        "the sample, chunks of 128 tokens": functools.partial(in_chunks, 128),
        "the sample, token by token": functools.partial(in_chunks, 1),
    }
    return [Sharing(name, bits, threshold, kind) for name, kind in kinds.items()]


def causes(bits: int, threshold: float) -> list[Sharing]:
    """Sharing alone, over ever fewer keys; the levels alone; and both."""
    whole_window = functools.partial(in_chunks, LENGTH)
    kinds = {
        "the pruned keys": lambda pruned, unmasked: pruned,
        "all unmasked keys": every(1),
        "the sample": whole_window,
    }
    nothing = {"no key: pruned values are 0": lambda pruned, unmasked: torch.zeros_like(pruned)}
    return [
        Sharing("levels; pruned values exact", bits, threshold, None),
        *(Sharing(f"kept values exact; over {name}", bits, threshold, kind, False) for name, kind in kinds.items()),
        *(Sharing(f"levels; over {name}", bits, threshold, kind) for name, kind in (kinds | nothing).items()),
    ]


class Decoder:
    """The model, whose attention can be put in the place of its own."""

    def __init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            DECODER / "model", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(DECODER / "model")
        text = (DECODER / "held_out.txt").read_text(encoding="utf-8")
        self.ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        self.sharing: Sharing | None = None
        modeling_llama.eager_attention_forward = self._attend

    def _attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        mask: torch.Tensor, scaling: float, **_: object,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        key, value = (modeling_llama.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling + mask[..., : key.shape[-2]]
        return (self.weights(module.layer_idx, scores) @ value).transpose(1, 2).contiguous(), None

    def weights(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """(batch, heads, L_q, L_k), of scores with the mask added."""
        return scores.softmax(dim=-1) if self.sharing is None else self.sharing.probabilities(scores)

    @torch.no_grad()
    def losses(self, sharing: Sharing | None, starts: list[int]) -> torch.Tensor:
        """Negative log-likelihood of each token but the first of each window, (windows, LENGTH - 1), in nats."""
        self.sharing = sharing
        losses = []
        for batch in torch.tensor(starts).split(8):
            ids = torch.stack([self.ids[start : start + LENGTH] for start in batch])
            log_p = self.model(input_ids=ids, use_cache=False).logits.double().log_softmax(dim=-1)
            losses.append(-log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0])
        return torch.cat(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=0.2)
    parser.add_argument("--causes", action="store_true", help="what each part of the scheme costs by itself")
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder = Decoder()
    starts = list(range(0, len(decoder.ids) - LENGTH + 1, LENGTH))
    if options.causes:
        starts = starts[: options.windows]
    parts = {
        f"first {options.windows}": np.s_[: options.windows],
        **({} if options.causes else {f"all {len(starts)}": np.s_[:]}),
        "their second halves": np.s_[:, LENGTH // 2 - 1 :],
    }
    before = decoder.losses(None, starts)
    print(f"{options.bits} bits, threshold {options.threshold:g}: loss of perplexity, %\n")
    print(f"| mean over | {' | '.join(parts)} |")
    print("|---" * (1 + len(parts)) + "|")
    for sharing in (causes if options.causes else sharings)(options.bits, options.threshold):
        more = decoder.losses(sharing, starts) - before
        figures = " | ".join(f"{100 * math.expm1(float(more[part].mean())):.2f}" for part in parts.values())
        print(f"| {sharing.name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
