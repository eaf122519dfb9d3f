"""Folders of transformers with small random models: what an export starts from."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from text_models import WORDS, tokenizer

SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def source(folder: Path, architecture: str, head: str, **fields: int) -> Path:
    """A folder with a random model of this architecture and a tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**SMALL, **fields)
    getattr(transformers, f"{architecture}{head}")(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
