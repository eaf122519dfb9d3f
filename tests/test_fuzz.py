"""Broken models through the whole job, but for onnxruntime: each step works or refuses in one line, and none crashes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from attention_forms import FORMS
from model_mutations import mutate
from small_graphs import parse
from small_models import attention

from onnx_attnq.errors import AttnqError
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.inputs.needed_memory import check_samples_memory
from onnx_attnq.inputs.shape_check import ShapeCheck
from onnx_attnq.model import load, save, structure_hash
from onnx_attnq.rewriting import RewriteSettings, revert, rewrite, uniform_plan
from onnx_attnq.scheme import preset

SMALL = 130_000
"""Bytes of the models of the gallery that are mutated; of a larger one, most places are far from attention."""

FOLDER = Path(__file__).parent


def seeds() -> dict[str, onnx.ModelProto]:
    found = {"attention": attention()}
    for name, example in FORMS.items():
        found[name] = ir.to_proto(parse(example.text, opset=example.opset, functions=example.functions))
    for path in sorted((FOLDER / "gallery").glob("*.onnx")) + sorted((FOLDER / "models").glob("*.onnx")):
        if path.stat().st_size < SMALL:
            found[path.stem] = onnx.load(path)
    return found


SEEDS = seeds()
CASES, PARTS = 10_000, 40
QUICK = 300


def through_the_job(proto: onnx.ModelProto, folder: Path, rng: random.Random) -> str:
    """The step that refuses a model, or else what came of it."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        original = load(path)
    except AttnqError as error:
        return one_line_of(error, "load")
    work = original.clone()
    try:
        sites = find_sites(expose(work))
        ids = [site.id for site in sites.sites]
        scheme = preset(rng.choice(("row-log", "ji2021", "boolean")))
        plan = uniform_plan(sites.exposed.structure_hash, ids, scheme)
        record = rewrite(
            work, sites, plan, RewriteSettings(inline=rng.random() < 0.3, quantize_outputs=rng.random() < 0.3)
        )
    except AttnqError as error:
        return one_line_of(error, "rewrite")
    if not record.sites:
        return "nothing"
    # What was rewritten can be written, read and reverted.
    save(work, folder / "out.onnx")
    again = load(folder / "out.onnx")
    if record.undo is None:
        return "irreversible"
    revert(again)
    assert structure_hash(again) == structure_hash(original)
    save(again, folder / "back.onnx")
    return "all"


def one_line_of(error: AttnqError, step: str) -> str:
    assert len(str(error).splitlines()) == 1, str(error)
    return step


def made_up(proto: onnx.ModelProto, folder: Path, rng: random.Random) -> str:
    """Whether inputs could be made up, and fit into memory with what the model makes of them; nothing is run."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    try:
        model = load(path)
        samples = generate_samples(model, 1, rng.randrange(10))
        check_samples_memory(ShapeCheck(model), samples)
    except AttnqError as error:
        return one_line_of(error, "refused")
    return "made" if samples else "none"


def fuzz(first: int, count: int, folder: Path, job: Callable[..., str] = through_the_job) -> dict[str, int]:
    reached: dict[str, int] = {}
    names = sorted(SEEDS)
    for case in range(first, first + count):
        rng = random.Random(case)
        name = names[case % len(names)]
        try:
            step = job(mutate(SEEDS[name], rng), folder, rng)
        except Exception as error:
            error.add_note(f"case {case} of {name}")
            raise
        reached[step] = reached.get(step, 0) + 1
    return reached


def test_broken_models_are_refused_or_rewritten(tmp_path: Path) -> None:
    reached = fuzz(0, QUICK, tmp_path)
    assert reached["all"] > QUICK / 10
    assert reached["load"] > QUICK / 10


@pytest.mark.parametrize("case", [1603, 1924, 1950, 2026, 2515, 4020, 4699, 5872, 6596])
def test_what_once_crashed_does_not(case: int, tmp_path: Path) -> None:
    fuzz(case, 1, tmp_path)


@pytest.mark.parametrize("case", [80, 176])
def test_inputs_of_broken_models_are_made_up_or_refused(case: int, tmp_path: Path) -> None:
    assert fuzz(case, 20, tmp_path, made_up).keys() <= {"made", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_inputs_of_very_many_broken_models(part: int, tmp_path: Path) -> None:
    fuzz(part * (CASES // PARTS), CASES // PARTS, tmp_path, made_up)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_very_many_broken_models(part: int, tmp_path: Path) -> None:
    """Parts that can be run alone: `pytest -m slow tests/test_fuzz.py -k "broken_models[7]"`."""
    fuzz(QUICK + part * (CASES // PARTS), CASES // PARTS, tmp_path)
