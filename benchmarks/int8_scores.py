"""How many scores 8-bit products of queries and keys would leave in doubt, beside 16-bit ones, on trained models.

    python benchmarks/int8_scores.py

Queries and keys of MiniLM-L6 on paragraphs of XQuAD and of the decoder on its held-out text, each vector rounded to
whole multiples of its own step, as the kernel does with 16 bits. A score is in doubt where an edge of the scheme is not
further away than the bound on its error, |q||e_k| + |k||e_q| + |e_q||e_k| with e the rounding errors: it would have to
be computed again. Bounds are of each pair, which no kernel would take the time for, so the shares are lower bounds.
``other code`` is what would come out without a second look.
"""

from __future__ import annotations

import numpy as np
from trained_heads import Floats, Head, models

from onnx_attnq.scheme import QuantScheme, numerics, preset

SCHEMES = {
    "row-log-mean, 3 bits, .03": preset(),
    "row-log-mean, 2 bits, .1": preset(bits=2, threshold=0.1),
    "row-log, 3 bits, .01": preset("row-log"),
}


def rounded(vectors: Floats, bits: int) -> Floats:
    """Each vector in whole multiples of a step of its own."""
    step = np.abs(vectors).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.asarray(np.round(vectors / step) * step)


def doubt(head: Head, bits: int, scheme: QuantScheme) -> tuple[int, int, int]:
    """Scores in doubt, scores whose code would be another, and all."""
    query, key = rounded(head.query, bits), rounded(head.key, bits)
    seen, exact, rough = head.seen, head.scores(head.query, head.key), head.scores(query, key)
    norm = np.linalg.norm
    of_query, of_key = norm(head.query - query, axis=-1)[:, None], norm(head.key - key, axis=-1)[None]
    bound = norm(query, axis=-1)[:, None] * of_key + norm(key, axis=-1)[None] * of_query + of_query * of_key
    # The maximum is looked at again, so that it is exact.
    distance = rough - exact.max(axis=-1, keepdims=True)
    edges = np.log(numerics.edges(scheme))
    gap = np.abs(distance[..., None] - edges).min(axis=-1)
    x = np.exp(np.minimum(distance, 0.0))
    other = numerics.codes(x, scheme) != numerics.codes(numerics.relative_scores(exact), scheme)
    return int((gap <= bound)[seen].sum()), int(other[seen].sum()), int(seen.sum())


def main() -> None:
    print("| model | scheme | 8 bits: in doubt, % | other code, % | 16 bits: in doubt, % | other code, % |")
    print("|---|---|---|---|---|---|")
    for model, found in models():
        for name, scheme in SCHEMES.items():
            cells = []
            for bits in (8, 16):
                doubtful, other, count = np.sum([doubt(head, bits, scheme) for head in found], axis=0)
                cells += [f"{100 * doubtful / count:.2f}", f"{100 * other / count:.2f}"]
            print(f"| {model} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
