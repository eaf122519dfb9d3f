"""The public surface: short, complete, and enough for the main job."""

from __future__ import annotations

from pathlib import Path

from small_transformers import bert_like

import onnx_attnq
from onnx_attnq.errors import AttnqError


def test_the_public_names_are_these() -> None:
    assert len(set(onnx_attnq.__all__)) == len(onnx_attnq.__all__)
    for name in onnx_attnq.__all__:
        assert getattr(onnx_attnq, name).__doc__ or isinstance(getattr(onnx_attnq, name), str | tuple)


def test_the_main_job_in_a_few_calls(tmp_path: Path) -> None:
    onnx_attnq.save(bert_like(17), tmp_path / "model.onnx")
    result = onnx_attnq.compress(tmp_path / "model.onnx")
    assert result.verification is not None
    assert result.verification.passed
    assert result.output == tmp_path / "model.attnq.onnx"


def test_the_main_job_step_by_step(tmp_path: Path) -> None:
    onnx_attnq.save(bert_like(17), tmp_path / "model.onnx")
    original = onnx_attnq.load(tmp_path / "model.onnx")
    model = original.clone()
    onnx_attnq.expose(model)
    found = onnx_attnq.find_sites(model)
    ids = [site.id for site in found.sites]
    plan = onnx_attnq.uniform_plan(onnx_attnq.fingerprint(original), ids, onnx_attnq.preset("ji2021"), exclude=["*p0"])
    onnx_attnq.save_plan(plan, tmp_path / "plan.json")
    record = onnx_attnq.rewrite(model, found, onnx_attnq.load_plan(tmp_path / "plan.json"))
    onnx_attnq.save(model, tmp_path / "out.onnx")
    written = onnx_attnq.load(tmp_path / "out.onnx")
    assert onnx_attnq.read_record(written) == record
    assert [site.id for site in record.sites] == ["Softmax_p1"]
    samples = onnx_attnq.generate_samples(original, 2, 0)
    assert onnx_attnq.verify(original, written, samples).passed


def test_every_error_is_one_that_a_caller_can_catch() -> None:
    from onnx_attnq import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(c, AttnqError) for c in classes)
    assert {c.exit_code for c in classes} == {1, 2, 3}
    assert onnx_attnq.AttnqError is AttnqError
