"""Why sharing works: how much lies in the pruned values of trained models, how it is spread, and what their mean gives.

    python benchmarks/tail.py

For each threshold, over all rows of all heads: the share of the keys and of the mass that is pruned; over how many of
the pruned keys the mass is spread, as e to the entropy of the pruned values, divided by their number (1: all alike);
and the error of the context, relative to the exact one, with pruned values zero and shared. Kept values are exact.
"""

from __future__ import annotations

import numpy as np
from trained_heads import Floats, Head, models

from onnx_attnq.scheme import numerics, preset

THRESHOLDS = (0.01, 0.03, 0.1, 0.3)


def figures(head: Head, threshold: float) -> Floats:
    """Of each row: keys and mass pruned, spread (NaN where fewer than two are pruned), and the two errors."""
    scores = head.scores(head.query, head.key)
    p = numerics.softmax(scores)
    pruned = (numerics.relative_scores(scores) < threshold) & head.seen
    tail = np.where(pruned, p, 0.0)
    mass, count = tail.sum(axis=-1), pruned.sum(axis=-1)
    part = tail / np.where(mass == 0.0, 1.0, mass)[:, None]
    entropy = -(part * np.log(np.where(part > 0.0, part, 1.0))).sum(axis=-1)
    spread = np.where(count > 1, np.exp(entropy) / np.maximum(count, 1), np.nan)
    context = p @ head.value
    errors = []
    for kind in ("zero", "mean"):
        scheme = preset("prune-only-row-max", threshold=threshold, pruned=kind)
        found = numerics.quantize_probabilities(p, scheme)
        found /= found.sum(axis=-1, keepdims=True)
        errors.append(np.linalg.norm(found @ head.value - context, axis=-1) / np.linalg.norm(context, axis=-1))
    return np.stack([count / head.seen.sum(axis=-1), mass, spread, *errors], axis=-1)


def main() -> None:
    print("| model | threshold | pruned keys, % | their mass, % | spread over, % | error, zero | error, shared |")
    print("|---|---|---|---|---|---|---|")
    for model, heads in models():
        for threshold in THRESHOLDS:
            keys, mass, spread, zero, shared = np.nanmean(
                np.concatenate([figures(head, threshold) for head in heads]), axis=0
            )
            shares = " | ".join(f"{100 * share:.0f}" for share in (keys, mass, spread))
            print(f"| {model} | {threshold:g} | {shares} | {zero:.3f} | {shared:.3f} |", flush=True)


if __name__ == "__main__":
    main()
