"""`onnx-attnq bisect A B` finds the site that causes the deviation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_models

import onnx_attnq.verification.bisection as bisection
from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidModel, InvalidScheme
from onnx_attnq.inputs import generate_samples
from onnx_attnq.job import compress, plan_only
from onnx_attnq.model import load, structure_hash
from onnx_attnq.progress import Steps, no_progress
from onnx_attnq.rewriting import Plan, RewriteSettings, SitePlan, read_record, save_plan
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.scheme import preset
from onnx_attnq.verification import Limit, Limits, bisect, verify
from onnx_attnq.verification.deviation import deviation_of
from onnx_attnq.verification.exchange import Exchange

LAYERS = 4
MILD = preset("row-log", bits=8, threshold=1e-6)
HARSH = preset("ji2021-linear", bits=1)


def layered(layers: int = LAYERS) -> str:
    """Layers of attention with a residual connection, each weighed alike."""
    lines = []
    for i in range(layers):
        x, y = (f"x{i}" if i else "x"), (f"x{i + 1}" if i + 1 < layers else "y")
        lines += [
            f"query{i} = MatMul({x}, weight{i})",
            f"key{i} = Transpose<perm = [0, 2, 1]>({x})",
            f"scores{i} = MatMul(query{i}, key{i})",
            f"[layer{i}] p{i} = Softmax<axis = -1>(scores{i})",
            f"context{i} = MatMul(p{i}, {x})",
            f"sum{i} = Add(context{i}, {x})",
            f"{y} = Mul(sum{i}, half)",
        ]
    weights = ", ".join(f"float[8, 8] weight{i}" for i in range(layers))
    return (
        '<ir_version: 8, opset_import: ["" : 17]> f (float[batch, length, 8] x) => (float[batch, length, 8] y)'
        f"<{weights}, float half = {{0.5}}> {{ {' '.join(lines)} }}"
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    proto = small_models.parse(layered())
    return small_models.write(proto, tmp_path_factory.mktemp("bisect") / "a.onnx")


def rewrite(original, target, harsh=()):
    ids = [site.id for site in plan_only(original).sites.sites]
    entries = tuple(SitePlan(site, HARSH if i in harsh else MILD) for i, site in enumerate(ids))
    compress(
        original,
        target,
        rewriting=RewriteSettings(plan=Plan(structure_hash(load(original)), entries)),
        verification=None,
    )
    return ids


@pytest.mark.parametrize("harsh", range(LAYERS))
def test_the_harsh_site_comes_first(original, tmp_path, harsh):
    ids = rewrite(original, tmp_path / "b.onnx", [harsh])
    found = bisect(original, tmp_path / "b.onnx", generate_samples(load(original)))
    assert found.sites[0].site == ids[harsh]
    assert max(found.sites, key=lambda site: site.local_error).site == ids[harsh]
    assert {site.site for site in found.sites} == set(ids)
    assert found.exclude == (ids[harsh],)
    assert found.remaining == found.sites[0].without < found.deviation


def test_figures_are_what_a_run_gives(original, tmp_path):
    """Leave one site out by hand, with the command line's own means."""
    ids = rewrite(original, tmp_path / "b.onnx", [1])
    samples = generate_samples(load(original))
    found = bisect(original, tmp_path / "b.onnx", samples)
    entries = tuple(SitePlan(site, MILD) if i != 1 else SitePlan(site, None, "by hand") for i, site in enumerate(ids))
    plan = Plan(structure_hash(load(original)), entries)
    compress(original, tmp_path / "c.onnx", rewriting=RewriteSettings(plan=plan), verification=None)
    a, c = Session(original), Session(tmp_path / "c.onnx")
    x = np.concatenate([a.run(sample)["y"].ravel() for sample in samples])
    y = np.concatenate([c.run(sample)["y"].ravel() for sample in samples])
    # float32 sums, in float64: the cancellation in a norm of a difference leaves half of the digits.
    assert found.sites[0].without == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-3, abs=1e-7)
    whole = verify(load(original), load(tmp_path / "b.onnx"), samples).runs["standard"].outputs["y"]
    assert found.deviation == whole.deviation.relative_error


def test_tolerances_say_how_many_sites_to_leave(original, tmp_path):
    ids = rewrite(original, tmp_path / "b.onnx", [0, 2])
    samples = generate_samples(load(original))
    plain = bisect(original, tmp_path / "b.onnx", samples)
    loose = bisect(original, tmp_path / "b.onnx", samples, limits=Limits(atol=1e3))
    assert loose.exclude == ()
    assert loose.remaining == loose.deviation == plain.deviation
    mild = bisect(original, tmp_path / "b.onnx", samples, limits=Limits((Limit("cosine", 0.99999),)))
    assert set(mild.exclude) == {ids[0], ids[2]}
    assert mild.remaining < mild.deviation
    everything = bisect(original, tmp_path / "b.onnx", samples, limits=Limits(atol=0.0, rtol=0.0))
    assert set(everything.exclude) == set(ids)
    assert everything.remaining == 0.0


def test_a_limit_on_a_figure_that_no_output_has_is_an_error(original, tmp_path):
    rewrite(original, tmp_path / "b.onnx")
    samples = generate_samples(load(original))
    with pytest.raises(InvalidScheme, match=r"kl<=9: no output has this figure"):
        bisect(original, tmp_path / "b.onnx", samples, limits=Limits((Limit.parse("kl<=9"),)))


def test_what_it_suggests_mends_the_model(original, tmp_path, capsys):
    rewrite(original, tmp_path / "b.onnx", [1, 3])
    arguments = ["bisect", str(original), str(tmp_path / "b.onnx"), "--metric", "cosine>=0.99999", "--json", "-"]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    lines = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)["plan"]}
    plan = plan_only(original, RewriteSettings(MILD)).plan
    data = plan.to_json()
    data["sites"] = [lines.get(entry["id"], entry) for entry in data["sites"]]
    save_plan(Plan.from_json(data), tmp_path / "plan.json")
    with pytest.raises(SystemExit) as stop:
        main([str(original), "-o", str(tmp_path / "c.onnx"), "--plan", str(tmp_path / "plan.json"), "--no-verify"])
    assert not stop.value.code
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(original), str(tmp_path / "c.onnx"), "--metric", "cosine>=0.99999"])
    assert not stop.value.code


@pytest.mark.parametrize(
    "noise", ["own.noise(x1)", pytest.param("RandomNormalLike<scale = 0.1>(x1)", marks=pytest.mark.slow)]
)
def test_random_ops_draw_the_same_numbers_in_both_models(noise, tmp_path, capsys):
    """Also on the second sample, where a session that is used again would draw others."""
    text = layered(3).replace("x1", "noisy").replace("noisy = Mul", "x1 = Mul")
    text = text.replace("query1 =", f"noise = {noise} noisy = Add(x1, noise) query1 =")
    text = text.replace('["" : 17]', '["" : 17, "own" : 1]')
    if "own" in noise:
        text += ' <opset_import: ["" : 17], domain: "own"> noise (t) => (r) { r = RandomNormalLike<scale = 0.1>(t) }'
    path = small_models.write(small_models.parse(text), tmp_path / "a.onnx")
    compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(preset("identity")), verification=None)
    samples = generate_samples(load(path), 3)
    unseeded = Session(load(path), RunSettings(1))
    found = bisect(path, tmp_path / "b.onnx", samples, expected=[unseeded.run(sample) for sample in samples])
    assert found.random_ops == 1
    assert max(found.deviation, *(max(site.without, site.local_error) for site in found.sites)) < 1e-5
    ids = rewrite(path, tmp_path / "c.onnx", [1])
    limits = Limits((Limit("cosine", 0.9999),))
    found = bisect(path, tmp_path / "c.onnx", samples, limits=limits)
    assert found.exclude == (ids[1],)
    with pytest.raises(SystemExit) as stop:
        main(["bisect", str(path), str(tmp_path / "b.onnx")])
    assert not stop.value.code
    assert "note: 1 ops draw random numbers; both models got the same seeds" in capsys.readouterr().out


def test_progress_is_reported_for_each_site(original, tmp_path):
    ids = rewrite(original, tmp_path / "b.onnx", [1])
    calls = []
    bisect(
        original, tmp_path / "b.onnx", generate_samples(load(original), 1), progress=lambda *call: calls.append(call)
    )
    assert [what for what, _, _ in calls] == ["original", "both models", *ids]
    assert [done for _, done, _ in calls] == [1, *range(3, calls[0][2] + 1)]


def test_models_that_do_not_belong_together(original, tmp_path):
    rewrite(original, tmp_path / "b.onnx")
    other = small_models.write(small_models.parse(layered(2)), tmp_path / "other.onnx")
    samples = generate_samples(load(original), 1)
    with pytest.raises(InvalidModel, match="carries no record"):
        bisect(original, other, samples)
    with pytest.raises(InvalidModel, match="was made from another model"):
        bisect(other, tmp_path / "b.onnx", samples)
    with pytest.raises(InvalidScheme, match="no output is called so"):
        bisect(original, tmp_path / "b.onnx", samples, limits=Limits((Limit("cosine", 0.9, "z"),)))


def test_relative_error_against_numpy():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 100))
    assert deviation_of(x, y).relative_error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
    assert deviation_of(np.zeros(3), np.zeros(3)).relative_error == 0.0
    assert deviation_of(np.zeros(3), np.ones(3)).relative_error == np.inf


@pytest.mark.parametrize(
    ("memory", "inline", "softmax_only"), [(1, False, False), (2**28, True, False), (2**28, False, True)]
)
def test_an_exchange_gives_what_whole_runs_give(tmp_path, memory, inline, softmax_only):
    """Each site left out of the rewrite, and rewritten alone."""
    text = layered()
    if softmax_only:  # the products' order is not that of an attention
        text = text.replace("context2 = MatMul(p2, x2)", "flat2 = Mul(p2, half) context2 = MatMul(flat2, x2)")
        text = text.replace("context1 = MatMul(p1, x1)", "other1 = MatMul(p1, x1) context1 = Add(other1, x1)")
    path = small_models.write(small_models.parse(text), tmp_path / "a.onnx")
    compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(HARSH, inline=inline), verification=None)
    samples = generate_samples(load(path))
    settings = RunSettings(1, memory=memory)
    found = bisect(path, tmp_path / "b.onnx", samples, run=settings)
    record = read_record(load(tmp_path / "b.onnx"))
    schemes = {site.id: site.scheme for site in record.sites}
    trials = bisection._Trials(load(path), schemes, samples, settings, Limits(), (), Steps(0, no_progress))
    exchange = Exchange(trials.exposed, load(tmp_path / "b.onnx"), trials.pairs(record), settings)
    assert exchange.sites == set(schemes)
    for site in found.sites:
        assert site.without == pytest.approx(bisection._deviation(trials.leave([site.site])), rel=1e-3)
        assert site.local_error == pytest.approx(trials.local_error(site.site), rel=1e-3)
        assert site.local_error > 0.01


def test_two_towers_are_not_taken_for_a_chain(tmp_path):
    """What enters a site need not follow from the one before it."""
    text = layered(2).replace("query1 = MatMul(x1, weight1)", "query1 = MatMul(x, weight1)")
    text = text.replace("key1 = Transpose<perm = [0, 2, 1]>(x1)", "key1 = Transpose<perm = [0, 2, 1]>(x)")
    path = small_models.write(small_models.parse(text.replace("MatMul(p1, x1)", "MatMul(p1, x)")), tmp_path / "a.onnx")
    compress(path, tmp_path / "b.onnx", rewriting=RewriteSettings(HARSH), verification=None)
    samples = generate_samples(load(path))
    found = bisect(path, tmp_path / "b.onnx", samples)
    record = read_record(load(tmp_path / "b.onnx"))
    schemes = {site.id: site.scheme for site in record.sites}
    trials = bisection._Trials(load(path), schemes, samples, RunSettings(1), Limits(), (), Steps(0, no_progress))
    for site in found.sites:
        assert site.without == pytest.approx(bisection._deviation(trials.leave([site.site])), rel=1e-3)
        assert site.local_error == pytest.approx(trials.local_error(site.site), rel=1e-3)
