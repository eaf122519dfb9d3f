"""What to do after a study: why heads are not safe, what would make them so, and the plan for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from small_transformers import bert_like
from studies import make_study
from test_analyze import errors_of

from onnx_attnq.cli import main
from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples
from onnx_attnq.model import load, save
from onnx_attnq.report.tables import study_json
from onnx_attnq.rewriting import load_plan
from onnx_attnq.scheme import HeadSchemes, QuantScheme, left_alone, preset
from onnx_attnq.study import advised_plan, findings, resistances
from onnx_attnq.study.probability_statistics import measure

THREE, TWO, SHARED = preset("row-log"), preset("row-log", bits=2), preset("row-log-mean", bits=1, threshold=0.5)


def test_a_head_that_resists_says_why_and_with_what_it_is_safe() -> None:
    study = make_study(schemes=(TWO, THREE, SHARED))
    study = errors_of(study, TWO, [[0.1, 0.4, 0.5], [0.1] * 3])
    study = errors_of(study, THREE, [[0.1, 0.2, 0.3], [0.1] * 3])
    study = errors_of(study, SHARED, [[0.9] * 3, [0.9] * 3])
    worst, other = resistances(study, findings(study, 0.25)[0])
    assert (worst.head.site, worst.head.head, worst.safe_with) == ("layer.0", 2, ())
    assert "too coarse" in worst.why
    assert worst.remedy.startswith("no scheme that was measured makes it safe: measure more bits")
    assert (other.head.head, other.safe_with) == (1, (THREE,))
    assert str(other).startswith("layer.0 head 1 (0.40): ")
    assert str(other).endswith("; safe with row-log")
    (first, *_) = resistances(study, findings(study, 0.25)[2])
    assert ("spreads evenly" in first.why) == (first.mass >= 0.1)
    listed = study_json(study, 0.25)["schemes"][0]["resisting_heads"]
    assert listed == [worst.to_json(), other.to_json()]
    assert listed[1]["safe_with"] == ["row-log"]


@pytest.mark.parametrize(("scheme", "mass"), [(preset(threshold=0.3), 0.4), (preset("ji2021"), 0.0), (SHARED, 0.4)])
def test_mass_below_the_threshold_is_that_of_the_probabilities(scheme: QuantScheme, mass: float) -> None:
    p = np.tile([0.6, 0.1, 0.1, 0.1, 0.1], (1, 1, 5, 1))
    site = measure("layer.0", p, np.ones((5, 5), bool), (scheme,), value=np.eye(5)[None, None])
    study = errors_of(dataclasses.replace(make_study(), sites=(site,)), scheme, [[0.9]])
    (found,) = resistances(study, findings(study)[0])
    assert found.mass == pytest.approx(mass)
    assert f"{mass:.0%} of its mass" in found.why or mass == 0.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(bert_like(17), tmp_path / "model.onnx")
    (tmp_path / "data").mkdir()
    for index, sample in enumerate(generate_samples(bert_like(17), 2, 0)):
        np.savez(tmp_path / "data" / f"{index}.npz", **sample)
    return tmp_path / "model.onnx"


def test_the_plan_leaves_heads_that_resist_and_sites_that_were_not_observed(model: Path) -> None:
    sites = find_sites(expose(load(model)))
    first, second = (site.id for site in sites.sites)
    study = make_study(schemes=(TWO,), heads=2)
    study = errors_of(study, TWO, [[0.1, 0.9], [0.1, 0.1]])
    plan = advised_plan(study, sites, 0.3)
    assert [entry.scheme for entry in plan.sites] == [None, None]
    assert "not observed" in plan.sites[0].reason
    study = renamed(study, first, second)
    plan = advised_plan(study, sites, 0.3)
    assert plan.sites[0].scheme == HeadSchemes((TWO, left_alone(TWO)))
    assert plan.sites[0].left[0][1].startswith("context error 0.90 beyond 0.3: ")
    assert plan.sites[1].scheme == TWO
    both = errors_of(study, TWO, [[0.9, 0.9], [0.0, 0.0]])
    assert advised_plan(both, sites, 0.5).sites[0].reason.startswith("every head resists: context error")
    with pytest.raises(NothingToRewrite, match="nothing to advise"):
        advised_plan(make_study(schemes=(preset("prune-only"),)), sites)


def renamed(study, *names):  # type: ignore[no-untyped-def]
    sites = (dataclasses.replace(site, site=name) for site, name in zip(study.sites, names, strict=True))
    return dataclasses.replace(study, sites=tuple(sites))


def test_the_plan_that_analyze_writes_is_taken_by_the_main_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    arguments = ["analyze", str(model), "--data", str(tmp_path / "data"), "--no-report", "--write-plan", str(plan)]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--safe-error", "0.1", "--scheme", "row-log-mean:bits=2,threshold=0.1"])
    assert not stopped.value.code
    out = capsys.readouterr().out
    written = load_plan(plan)
    ids = [entry.site for entry in written.sites]
    numbers = json.loads((tmp_path / "model.analysis" / "numbers.json").read_text())
    assert [site["id"] for site in numbers["sites"]] == ids
    resisting = numbers["schemes"][0]["resisting_heads"]
    assert resisting, "a test of nothing"
    assert f"{resisting[0]['site']} head {resisting[0]['head']} (" in out
    assert f"--plan {plan}" in out
    reasons = json.dumps(written.to_json())
    assert resisting[0]["why"] in reasons
    if any(entry.scheme for entry in written.sites):
        with pytest.raises(SystemExit) as stopped:
            main([str(model), "--plan", str(plan)])
        assert not stopped.value.code


def test_a_plan_is_not_made_of_combined_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "--combine", str(tmp_path), "-o", str(tmp_path), "--write-plan", str(tmp_path / "p.json")])
    assert stopped.value.code == 2
    assert "does not go with --combine" in capsys.readouterr().err
