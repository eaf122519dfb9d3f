"""The compressed model where it is used: optimum, pipelines, generation with a past, and other runtimes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("optimum.onnxruntime", reason="needs the extra 'export'", exc_type=ImportError)

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForMaskedLM
from random_models import source
from transformers import AutoTokenizer, pipeline

from onnx_attnq.compress import compress
from onnx_attnq.export import export
from onnx_attnq.runtime import Session

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.filterwarnings("default"),  # transformers, torch and optimum warn about one another
]

ROOT = Path(__file__).parent.parent
ATOL = 1e-4
"""Float32 rounding in another order of operations. A code that flips at an edge would move an output by far more."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, model.attnq.onnx and model.inline.onnx."""
    folder = tmp_path_factory.mktemp("encoder")
    export(source(folder / "bert", "Bert", "ForMaskedLM"), folder / "onnx")
    compress(folder / "onnx" / "model.onnx")
    compress(folder / "onnx" / "model.onnx", folder / "onnx" / "model.inline.onnx", inline=True)
    return folder / "onnx"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained decoder of the examples, exported with a past and compressed, as a function and inlined."""
    folder = tmp_path_factory.mktemp("decoder") / "onnx"
    export(ROOT / "examples" / "decoder" / "model", folder)
    compress(folder / "model.onnx")
    compress(folder / "model.onnx", folder / "model.inline.onnx", inline=True)
    return folder


def sample(tokens: int = 9) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 13, (2, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def expected(folder: Path) -> np.ndarray:
    return Session(folder / "model.attnq.onnx", threads=1).run(sample())["logits"]


def test_generation_with_a_past_gives_the_tokens_of_the_whole_sequence(decoder: Path) -> None:
    words = AutoTokenizer.from_pretrained(decoder)
    prompt = words("Return a new", return_tensors="pt")
    model = ORTModelForCausalLM.from_pretrained(decoder, file_name="model.attnq.onnx")
    inlined = ORTModelForCausalLM.from_pretrained(decoder, file_name="model.inline.onnx")
    generated = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert generated.shape[1] == prompt.input_ids.shape[1] + 24
    np.testing.assert_array_equal(
        generated.numpy(), inlined.generate(**prompt, max_new_tokens=24, do_sample=False).numpy()
    )
    # Each generated token is the best one after all before it, computed at once without a past.
    logits = model(input_ids=generated, attention_mask=torch.ones_like(generated)).logits.numpy()[0]
    start = prompt.input_ids.shape[1]
    np.testing.assert_array_equal(logits[start - 1 : -1].argmax(axis=-1), generated[0, start:].numpy())


def test_a_pipeline_fills_masks(encoder: Path) -> None:
    words = AutoTokenizer.from_pretrained(encoder)
    model = ORTModelForMaskedLM.from_pretrained(encoder, file_name="model.attnq.onnx")
    found = pipeline("fill-mask", model=model, tokenizer=words, top_k=3)("red [MASK] car")
    tokens = {name: np.array(value) for name, value in words(["red [MASK] car"]).items()}
    logits = Session(encoder / "model.attnq.onnx").run(tokens)["logits"][0, 2]
    assert [entry["token"] for entry in found] == np.argsort(-logits)[:3].tolist()


def test_onnx_reference_evaluator(encoder: Path) -> None:
    model = onnx.load(encoder / "model.attnq.onnx")
    found = ReferenceEvaluator(model).run(["logits"], sample())[0]
    np.testing.assert_allclose(found, expected(encoder), atol=ATOL)


def test_openvino_takes_the_inlined_model(encoder: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    core = openvino.Core()
    # OpenVINO computes in bfloat16 where the CPU has AMX, which is another model, and dies where AMX is only announced.
    float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(encoder / "model.inline.onnx"), "CPU", float32)
    found = compiled(sample())[compiled.output("logits")]
    np.testing.assert_allclose(found, expected(encoder), atol=ATOL)


def test_onnxruntime_web(encoder: Path, tmp_path: Path) -> None:
    """WebAssembly under Node; onnxruntime-web comes from npm."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node")
    shutil.copytree(ROOT / "examples" / "deploy" / "web", tmp_path / "web")
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=tmp_path / "web", check=True)
    command = ["node", "run.mjs", str(encoder / "model.attnq.onnx"), "2", "9"]
    ids = sample()["input_ids"].ravel().tolist()
    done = subprocess.run([*command, *map(str, ids)], cwd=tmp_path / "web", check=True, capture_output=True, text=True)
    found = np.array(done.stdout.split(), dtype=np.float64)
    np.testing.assert_allclose(found, expected(encoder).ravel(), atol=ATOL)
