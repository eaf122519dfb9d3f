"""Trained models on the whole path, by the command line: export, compress, evaluate, deploy with and without kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("optimum.onnxruntime", reason="needs the extra 'examples'", exc_type=ImportError)

import torch
from optimum.onnxruntime import (
    ORTModelForCausalLM,
    ORTModelForFeatureExtraction,
    ORTModelForMaskedLM,
    ORTModelForSeq2SeqLM,
)
from random_models import source
from text_models import WORDS, tokenizer
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, pipeline

from onnx_attnq.cli import main
from onnx_attnq.run import Session, native_library

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES / "ji2021"))
from models import minilm, rxnmapper  # noqa: E402 -- of the folder above

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("default"),  # transformers, torch and optimum warn about one another
]

ATOL = 1e-3
"""Float32 rounding in kernels and bodies, in deep models. A code that flips at an edge would be allowed for by
`MAX_FLIPPED`."""
MAX_FLIPPED = 0.01
"""Share of the outputs that may differ by more."""
REACTION = "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1"


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert not exit_.value.code


def with_kernels() -> onnxruntime.SessionOptions:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    return options


def decoder(folder: Path) -> None:
    shutil.copytree(EXAMPLES / "decoder" / "model", folder)


MODELS = {"rxnmapper": rxnmapper, "minilm": minilm, "decoder": decoder}
TASKS = {
    "rxnmapper": ("fill-mask", EXAMPLES / "ji2021" / "reactions.txt", ["--limit", 2], "pseudo-perplexity"),
    "minilm": ("retrieval", EXAMPLES / "data" / "xquad.en.json.xz", ["--limit", 20], "accuracy@1"),
    "decoder": (
        "text-generation",
        EXAMPLES / "decoder" / "held_out.txt",
        ["--max-length", 128, "--limit", 20],
        "perplexity",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model that was exported and compressed by one command; once for each name."""
    root = tmp_path_factory.mktemp("pipeline")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            MODELS[name](root / f"{name}-source")
            command("export", root / f"{name}-source", "-o", root / name, "--offline", "--compress")
        return root / name

    return folder


@pytest.mark.parametrize("name", [pytest.param("rxnmapper", marks=pytest.mark.slow), "minilm", "decoder"])
def test_a_trained_model_loses_little_on_its_task(name: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    task, data, options, metric = TASKS[name]
    folder = exported(name)
    command(
        *("evaluate", folder / "model.onnx", "--compressed", folder / "model.attnq.onnx", "--task", task),
        *("--data", data, *options, "--resamples", 20, "--json", tmp_path / "report.json"),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    (comparison,) = (c for c in report["compressed"][0]["metrics"] if c["metric"] == metric)
    assert abs(comparison["relative_loss"]["estimate"]) < 0.1  # few examples: only that nothing is broken


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.mean(np.abs(found - expected) > ATOL) <= MAX_FLIPPED


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [("rxnmapper", ORTModelForMaskedLM, REACTION), ("minilm", ORTModelForFeatureExtraction, "A short sentence.")],
)
def test_kernels_give_what_the_portable_model_gives(
    name: str, kind: type, text: str, exported: Callable[[str], Path]
) -> None:
    folder = exported(name)
    tokens = AutoTokenizer.from_pretrained(folder)([text], return_tensors="np")
    expected = next(iter(Session(folder / "model.attnq.onnx").run(dict(tokens)).values()))
    for options in (None, with_kernels()):
        model = kind.from_pretrained(folder, file_name="model.attnq.onnx", session_options=options)
        assert_close(model(**tokens)[0], expected)


def test_generation_gives_the_same_tokens_with_the_kernels(exported: Callable[[str], Path]) -> None:
    folder = exported("decoder")
    prompt = AutoTokenizer.from_pretrained(folder)("Return a new", return_tensors="pt")
    tokens = [
        ORTModelForCausalLM.from_pretrained(folder, file_name="model.attnq.onnx", session_options=options)
        .generate(**prompt, max_new_tokens=24, do_sample=False)
        .tolist()
        for options in (None, with_kernels())
    ]
    assert len(tokens[0][0]) == prompt.input_ids.shape[1] + 24
    assert tokens[0] == tokens[1]


def test_the_program_of_the_examples_prints_what_a_pipeline_gives(exported: Callable[[str], Path]) -> None:
    folder = exported("decoder")
    program = [sys.executable, EXAMPLES / "deploy" / "generate.py", folder, "Return a new"]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    model = ORTModelForCausalLM.from_pretrained(folder, file_name="model.attnq.onnx")
    generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert done.stdout == generate("Return a new", max_new_tokens=40, do_sample=False)[0]["generated_text"] + "\n"


@pytest.mark.slow
def test_the_sweeps_of_the_paper_run_on_a_local_folder(tmp_path: Path) -> None:
    """examples/ji2021/hub.sh with a folder in place of the names on the hub, of a model and of a data set."""
    source(tmp_path / "bert", "Bert", "ForMaskedLM")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "test.jsonl").write_text("".join(f'{{"text": "{words}"}}\n' for words in ("red car", "tree")))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "onnx-attnq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnx_attnq "$@"\n')
    (tmp_path / "bin" / "onnx-attnq").chmod(0o755)
    paths = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(EXAMPLES.parent)}
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    data = ["--dataset", tmp_path / "texts", "--split", "test", "--limit", "100"]
    program = ["sh", EXAMPLES / "ji2021" / "hub.sh", tmp_path / "bert", tmp_path / "out", "fill-mask", *data]
    subprocess.run(program, check=True, capture_output=True, env=os.environ | paths | offline)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    made = [Path(model["path"]).stem for model in report["compressed"]]
    assert made[:3] == ["prune-1e-5", "prune-1e-4", "prune-1e-3"]
    assert made[-3:] == [f"row-log-mean-{bits}bit" for bits in (4, 3, 2)]
    assert len(made) == 23


@pytest.mark.slow
def test_an_encoder_decoder_with_a_merged_decoder(tmp_path: Path) -> None:
    """`onnx-attnq FOLDER`: the parts load as the original's do, and generate the same tokens with the kernels."""
    torch.manual_seed(0)
    sizes = {
        f"{part}_{what}": n
        for part in ("encoder", "decoder")
        for what, n in (("layers", 1), ("ffn_dim", 64), ("attention_heads", 4))
    }
    special = {
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    }
    config = BartConfig(vocab_size=len(WORDS), d_model=32, max_position_embeddings=64, init_std=0.5, **sizes, **special)
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    tokenizer().save_pretrained(tmp_path / "bart")
    command("export", tmp_path / "bart", "-o", tmp_path / "onnx", "--offline", "--compress")
    assert (tmp_path / "onnx.attnq" / "decoder_model_merged.onnx").exists()
    tokens = [
        ORTModelForSeq2SeqLM.from_pretrained(tmp_path / "onnx.attnq", session_options=options)
        .generate(input_ids=torch.tensor([[2, 5, 6, 7, 8, 3]]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
        .tolist()
        for options in (None, with_kernels())
    ]
    assert tokens[0] == tokens[1]
