"""What a scheme for each head gains on the decoder of examples/decoder, by what is counted: PyTorch, float32.

    python benchmarks/per_head.py [--windows 40 --measured 8]

The KL of the model's output with only one head changed, for each head and candidate, on some windows of 256 tokens; then
for a share to prune and a number of bits the schemes of least KL, by integer programming; and the loss of perplexity of
these on the first so many windows, with 95 % intervals: of every token, of the second halves alone, and of windows that
overlap by half, whose second halves count, as `onnx-attnq evaluate` counts. Beside them one scheme for all heads with 2
bits. Twice: where pruned values share over the pruned keys only, and over the sample of `numerics`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from sharing import LENGTH, Decoder, Sharing, in_chunks

FloatArray = npt.NDArray[np.float64]
Head = tuple[int, int]

GOALS = ((0.86, 2.4), (0.91, 2.1), (0.90, 2.2), (0.93, 1.8))
"""Shares to prune at least, and bits at most."""

CANDIDATES = tuple(
    (bits, threshold)
    for bits, thresholds in {1: (0.3, 0.5, 0.7), 2: (0.05, 0.1, 0.2, 0.3, 0.5, 0.7), 3: (0.05, 0.1, 0.2)}.items()
    for threshold in thresholds
)
MEASURED_FROM = 52
"""The first window that heads are measured on: half of the text away from those whose loss is measured."""


class PerHead(Decoder):
    """The model with a scheme for each of its heads, (layer, head); one without is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.schemes: dict[Head, Sharing] = {}
        self.pruned: dict[Head, float] = {}
        config = self.model.config
        self.heads = list(itertools.product(range(config.num_hidden_layers), range(config.num_attention_heads)))

    def weights(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """(batch, heads, L_q, L_k), of scores with the mask added; notes the share of pruned values."""
        weights = super().weights(layer, scores)
        for head in range(scores.shape[1]):
            scheme = self.schemes.get((layer, head))
            if scheme is not None:
                weights[:, head] = scheme.probabilities(scores[:, head])
                distance = scores[:, head] - scores[:, head].amax(dim=-1, keepdim=True)
                below = (distance < math.log(scheme.threshold)) & (distance > -80.0)
                self.pruned[layer, head] = float(below.sum() / (distance > -80.0).sum())
        return weights

    @torch.no_grad()
    def divergences(self, scheme: Sharing, starts: list[int]) -> tuple[FloatArray, FloatArray]:
        """KL in nats a token of each head alone with a scheme, and the share of its values that are pruned."""
        ids = torch.stack([self.ids[start : start + LENGTH] for start in starts])
        self.schemes = {}
        before = self.model(input_ids=ids, use_cache=False).logits.log_softmax(dim=-1)
        found = []
        for head in self.heads:
            self.schemes = {head: scheme}
            after = self.model(input_ids=ids, use_cache=False).logits.log_softmax(dim=-1)
            found.append((float((before.exp() * (before - after)).sum(dim=-1).mean()), self.pruned[head]))
        kl, pruned = np.array(found).T
        return kl, pruned


def least(kl: FloatArray, pruned: FloatArray, bits: FloatArray, share: float, width: float) -> list[int]:
    """A candidate for each head: kl and pruned are (heads, candidates), bits (candidates,)."""
    heads, candidates = kl.shape
    one = np.repeat(np.eye(heads), candidates, axis=1)
    found = milp(
        1e3 * kl.ravel(),
        integrality=np.ones(kl.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(pruned.reshape(1, -1), share * heads, np.inf),
            LinearConstraint(np.tile(bits, heads)[None], 0, width * heads),
        ],
    )
    return [int(row.argmax()) for row in found.x.reshape(heads, candidates)]


class Losses:
    """Loss of perplexity in percent, with intervals, by what is counted."""

    def __init__(self, decoder: PerHead, windows: int) -> None:
        self.decoder = decoder
        self.apart = list(range(0, windows * LENGTH, LENGTH))
        self.overlapping = list(range(0, windows * LENGTH - LENGTH // 2, LENGTH // 2))
        self.before = self.counted({})

    def counted(self, schemes: dict[Head, Sharing]) -> dict[str, FloatArray]:
        """(windows, tokens) losses in nats, by what is counted."""
        self.decoder.schemes = schemes
        apart, overlapping = (self.decoder.losses(None, s).numpy() for s in (self.apart, self.overlapping))
        second = LENGTH // 2 - 1
        return {"every token": apart, "second halves": apart[:, second:], "overlap": overlapping[:, second:]}

    def of(self, schemes: dict[Head, Sharing]) -> str:
        """Three cells of a table."""
        cells = []
        for name, after in self.counted(schemes).items():
            losses = after - self.before[name]
            error = losses.mean(axis=1).std(ddof=1) / math.sqrt(len(losses))
            cells.append(f"{100 * math.expm1(losses.mean()):.2f} ± {196 * error:.2f}")
        return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=40, help="whose loss is measured")
    parser.add_argument("--measured", type=int, default=8, help="windows that heads are measured on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder = PerHead()
    losses = Losses(decoder, options.windows)
    starts = [window * LENGTH for window in range(MEASURED_FROM, MEASURED_FROM + options.measured)]
    keys = {"the pruned keys": lambda pruned, unmasked: pruned, "the sample": functools.partial(in_chunks, LENGTH)}
    print(f"| mean over | schemes | pruned | bits | {' | '.join(losses.before)} |")
    print("|---|---|---|---|---|---|---|")
    for name, mean_over in keys.items():
        schemes = [Sharing(name, bits, threshold, mean_over) for bits, threshold in CANDIDATES]
        kl, pruned = (np.stack(t, axis=1) for t in zip(*(decoder.divergences(s, starts) for s in schemes), strict=True))
        bits = np.array([float(s.bits) for s in schemes])
        choices = {f"2 bits, threshold {t}": [CANDIDATES.index((2, t))] * len(kl) for t in (0.1, 0.2, 0.3)}
        choices |= {f"of each head: ≥ {s:.0%}, ≤ {w} bits": least(kl, pruned, bits, s, w) for s, w in GOALS}
        for title, chosen in choices.items():
            share = pruned[np.arange(len(kl)), chosen].mean()
            given = dict(zip(decoder.heads, (schemes[i] for i in chosen), strict=True))
            print(f"| {name} | {title} | {share:.0%} | {bits[chosen].mean():.2f} | {losses.of(given)} |", flush=True)


if __name__ == "__main__":
    main()
