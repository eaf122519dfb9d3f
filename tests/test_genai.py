"""A folder of onnxruntime-genai: what is put into it, and what it generates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from decoder_models import HEAD_SIZE, HEADS, KV_HEADS, LAYERS, POSITIONS, VOCABULARY, WIDTH, decoder
from fused_case import CURRENT_KERNELS

from onnx_attnq.cli.group import cli
from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.job import compress_folder
from onnx_attnq.job.genai import add_library
from onnx_attnq.model import load
from onnx_attnq.run import native_library

NEEDS_LIBRARY = pytest.mark.skipif(native_library() is None, reason="the library was not built")

pytestmark = CURRENT_KERNELS


def configuration(filename: str = "model.onnx") -> dict[str, Any]:
    """What genai's builder writes for a llama-like model, its lists of names shortened to patterns by itself."""
    names = {kind: {f"{kind}_{part}_names": f"{stem}.%d.{part}" for part in ("key", "value")} for kind, stem in (("past", "past_key_values"), ("present", "present"))}  # fmt: skip
    part = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": filename,
        "head_size": HEAD_SIZE,
        "hidden_size": WIDTH,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names["past"]},
        "outputs": {"logits": "logits", **names["present"]},
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": VOCABULARY}
    search = {"do_sample": False, "max_length": POSITIONS, "past_present_share_buffer": True}
    return {"model": {**ids, "context_length": POSITIONS, "type": "llama", "decoder": part}, "search": search}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "llama"
    made.mkdir()
    onnx.save(decoder(), made / "model.onnx")
    (made / "genai_config.json").write_text(json.dumps(configuration()))
    return made


def written(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "genai_config.json").read_text())
    return data


@NEEDS_LIBRARY
def test_the_library_lies_beside_the_model_and_is_named(folder: Path) -> None:
    library = native_library()
    assert library is not None
    done = CliRunner().invoke(cli, [str(folder), "--samples", "2"])
    assert done.exit_code == 0, done.output
    assert f"{library.name} was copied beside the model" in " ".join(done.output.split())
    output = folder.with_name("llama.attnq")
    options = written(output)["model"]["decoder"]["session_options"]
    assert options == {"log_id": "onnxruntime-genai", "provider_options": [], "custom_ops_library": library.name}
    assert (output / library.name).read_bytes() == library.read_bytes()
    expected = configuration()
    expected["model"]["decoder"]["session_options"] = options
    assert written(output) == expected
    assert written(folder) == configuration()  # the source is never changed


@NEEDS_LIBRARY
@pytest.mark.parametrize("options", [["--keep-fused"], ["--dry-run"]])
def test_without_a_rewritten_model_there_is_no_library(options: list[str], folder: Path) -> None:
    done = CliRunner().invoke(cli, [str(folder), *options])
    assert done.exit_code == 0, done.output
    assert not list(folder.parent.rglob("*onnx_attnq*"))


def test_a_library_that_is_there_stays(folder: Path) -> None:
    config = configuration()
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "libextensions.so"
    (folder / "genai_config.json").write_text(json.dumps(config))
    if native_library() is not None:
        assert "libextensions.so" in str(add_library(folder, ["model.onnx"]))
    assert written(folder) == config


@NEEDS_LIBRARY
def test_each_part_that_was_rewritten_names_it(folder: Path) -> None:
    stages = [{"prompt": {"filename": "a.onnx"}, "step": {"filename": "b.onnx", "session_options": None}}]
    config = {"model": {"decoder": {"pipeline": stages}, "vision": {"filename": "v.onnx"}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert add_library(folder, ["a.onnx", "b.onnx"]) is not None
    (stage,) = written(folder)["model"]["decoder"]["pipeline"]
    assert {name for name, part in stage.items() if part["session_options"]["custom_ops_library"]} == {"prompt", "step"}
    assert written(folder)["model"]["vision"] == {"filename": "v.onnx"}


def test_a_damaged_configuration_is_one_line(folder: Path) -> None:
    (folder / "genai_config.json").write_text('{"model": ')
    with pytest.raises(InvalidModel, match=r"genai_config\.json"):
        compress_folder(folder, verification=None)
    assert not folder.with_name("llama.attnq").exists()


def test_a_folder_without_a_configuration_gets_nothing(tmp_path: Path) -> None:
    assert add_library(tmp_path, ["model.onnx"]) is None


def sample(tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(tokens)
    caches = {f"past_key_values.{i}.{part}": np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32) for i in range(LAYERS) for part in ("key", "value")}  # fmt: skip
    ids = rng.integers(0, VOCABULARY, (1, tokens))
    return {"input_ids": ids, "attention_mask": np.ones((1, tokens), np.int64), **caches}


def test_samples_for_the_only_model_of_a_folder(folder: Path) -> None:
    np.savez(folder.parent / "data.npz", **sample(9))
    found = compress_folder(folder, data=folder.parent / "data.npz")
    assert found.models[0].verification is not None
    assert found.models[0].verification.samples == 1
    assert found.models[0].made_up is None
    assert "given" not in found.models[0].warnings


@pytest.mark.slow
def test_samples_for_each_of_several_models(folder: Path, tmp_path: Path) -> None:
    (folder / "more").mkdir()
    shutil.copy(folder / "model.onnx", folder / "other.onnx")
    shutil.copy(folder / "model.onnx", folder / "more" / "third.onnx")
    data = tmp_path / "data"
    (data / "more" / "third").mkdir(parents=True)
    np.savez(data / "model.npz", **sample(9))
    for tokens in (5, 7):
        np.savez(data / "more" / "third" / f"{tokens}.npz", **sample(tokens))
    done = CliRunner().invoke(cli, [str(folder), "--data", str(data), "--samples", "1"])
    assert done.exit_code == 0, done.output
    counts = [line for line in done.output.splitlines() if "of the attention values pruned" in line]
    assert [line.partition("(")[2] for line in counts] == [
        "1 sample)",
        "2 samples)",
        "1 made-up sample; give real ones with --data)",
    ]


def test_samples_of_no_model_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.onnx", folder / "other.onnx")
    np.savez(tmp_path / "data.npz", **sample(9))
    with pytest.raises(InvalidData, match="no samples by the name of one of the 2 models"):
        compress_folder(folder, data=tmp_path / "data.npz")


# --- with onnxruntime-genai


def tokenizer(folder: Path) -> None:
    """A tokenizer of letters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠ.,"]
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(letters[:2])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": POSITIONS}))


def generated(folder: Path, *, chunks: int = 1) -> list[int]:
    """Twenty tokens, each the most likely; the prompt given in one piece or more."""
    og = pytest.importorskip("onnxruntime_genai")
    model = og.Model(str(folder))
    ids = og.Tokenizer(model).encode("the quick brown fox jumps over the lazy dog")
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=POSITIONS - 8, do_sample=False)
    generator = og.Generator(model, settings)
    for chunk in np.array_split(np.asarray(ids, np.int32), chunks):
        generator.append_tokens(chunk)
    for _ in range(20):
        if generator.is_done():
            break
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.mark.pipeline
@NEEDS_LIBRARY
def test_generates_the_same_with_and_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    tokenizer(folder)
    native = compress_folder(folder).output
    assert native is not None
    portable = native.with_name("portable")
    shutil.copytree(native, portable)
    config = written(portable)
    del config["model"]["decoder"]["session_options"]["custom_ops_library"]
    (portable / "genai_config.json").write_text(json.dumps(config))
    (portable / native_library().name).unlink()  # type: ignore[union-attr]
    assert any(node.op_type == "QuantizedGroupQueryAttention" for node in load(native / "model.onnx").graph)

    expected = generated(native)
    assert len(expected) > 50
    assert generated(native, chunks=3) == expected
    assert generated(portable) == expected
    assert generated(portable, chunks=3) == expected
    assert generated(folder)[:43] == expected[:43]  # the prompt
    # The library is really there: it says what is wrong when it is registered.
    monkeypatch.setenv("ONNX_ATTNQ_ISA", "abacus")
    with pytest.raises(Exception, match="abacus"):
        generated(native)
    generated(portable)
