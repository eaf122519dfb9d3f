"""Text models whose answers are known: each token of a small vocabulary has its own row of logits or embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from onnx_attnq.evaluate import TextModel
from onnx_attnq.run import RunSettings

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue", "big", "small", "house", "tree", "car")


def tokenizer() -> PreTrainedTokenizerFast:
    """Words at white space; [CLS] and [SEP] around a text, [SEP] and type 1 for the second."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=10_000,
    )


def lookup(folder: Path, tables: dict[str, npt.NDArray[np.float32]], shape: Sequence[int | str] = ("B", "L")) -> Path:
    """A model with an output for each table: the row (or number) of each token."""
    nodes = [helper.make_node("Gather", [f"{name}_table", "input_ids"], [name]) for name in tables]
    return _save(folder / "lookup.onnx", nodes, tables, {name: table.ndim + 1 for name, table in tables.items()}, shape)


def attention(folder: Path, seed: int = 0, width: int = 8) -> Path:
    """One self-attention without projections over random embeddings: last_hidden_state = softmax(E Eᵀ) E."""
    table = np.random.default_rng(seed).normal(size=(len(WORDS), width)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["last_hidden_state_table", "input_ids"], ["embedded"]),
        helper.make_node("Transpose", ["embedded"], ["key"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["embedded", "key"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1),
        helper.make_node("MatMul", ["probabilities", "embedded"], ["last_hidden_state"]),
    ]
    return _save(folder / "attention.onnx", nodes, {"last_hidden_state": table}, {"last_hidden_state": 3}, ("B", "L"))


def load(path: Path) -> TextModel:
    return TextModel.load(path, tokenizer(), run=RunSettings(1))


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    tables: dict[str, npt.NDArray[np.float32]],
    ranks: dict[str, int],
    shape: Sequence[int | str],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, shape)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank) for name, rank in ranks.items()],
        [numpy_helper.from_array(table, f"{name}_table") for name, table in tables.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
