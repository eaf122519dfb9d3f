"""The compressed model where it is used: optimum, pipelines, generation with a past, and other runtimes."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
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

from onnx_attnq.evaluate import TextModel
from onnx_attnq.export import export
from onnx_attnq.inputs import Sample
from onnx_attnq.job import compress
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import preset

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
    compress(
        folder / "onnx" / "model.onnx", folder / "onnx" / "model.inline.onnx", rewriting=RewriteSettings(inline=True)
    )
    return folder / "onnx"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained decoder of the examples, exported with a past and compressed, as a function and inlined."""
    folder = tmp_path_factory.mktemp("decoder") / "onnx"
    export(ROOT / "examples" / "decoder" / "model", folder)
    compress(folder / "model.onnx")
    compress(folder / "model.onnx", folder / "model.inline.onnx", rewriting=RewriteSettings(inline=True))
    return folder


@pytest.fixture(scope="module")
def shared(encoder: Path, decoder: Path) -> dict[str, Path]:
    """Copies of both folders' files, with pruned values that share what they summed to."""
    for folder in (encoder, decoder):
        (folder / "shared").mkdir()
        shutil.copytree(
            folder, folder / "shared", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.onnx", "shared")
        )
        for name, inline in (("model.attnq.onnx", False), ("model.inline.onnx", True)):
            compress(
                folder / "model.onnx",
                folder / "shared" / name,
                scheme=preset("row-log-mean", bits=2, threshold=0.1),
                rewriting=RewriteSettings(inline=inline),
                verification=None,
            )
    return {"encoder": encoder / "shared", "decoder": decoder / "shared"}


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A folder as of the fixtures above, what its model is fed, and the logits of onnxruntime."""

    folder: Path
    sample: Sample
    logits: np.ndarray


def tokens(folder: Path) -> Sample:
    ids = np.random.default_rng(0).integers(5, 13, (2, 9))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def tokens_with_a_past(folder: Path) -> Sample:
    """Three tokens after nine whose keys and values are fed: one step of a generation."""
    model = TextModel.load(folder / "model.attnq.onnx", None, run=RunSettings(1))
    ids = np.random.default_rng(0).integers(5, 1000, (2, 12))
    past = model.run({"input_ids": ids[:, :9]})
    return {
        "input_ids": ids[:, 9:],
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(9, 12), (2, 3)),
        **{name.replace("present", "past_key_values"): a for name, a in past.items() if name.startswith("present")},
    }


@pytest.fixture(
    scope="module",
    params=[(name, is_shared) for is_shared in (False, True) for name in ("encoder", "decoder")],
    ids=lambda param: f"{param[0]}-{'shared' if param[1] else 'zero'}",
)
def deployed(request: pytest.FixtureRequest) -> Deployed:
    name, is_shared = request.param
    feed = {"encoder": tokens, "decoder": tokens_with_a_past}[name]
    folder = request.getfixturevalue("shared")[name] if is_shared else request.getfixturevalue(name)
    sample = feed(folder)
    return Deployed(folder, sample, Session(folder / "model.attnq.onnx", RunSettings(1)).run(sample)["logits"])


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


def test_onnx_reference_evaluator(deployed: Deployed) -> None:
    model = onnx.load(deployed.folder / "model.attnq.onnx")
    found = ReferenceEvaluator(model).run(["logits"], dict(deployed.sample))[0]
    np.testing.assert_allclose(found, deployed.logits, atol=ATOL)


def test_openvino_takes_the_inlined_model(deployed: Deployed) -> None:
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    core = openvino.Core()
    # OpenVINO computes in bfloat16 where the CPU has AMX, which is another model, and crashes where AMX is announced but missing.
    float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(deployed.folder / "model.inline.onnx"), "CPU", float32)
    found = compiled(dict(deployed.sample))[compiled.output("logits")]
    np.testing.assert_allclose(found, deployed.logits, atol=ATOL)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Runs a program of examples/deploy/web, with onnxruntime-web from npm, and returns the words that it prints."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node")
    folder = tmp_path_factory.mktemp("web") / "web"
    shutil.copytree(ROOT / "examples" / "deploy" / "web", folder)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)

    def run(program: str, *arguments: object) -> list[str]:
        command = ["node", program, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()

    return run


def test_onnxruntime_web(encoder: Path, shared: dict[str, Path], web: Callable[..., list[str]]) -> None:
    """WebAssembly under Node."""
    sample = tokens(encoder)
    ids = sample["input_ids"]
    for folder in (encoder, shared["encoder"]):
        found = np.array(web("run.mjs", folder / "model.attnq.onnx", *ids.shape, *ids.ravel()), dtype=np.float64)
        expected = Session(folder / "model.attnq.onnx", RunSettings(1)).run(sample)["logits"]
        np.testing.assert_allclose(found, expected.ravel(), atol=ATOL)


def test_onnxruntime_web_generates_with_a_past(decoder: Path, web: Callable[..., list[str]]) -> None:
    prompt = AutoTokenizer.from_pretrained(decoder)("Return a new", return_tensors="pt")
    model = ORTModelForCausalLM.from_pretrained(decoder, file_name="model.attnq.onnx")
    generated = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0].tolist()
    count = prompt.input_ids.shape[1]
    found = web("generate.mjs", decoder / "model.attnq.onnx", 24, *generated[:count])
    assert [int(token) for token in found] == generated[count:]
