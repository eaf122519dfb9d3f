"""Train a causal decoder of 1.2 million parameters on text that every Python has; about 15 minutes on one core.

    python examples/decoder/train.py -o examples/decoder/model

The trained weights are committed (float16, 2.5 MB), so this has to be run only to reproduce them. A second
run gives a model of the same quality, not the same bits: the text and the order of float32 additions differ between
machines.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import torch
from corpus import HELD_OUT, training_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

SEED = 0
CONTEXT = 256
"""Tokens; the model is not trained, nor evaluated, on longer texts."""
BATCH = 16
LEARNING_RATE = 3e-3
WARM_UP = 60


def byte_level_bpe(text: str, size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<s>",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder(vocabulary: int) -> LlamaForCausalLM:
    """Llama's blocks, small: grouped-query attention (two query heads share a key head), rotary positions, RMS norm."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokens: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARM_UP, steps)
    model.train()
    started = time.monotonic()
    for step in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,))
        batch = torch.stack([tokens[start : start + CONTEXT] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    model.eval()
    windows = [window for window in tokens.split(CONTEXT) if len(window) == CONTEXT]
    losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in windows]
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    text = training_text()
    tokenizer = byte_level_bpe(text, options.vocabulary)
    tokens = torch.tensor(tokenizer(text, verbose=False).input_ids)
    model = decoder(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokens):,} training tokens")
    train(model, tokens, options.steps)
    loss = held_out_loss(model, torch.tensor(tokenizer(HELD_OUT.read_text(encoding="utf-8"), verbose=False).input_ids))
    print(f"held-out loss {loss:.3f} nats per token")
    model.half().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
