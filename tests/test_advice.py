"""What to do after a study: why heads are not safe, what would make them so, and the plan for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_models import decoder
from small_transformers import bert_like
from studies import make_study
from test_analyze import errors_of

from onnx_attnq.cli import main
from onnx_attnq.errors import NothingToRewrite
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples, load_samples
from onnx_attnq.model import load, save
from onnx_attnq.report.tables import study_json
from onnx_attnq.rewriting import Plan, SitePlan, load_plan, save_plan
from onnx_attnq.scheme import HeadSchemes, QuantScheme, left_alone, preset
from onnx_attnq.study import StudySettings, advised_plan, analyze, findings, plan_finding, resistances
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


@pytest.mark.parametrize("option", ["--plan", "--write-plan"])
def test_a_plan_is_not_of_combined_studies(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "--combine", str(tmp_path), "-o", str(tmp_path), option, str(tmp_path / "p.json")])
    assert stopped.value.code == 2
    assert f"{option} is for the graph of MODEL; it does not go with --combine" in capsys.readouterr().err


ONE, FOUR = preset("row-log-mean", bits=1, threshold=0.5), preset("row-log-mean", bits=4, threshold=0.02)


def plan_for(model: Path, first: HeadSchemes | None, **changes: str) -> Path:
    """The first site has these schemes, head 0 of the second a scheme, and its head 1 none."""
    sites = find_sites(expose(load(model)))
    one, two = (site.id for site in sites.sites)
    alone = HeadSchemes((FOUR, left_alone(FOUR)))
    entries = (SitePlan(one, first, "" if first else "as asked"), SitePlan(two, alone, left=((1, "fragile"),)))
    plan = Plan(changes.get("structure_hash", sites.exposed.structure_hash), entries)
    save_plan(plan, model.with_name("plan.json"))
    return model.with_name("plan.json")


def test_analyze_measures_each_head_with_its_own_scheme_of_a_plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_for(model, HeadSchemes((ONE, FOUR)))
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", str(model), "--data", str(tmp_path / "data"), "--no-report", "--plan", str(plan)])
    assert not stopped.value.code
    assert "With the plan: " in capsys.readouterr().out
    numbers = json.loads((tmp_path / "model.analysis" / "numbers.json").read_text())
    assert [s["bits"] for s in numbers["schemes"]] == [1, 4]
    labels = {1: numbers["schemes"][0]["label"], 4: numbers["schemes"][1]["label"]}
    heads = numbers["plan"]["heads"]
    for own, bits in zip(heads, (1, 4, 4, None), strict=True):
        expected = {"pruned": 0.0, "context_error": 0.0}
        if bits is not None:
            expected = numbers["sites"][own["layer"]]["heads"][own["head"]]["schemes"][labels[bits]]
        assert (own["pruned"], own["context_error"]) == (expected["pruned"], expected["context_error"])
        assert (own["scheme"] is None) == (bits is None)
    assert heads[0]["pruned"] > heads[1]["pruned"]
    values = [head["values"] for site in numbers["sites"] for head in site["heads"]]
    shares = [own["pruned"] for own in heads]
    assert numbers["plan"]["pruned"] == pytest.approx(np.average(shares, weights=values))
    assert numbers["plan"]["context_error"] == pytest.approx(np.mean([own["context_error"] for own in heads]))


def test_a_plan_says_which_of_its_heads_resist(model: Path, tmp_path: Path) -> None:
    samples = load_samples(tmp_path / "data", load(model))
    study = analyze(model, samples, "made up", settings=StudySettings((ONE, FOUR)))
    found = plan_finding(study, load_plan(plan_for(model, HeadSchemes((ONE, FOUR)))), 0.0)
    assert [head.error for head in found.resisting] == sorted((h.error for h in found.resisting), reverse=True)
    assert len(found.resisting) == 3  # all but the one that is left alone
    assert str(found.resisting[0]) in str(found)
    untouched = plan_finding(study, load_plan(plan_for(model, None)), 0.0)
    assert {own.scheme for own in untouched.heads} == {None, FOUR}
    assert untouched.pruned < found.pruned


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_a_plan_that_is_measured_leaves_fused_attention_as_it_is(kind: str, tmp_path: Path) -> None:
    """Samples are made up of what its inputs mean to it, and a plan that is written beside is for the model itself."""
    path, plan, written = tmp_path / "decoder.onnx", tmp_path / "plan.json", tmp_path / "written.json"
    onnx.save(decoder(kind), path)
    sites = find_sites(expose(load(path)))
    save_plan(Plan(sites.exposed.structure_hash, tuple(SitePlan(site.id, FOUR) for site in sites.sites)), plan)
    options = ["--plan", str(plan)]
    if kind == "mha":  # of the other no context is observed, so there is nothing to advise
        options += ["--write-plan", str(written)]
    numbers = []
    for more in ([], options):
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", str(path), "--no-report", "--scheme", "row-log-mean:bits=4,threshold=0.02", *more])
        assert not stopped.value.code
        numbers.append(json.loads((tmp_path / "decoder.analysis" / "numbers.json").read_text()))
    assert numbers[1].pop("plan")["heads"]
    assert numbers[0] == numbers[1]
    if kind == "mha":
        assert load_plan(written).structure_hash == sites.exposed.structure_hash


def test_a_plan_of_something_else_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for schemes, changes, message in (
        ((ONE, FOUR), {"structure_hash": "c0ffee"}, "the plan was made for the model c0ffee"),
        ((ONE, ONE, FOUR), {}, "there are schemes for 3 heads, and the site has 2"),
    ):
        plan = plan_for(model, HeadSchemes(schemes), **changes)
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", str(model), "--no-report", "--plan", str(plan)])
        assert stopped.value.code
        assert message in capsys.readouterr().err
        assert not model.with_name("model.analysis").exists()
