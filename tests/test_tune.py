"""Tuning per head: what is measured, how a plan is chosen, and that nothing is lost when a run stops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import bert_like

from onnx_attnq.cli import main
from onnx_attnq.errors import CannotWrite, InvalidData, NothingToRewrite, VerificationFailed
from onnx_attnq.evaluate import Interval
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import Sample, generate_samples, load_samples
from onnx_attnq.job import compress
from onnx_attnq.model import load, save, sha256
from onnx_attnq.rewriting import Plan, RewriteSettings, load_plan, read_record
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import left_alone, numerics, preset, schemes_of
from onnx_attnq.tune import Effort, Goal, Sweep, Tuner, compress_tuned, dask_cluster, first_rows, grid, sensitivity
from onnx_attnq.tune.apply import plan_of
from onnx_attnq.tune.choice import Objective, alternatives, choose, frontier
from onnx_attnq.tune.cluster import WORKER
from onnx_attnq.tune.journal import Journal, Purpose
from onnx_attnq.tune.loss import AGREEMENT, Agreement, FunctionLoss, Measured, Part, halves
from onnx_attnq.tune.sensitivity import Trial, Unit, measure_unit, units
from onnx_attnq.tune.tuning import CANDIDATES as EVERY_CANDIDATE

SCHEMES = (preset("row-log"), preset("row-log", bits=2, threshold=0.1), preset("row-log", bits=1, threshold=0.5))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(bert_like(17), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def samples() -> list[Sample]:
    return generate_samples(bert_like(17), 4, 0)


def test_units_cover_every_head_once(model: Path, samples: list[Sample]) -> None:
    assert units(str(model), samples[0]) == (Unit("Softmax_p0", 0, 2), Unit("Softmax_p1", 0, 2))


def test_a_scheme_that_changes_nothing_has_no_divergence(model: Path, samples: list[Sample]) -> None:
    (first, *_) = units(str(model), samples[0])
    for trial in measure_unit(str(model), first, samples, [preset("identity")]):
        assert trial.divergence < 1e-12
        assert trial.pruned == 0.0


def test_the_divergence_of_a_head_is_that_of_a_model_in_which_it_alone_is_quantized(
    model: Path, samples: list[Sample]
) -> None:
    # The same by another way: the whole model in numpy is not at hand, but a head that is quantized in both of two
    # units of one head each has the same figure as in a unit of both.
    both = measure_unit(str(model), Unit("Softmax_p1", 0, 2), samples, SCHEMES[2:])
    alone = [measure_unit(str(model), Unit("Softmax_p1", h, h + 1), samples, SCHEMES[2:])[0] for h in range(2)]
    assert list(both) == alone
    assert both[0].divergence != both[1].divergence
    assert all(trial.divergence > 0.0 for trial in both)


def test_beside_logits_other_outputs_do_not_count(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    wider = load(model)
    wider.graph.outputs.append(next(o for node in wider.graph for o in node.outputs if o.name == "x2"))
    save(wider, tmp_path / "wider.onnx")
    (unit, *_) = units(str(model), samples[0])
    one, two = (measure_unit(str(m), unit, samples, SCHEMES) for m in (model, tmp_path / "wider.onnx"))
    assert [t.divergence for t in one] == [t.divergence for t in two]
    assert max(t.divergence for t in one) > 0.0


def test_pruned_is_the_share_of_the_codes_that_are_zero(model: Path, samples: list[Sample]) -> None:
    from onnx_attnq.find import find_sites
    from onnx_attnq.graph import probe
    from onnx_attnq.model import load
    from onnx_attnq.run import Session

    loaded = load(model)
    name = str(find_sites(loaded).sites[0].probabilities.name)
    p = Session(probe(loaded, [name])).run(samples[0])[name][:, 1]
    expected = (numerics.codes(numerics.relative(p, SCHEMES[1]), SCHEMES[1]) == 0)[p > 0].mean()
    (trial,) = measure_unit(str(model), Unit("Softmax_p0", 1, 2), samples[:1], SCHEMES[1:2])
    assert trial.pruned == pytest.approx(expected)


def test_candidates_that_another_beats_are_tried_on_one_sample_only(model: Path, samples: list[Sample]) -> None:
    trials = measure_unit(str(model), Unit("Softmax_p0", 0, 1), samples, (*SCHEMES, preset("ji2021")))
    alone = {
        t.scheme: t
        for t in measure_unit(str(model), Unit("Softmax_p0", 0, 1), samples[:1], (*SCHEMES, preset("ji2021")))
    }
    assert {t.scheme for t in trials} == set(alone)
    for trial in trials:
        own = alone[trial.scheme]
        worse = [
            b
            for b in alone.values()
            if (b.scheme.bits or 0) <= (own.scheme.bits or 0)
            and b.pruned > own.pruned
            and b.divergence < own.divergence
        ]
        assert trial.screened or not worse
        assert not trial.screened or (trial.pruned, trial.divergence) == (own.pruned, own.divergence)


def test_no_head_is_left_without_a_candidate_of_the_first_family(model: Path, samples: list[Sample]) -> None:
    mixed = (SCHEMES[2], preset("row-log-mean", bits=2, threshold=0.1), preset("row-log-mean", bits=1, threshold=0.5))
    for unit in units(str(model), samples[0]):
        trials = measure_unit(str(model), unit, samples, mixed)
        for head in range(unit.first, unit.stop):
            assert any(t.head == head and t.scheme == SCHEMES[2] and not t.screened for t in trials)


@pytest.mark.parametrize(("divergence", "kept"), [(0.9, True), (1.9, True), (2.1, False)])
def test_another_family_is_given_up_for_a_head_only_where_the_first_is_clearly_better(
    divergence: float, kept: bool
) -> None:
    first, other = preset("row-log-mean", bits=2), preset("log-mean", bits=2)
    left = left_alone(other)
    moved = {first: 1.0, other: divergence, left: 5.0}
    effects = {(0, scheme): [sensitivity._Effect(9, 10, nats)] for scheme, nats in moved.items()}
    assert sensitivity._undominated([first, other, left], 0, effects) == [first, *[other] * kept, left]


TRIALS = st.builds(
    Trial,
    st.sampled_from(["a", "b"]),
    st.integers(0, 2),
    st.sampled_from(SCHEMES),
    st.floats(0.0, 1.0),
    st.floats(0.0, 10.0),
)


@given(
    st.lists(TRIALS, min_size=1, max_size=12, unique_by=lambda t: (t.site, t.head, t.scheme)),
    st.sampled_from(Objective),
)
def test_a_higher_price_never_gives_more_divergence(trials: list[Trial], objective: Objective) -> None:
    plans = frontier(trials, objective)
    found = [plan.divergence for plan in plans]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(found))
    mildest = sum(
        min(t.divergence for t in trials if (t.site, t.head) == key) for key in {(t.site, t.head) for t in trials}
    )
    assert found[-1] == pytest.approx(mildest, rel=1e-6, abs=1e-6) or len(plans) == 1


def test_a_site_takes_the_family_in_which_its_heads_together_fare_best() -> None:
    zero, shared = preset("row-log", bits=2, threshold=0.1), preset("row-log-mean", bits=2, threshold=0.1)
    trials = [
        Trial("a", 0, zero, 0.9, 0.0),
        Trial("a", 1, zero, 0.9, 1.0),
        Trial("a", 0, shared, 0.8, 0.0),
        Trial("a", 1, shared, 0.8, 0.0),
        Trial("b", 0, zero, 0.9, 0.0),
    ]
    assert choose(trials, 0.0).schemes == {"a": (zero, zero), "b": (zero,)}
    assert choose(trials, 1.0).schemes == {"a": (shared, shared), "b": (zero,)}
    screened = [*trials[:2], dataclasses.replace(trials[2], screened=True), *trials[3:]]
    assert choose(screened, 1.0).schemes == {"a": (zero, zero), "b": (zero,)}, "head 0 has no shared candidate"


def test_a_head_that_bears_no_candidate_is_left_alone_and_the_plan_says_why(model: Path) -> None:
    harsh = preset("row-log-mean", bits=1, threshold=0.5)
    left = left_alone(harsh)
    trials = [
        Trial("Softmax_p0", 0, harsh, 0.9, 0.0),
        Trial("Softmax_p0", 0, left, 0.0, 0.0),
        Trial("Softmax_p0", 1, harsh, 0.9, 5.0),
        Trial("Softmax_p0", 1, left, 0.0, 0.0),
        *(Trial("Softmax_p1", head, s, 0.0, d) for head in range(2) for s, d in ((harsh, 5.0), (left, 0.0))),
    ]
    choice = choose(trials, 10.0)
    assert choice.bits == (1 + 3 * 8) / 4
    first, second = plan_of(find_sites(expose(load(model))), choice).sites
    assert first.left == ((1, "it moves the outputs by 5.0e+00 even with row-log-mean:bits=1,threshold=0.5"),)
    assert second.scheme is None
    assert second.reason.startswith("head 0: it moves the outputs by 5.0e+00 even with")


def test_alternatives_say_what_each_freedom_has_won() -> None:
    one, two, zero = (
        preset("row-log-mean", bits=1, threshold=0.5),
        preset("row-log-mean", bits=2, threshold=0.1),
        preset("row-log", bits=2),
    )
    trials = [
        Trial("a", 0, one, 0.9, 0.1),
        Trial("a", 0, two, 0.8, 0.0),
        Trial("a", 0, zero, 0.5, 0.2, screened=True),
        Trial("a", 1, one, 0.9, 9.0),
        Trial("a", 1, two, 0.8, 0.1),
        Trial("a", 1, zero, 0.5, 0.0, screened=True),
    ]
    choice = choose(trials, 0.5)
    assert choice.schemes == {"a": (one, two)}
    found = {other.name: other.choice for other in alternatives(trials, choice, Objective.SPARSE_AND_NARROW)}
    assert set(found) == {
        "one scheme for all heads",
        "without 1 bit",
        "without 2 bits",
        "row-log-mean only",
        "row-log only",
    }
    assert found["without 2 bits"] is None
    assert found["row-log-mean only"] is not None
    assert found["row-log-mean only"].schemes == choice.schemes
    for name in ("one scheme for all heads", "without 1 bit"):
        assert found[name] is not None
        assert found[name].schemes == {"a": (two, two)}
    assert found["row-log only"] is not None
    assert found["row-log only"].pruned == 0.5


def test_a_figure_that_cannot_tell_does_not_decide_and_the_narrowest_always_does() -> None:
    sharp, blurred, lossy = Interval(0.004, -0.001, 0.009), Interval(0.02, -0.04, 0.08), Interval(0.02, 0.01, 0.09)
    assert Measured({"a": sharp, "b": blurred}, 9).within(0.005)
    assert not Measured({"a": sharp, "b": blurred}, 9).within(0.003)
    assert not Measured({"b": blurred}, 9).within(0.005)
    assert not Measured({"a": sharp, "b": lossy}, 9).within(0.005)
    unknown = Interval(0.02, float("nan"), float("nan"))
    assert not Measured({"a": sharp, "c": unknown}, 9).within(0.005)
    assert not Measured({"a": Interval(float("nan"), 0.0, 0.0)}, 9).within(0.5)


def test_outputs_that_are_not_finite_agree_with_nothing(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    broken = load(model)
    for value in list(broken.graph.initializers.values()):
        if value.name == "wlm":
            value.const_value = ir.tensor(np.full(value.const_value.shape.numpy(), np.nan, np.float32), name="wlm")  # type: ignore[union-attr]
    save(broken, tmp_path / "broken.onnx")
    loss = Agreement(model, samples, figures=AGREEMENT)
    assert min(f.estimate for f in loss.measure(tmp_path / "broken.onnx", Part.ALL).figures.values()) >= 1.0


def test_a_figure_that_the_loss_does_not_have_is_named(model: Path, samples: list[Sample]) -> None:
    with pytest.raises(InvalidData, match="--figure bleu: the loss has the figures cosine, kl, top-1"):
        Agreement(model, samples, figures=("bleu",))


def test_the_price_decides_for_each_head_on_its_own() -> None:
    mild, harsh = SCHEMES[0], SCHEMES[2]
    trials = [
        Trial("a", 0, mild, 0.5, 0.0),
        Trial("a", 0, harsh, 0.9, 0.001),
        Trial("a", 1, mild, 0.5, 0.0),
        Trial("a", 1, harsh, 0.9, 1.0),
    ]
    assert choose(trials, 10.0).schemes == {"a": (harsh, mild)}


def test_a_journal_gives_back_what_was_added(tmp_path: Path, samples: list[Sample]) -> None:
    purpose = Purpose.of("model", samples, SCHEMES)
    journal = Journal(tmp_path / "j", purpose)
    unit = Unit("a", 0, 1)
    journal.add(unit, [Trial("a", 0, SCHEMES[0], 0.25, 1 / 3)])
    again = Journal(tmp_path / "j", purpose, resume=True)
    assert again.done == {unit: (Trial("a", 0, SCHEMES[0], 0.25, 1 / 3),)}


def test_a_line_that_was_cut_by_a_kill_is_measured_again(tmp_path: Path, samples: list[Sample]) -> None:
    purpose = Purpose.of("model", samples, SCHEMES)
    journal = Journal(tmp_path / "j", purpose)
    journal.add(Unit("a", 0, 1), [])
    with (tmp_path / "j").open("a") as file:
        file.write('{"unit": {"site": "b"')
    resumed = Journal(tmp_path / "j", purpose, resume=True)
    assert list(resumed.done) == [Unit("a", 0, 1)]
    resumed.add(Unit("b", 0, 1), [])
    assert len(Journal(tmp_path / "j", purpose, resume=True).done) == 2


def test_a_journal_of_something_else_is_not_resumed(tmp_path: Path, samples: list[Sample]) -> None:
    Journal(tmp_path / "j", Purpose.of("model", samples, SCHEMES))
    for other in (
        Purpose.of("other", samples, SCHEMES),
        Purpose.of("model", samples[:3], SCHEMES),
        Purpose.of("model", samples, SCHEMES[:2]),
    ):
        with pytest.raises(InvalidData, match="another model, other samples or other candidates"):
            Journal(tmp_path / "j", other, resume=True)


@pytest.mark.parametrize("text", ["", "[]\n", "{", '{"a": 1}\n', "\x00\n"])
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path: Path, samples: list[Sample], text: str) -> None:
    (tmp_path / "j").write_text(text)
    purpose = Purpose.of("model", samples, SCHEMES)
    with pytest.raises(InvalidData):
        Journal(tmp_path / "j", purpose, resume=True)
    with pytest.raises(CannotWrite, match="--resume"):
        Journal(tmp_path / "j", purpose)
    assert (tmp_path / "j").read_text() == text


@pytest.mark.parametrize("line", ['{"unit": 1, "trials": []}', "nonsense", '{"unit": {"site": "a"}, "trials": []}'])
def test_a_line_that_is_no_unit_is_refused(tmp_path: Path, samples: list[Sample], line: str) -> None:
    purpose = Purpose.of("model", samples, SCHEMES)
    Journal(tmp_path / "j", purpose)
    with (tmp_path / "j").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidData, match="not a journal"):
        Journal(tmp_path / "j", purpose, resume=True)


def test_the_journal_is_lines_of_json(tmp_path: Path, samples: list[Sample]) -> None:
    Journal(tmp_path / "j", Purpose.of("model", samples, SCHEMES)).add(Unit("a", 0, 1), [])
    assert [type(json.loads(line)) for line in (tmp_path / "j").read_text().splitlines()] == [dict, dict]


def test_halves_share_nothing() -> None:
    parts = halves(list(range(7)))
    assert [*parts[Part.CALIBRATION], *parts[Part.CONFIRMATION]] == list(range(7))
    with pytest.raises(InvalidData, match="at least 4"):
        halves([1, 2, 3])


def test_a_model_agrees_with_itself(model: Path, samples: list[Sample]) -> None:
    loss = Agreement(model, samples)
    for part in Part:
        found = loss.measure(model, part)
        assert found.count == (4 if part is Part.ALL else 2)
        assert set(found.figures) == {"cosine", "kl"}
        assert abs(found.worst) < 1e-9


@pytest.mark.parametrize(
    ("names", "shape", "rows"),
    [
        (("batch", "batch"), (8, 100), 2),
        (("batch", "batch"), (8, 1000), 1),
        (("batch", "batch"), (8, 10), 8),
        (("batch", "other"), (8, 100), 8),
        (("batch", 8), (8, 100), 8),
        ((None, None), (8, 100), 8),
    ],
)
def test_heads_are_measured_on_the_first_rows_of_batches(
    names: tuple[str | int | None, ...], shape: tuple[int, int], rows: int
) -> None:
    inputs = [ir.Value(name=f"x{i}", shape=ir.Shape([name, "tokens"])) for i, name in enumerate(names)]
    model = ir.Model(ir.Graph(inputs, inputs[:1], nodes=[]), ir_version=10)
    batch = np.arange(shape[0] * shape[1]).reshape(shape)
    (cut,) = first_rows(model, [{"x0": batch, "x1": batch}])
    for array in cut.values():
        np.testing.assert_array_equal(array, batch[:rows])


def test_inputs_without_axes_are_left_whole() -> None:
    inputs = [ir.Value(name="x", shape=ir.Shape(["batch", 9])), ir.Value(name="scale", shape=ir.Shape([]))]
    model = ir.Model(ir.Graph(inputs, inputs[:1], nodes=[]), ir_version=10)
    sample = {"x": np.zeros((90, 9)), "scale": np.array(1.0)}
    assert first_rows(model, [sample]) == (sample,)


def test_one_call_measures_heads_on_these_rows(model: Path, tmp_path: Path) -> None:
    (sample,) = generate_samples(load(model), 1, 0)
    batch = {name: np.repeat(array, 99, axis=0) for name, array in sample.items()}
    compress_tuned(model, [batch] * 4, tmp_path / "out.onnx", goal=Goal(0.6), effort=Effort(jobs=1))
    measured = first_rows(load(model), [batch, batch])
    assert 1 <= len(measured[0]["input_ids"]) < 99
    purpose = Purpose.of(sha256(model), measured, EVERY_CANDIDATE)
    assert Journal(tmp_path / "out.plan.json.journal", purpose, resume=True).done


def test_samples_are_told_apart_by_what_is_in_them(samples: list[Sample]) -> None:
    changed = [dict(sample) for sample in samples]
    changed[0] = {name: np.array(array) for name, array in changed[0].items()}
    changed[0]["input_ids"].flat[0] += 1
    assert Purpose.of("m", samples, SCHEMES) != Purpose.of("m", changed, SCHEMES)
    assert Purpose.of("m", samples, SCHEMES) == Purpose.of("m", [dict(s) for s in samples], SCHEMES)


# --- whole runs


CANDIDATES = tuple(preset("row-log-mean", bits=bits, threshold=t) for bits in (1, 2) for t in (0.1, 0.5))


def tuner(model: Path, samples: list[Sample], goal: Goal, jobs: int = 1) -> Tuner:
    return Tuner(model, samples[:1], Agreement(model, samples), goal, Effort(jobs=jobs), CANDIDATES)


def test_a_plan_that_was_tuned_is_within_the_bound_and_applies(
    model: Path, samples: list[Sample], tmp_path: Path
) -> None:
    found = tuner(model, samples, Goal(0.5)).run(tmp_path / "plan.json")
    assert found.accepted
    assert found.complete
    assert found.found.calibration.worst <= 0.5
    assert found.found.confirmation.worst <= 0.5
    plan = load_plan(tmp_path / "plan.json")
    assert [entry.site for entry in plan.sites] == ["Softmax_p0", "Softmax_p1"]
    result = compress(model, tmp_path / "out.onnx", rewriting=RewriteSettings(plan=plan))
    assert result.verification is not None
    assert result.verification.passed
    for entry in plan.sites:
        assert entry.scheme is not None
        assert tuple(schemes_of(entry.scheme)) in (
            found.choice.schemes[entry.site],
            found.choice.schemes[entry.site][:1],
        )


def test_a_bound_that_nothing_holds_is_not_called_accepted(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    found = tuner(model, samples, Goal(0.0)).run(tmp_path / "plan.json")
    assert not found.accepted
    mildest = frontier(
        [t for u in units(str(model), samples[0]) for t in measure_unit(str(model), u, samples[:1], CANDIDATES)]
    )[-1]
    assert found.choice.schemes == mildest.schemes
    assert {other.name for other in found.won} >= {"one scheme for all heads"}


def test_the_fastest_is_one_of_the_plans_of_the_other_objectives_as_measured(
    model: Path, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = tuple(preset("row-log", bits=bits, threshold=t) for bits, t in ((1, 0.3), (5, 0.7), (2, 0.1)))

    def run(objective: Objective) -> Plan:
        loss, goal = Agreement(model, samples, figures=("cosine",)), Goal(None, 0.4, objective)
        tuner = Tuner(model, samples[:1], loss, goal, Effort(jobs=1), candidates)
        found = tuner.run(tmp_path / "plan.json", resume=True)
        assert load_plan(tmp_path / "plan.json") == plan_of(find_sites(expose(load(model))), found.choice)
        return load_plan(tmp_path / "plan.json")

    each = [run(one) for one in Objective.FASTEST.searched]
    assert len(set(each)) > 1
    for number, plan in enumerate(each):  # times are not repeatable: as if this one were the fastest
        timed = [float(other != number) for other in range(len(each))]
        monkeypatch.setattr("onnx_attnq.tune.fastest.cpu_times", lambda *_, timed=timed: timed)
        assert run(Objective.FASTEST) == plan


def test_what_the_confirmation_refuses_is_backed_off_from_until_it_holds(model: Path, tmp_path: Path) -> None:
    samples = generate_samples(load(model), 4, 0)

    def function(path: str, part: str) -> float:  # the calibration part cannot tell any plan from the original
        record = read_record(load(Path(path)))
        schemes = [] if record is None else [s for site in record.sites for s in schemes_of(site.scheme)]
        return 1.0 if part == "calibration" or all((s.bits or 0) >= 4 for s in schemes) else 0.5

    found = Tuner(model, samples[:1], FunctionLoss(model, function), Goal(0.005), Effort(jobs=1)).run(tmp_path / "p")
    assert found.accepted
    confirmed = [step.accepted for step in found.found.steps if step.part is Part.CONFIRMATION]
    assert confirmed[:2] == [False, False]
    assert len(confirmed) < 12
    plans = frontier(found.trials)
    holds = [all((s.bits or 0) >= 4 for own in plan.schemes.values() for s in own) for plan in plans]
    chosen = [plan.schemes for plan in plans].index(found.choice.schemes)
    assert holds[chosen]
    assert not any(holds[: chosen - max(1, len(plans) // 32)])


def test_a_target_of_pruning_takes_the_mildest_plan_that_reaches_it(
    model: Path, samples: list[Sample], tmp_path: Path
) -> None:
    found = tuner(model, samples, Goal(None, 0.2)).run(tmp_path / "plan.json")
    assert found.choice.pruned >= 0.2
    assert found.accepted


def test_a_run_that_stopped_in_the_middle_ends_with_the_same_plan(
    model: Path, samples: list[Sample], tmp_path: Path
) -> None:
    whole = tuner(model, samples, Goal(0.05)).run(tmp_path / "whole.json")

    class Stopped(Exception):
        pass

    def stop_after_one(what: str, done: int, total: int) -> None:
        if what == "heads" and done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        tuner(model, samples, Goal(0.05)).run(tmp_path / "cut.json", progress=stop_after_one)
    assert len((tmp_path / "cut.json.journal").read_text().splitlines()) == 2
    resumed = tuner(model, samples, Goal(0.05)).run(tmp_path / "cut.json", resume=True)
    assert resumed.choice == whole.choice
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_heads_are_measured_as_all_else_but_with_one_thread(model: Path, samples: list[Sample]) -> None:
    run = RunSettings(threads=4, memory=2**20, seconds=60.0)
    found = Tuner(model, samples[:1], Agreement(model, samples), effort=Effort(run=run))._alone
    assert found == RunSettings(threads=1, memory=2**20, seconds=60.0)


def test_a_time_budget_ends_the_measurements_and_says_so(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    run = Tuner(model, samples[:1], Agreement(model, samples), Goal(0.5), Effort(0.0, 1), CANDIDATES)
    with pytest.raises(NothingToRewrite, match="no head was measured in the time"):
        run.run(tmp_path / "plan.json")


@pytest.mark.slow
def test_processes_and_one_process_give_the_same_plan(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    one = tuner(model, samples, Goal(0.05), jobs=1).run(tmp_path / "one.json")
    two = tuner(model, samples, Goal(0.05), jobs=2).run(tmp_path / "two.json")
    assert one.choice == two.choice


def test_no_samples_is_one_line(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="no samples to tune with"):
        Tuner(model, [], Agreement(model, samples)).run(tmp_path / "plan.json")


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_plan_and_outlives_a_worker(
    model: Path, samples: list[Sample], tmp_path: Path
) -> None:
    from distributed import LocalCluster

    local = tuner(model, samples, Goal(0.05), jobs=1).run(tmp_path / "local.json")
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:

        def kill_one(what: str, done: int, total: int) -> None:
            if what == "heads" and done == 0:
                next(iter(cluster.workers.values())).process.process.kill()  # the worker, not its nanny

        with dask_cluster(cluster.scheduler_address):
            spread = tuner(model, samples, Goal(0.05), jobs=-1).run(tmp_path / "dask.json", progress=kill_one)
    assert spread.choice == local.choice
    assert (tmp_path / "dask.json").read_bytes() == (tmp_path / "local.json").read_bytes()


class Hungry:
    """A loss that takes more memory than any worker may use."""

    name = "memory"

    def measure(self, model: Path, part: Part) -> Measured:
        return Measured({"gigabytes": Interval(float(np.ones(2**29).sum()), 0.0, 0.0)}, 1)


@pytest.mark.slow
def test_a_unit_that_no_worker_has_the_memory_for_is_one_line(
    model: Path, samples: list[Sample], tmp_path: Path
) -> None:
    from distributed import LocalCluster

    limit = WORKER + 2**20
    job = Sweep(model, samples[:1], Hungry(), grid(["row-log"], [2], [0.1]), 0)
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=limit, dashboard_address=":0") as cluster:
        with (
            pytest.raises(InvalidData, match=r"may use 401 MiB of memory, and needs 402; .* larger --memory-limit"),
            dask_cluster(cluster.scheduler_address, memory=limit + 2**20),
        ):
            pass
        with (
            pytest.raises(InvalidData, match=r"4 workers died of the same unit.*--memory-limit .*--resume"),
            dask_cluster(cluster.scheduler_address),
        ):
            job.run(tmp_path / "points.journal")


@pytest.mark.slow
def test_a_cluster_of_one_thread_is_refused_where_joblib_would_work_here() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as single:  # noqa: SIM117
        with pytest.raises(InvalidData, match="a single thread"), dask_cluster(single.scheduler_address):
            pass


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(InvalidData, match="--address"), dask_cluster(None):
        pass


def test_the_command_writes_a_plan_that_the_main_command_takes(
    model: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for index, sample in enumerate(samples):
        np.savez(data / f"{index}.npz", **sample)
    arguments = ["tune", str(model), "--data", str(data), "--max-loss", "60%", "--samples", "1", "--jobs", "1"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "within the bound on both" in out
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([str(model), "--plan", str(tmp_path / "model.plan.json")])
    assert not stopped.value.code


@pytest.fixture
def data(samples: list[Sample], tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index, sample in enumerate(samples):
        np.savez(folder / f"{index}.npz", **sample)
    return folder


def test_the_main_command_tunes_writes_and_verifies_in_one_go(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model), "--data", str(data), "--max-loss", "60%", "--jobs", "1"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "within the bound on both" in out
    assert "Verified" in out
    plan = load_plan(tmp_path / "model.plan.json")
    record = read_record(load(tmp_path / "model.attnq.onnx"))
    assert record is not None
    assert record.plan == plan.hash
    with pytest.raises(SystemExit) as stopped:  # the journal is there
        main(arguments)
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "model.attnq.onnx").unlink()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments[:3], "--min-pruned", "99.9%", "--max-loss", "0%", "--resume"])
    assert stopped.value.code == 1
    assert "No model was written" in capsys.readouterr().out
    assert not (tmp_path / "model.attnq.onnx").exists()


def test_the_command_takes_the_users_own_function_and_a_share_to_prune(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metric.py").write_text(
        "import onnx\n"
        "called = []\n"
        "def score(path, part):\n"
        "    called.append((path, part))\n"
        "    return 1.0 - 0.002 * any('Quantized' in node.op_type for node in onnx.load(path).graph.node)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["--data", str(data), "--metric", "my_metric:score", "--min-pruned", "20%", "--max-loss", "0.5%"]
    with pytest.raises(SystemExit) as stopped:
        main(["tune", str(model), *arguments, "--samples", "1", "--jobs", "1", "--json", str(tmp_path / "out.json")])
    assert not stopped.value.code
    assert "my_metric:score" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["pruned"] >= 0.2
    assert found["accepted"]
    assert all(step["pruned"] >= 0.2 for step in found["steps"])
    for part in ("calibration", "confirmation"):
        assert found[part]["figures"]["my_metric:score"]["estimate"] == pytest.approx(0.002)
        assert (str(model), part) in sys.modules["my_metric"].called


def test_python_tunes_writes_and_verifies_in_one_call(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    found = compress_tuned(model, samples, tmp_path / "out.onnx", goal=Goal(max_loss=0.6), effort=Effort(jobs=1))
    assert found.compression.verification is not None
    assert found.compression.verification.passed
    assert found.compression.plan == load_plan(tmp_path / "out.plan.json")
    with pytest.raises(VerificationFailed, match=r"the nearest one is .*out\.plan\.json"):
        compress_tuned(
            model, samples, tmp_path / "out.onnx", goal=Goal(max_loss=0.0, min_pruned=0.99), effort=Effort(jobs=1)
        )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--max-loss", "1%"], "--data"),
        (["--max-loss", "1%", "--bits", "2"], "--bits"),
        (["--min-pruned", "50%", "--no-verify"], "--no-verify"),
        (["--min-pruned", "50%", "--weights", "int8"], "--weights"),
        (["--task", "retrieval"], "--task"),
        (["--resume"], "--resume"),
    ],
)
def test_the_main_command_refuses_what_tuning_would_ignore(
    model: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(model), *extra])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def wait_for_units(journal: Path, count: int) -> None:
    for _ in range(1200):
        if journal.exists() and len(journal.read_text().splitlines()) > count:
            return
        time.sleep(0.05)
    raise AssertionError("no unit was measured in a minute")


def take_interrupts() -> None:
    """Undo what a shell does to the jobs that it starts in the background: they, and their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signals for one process")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])  # the second is Ctrl-C
def test_a_command_that_is_killed_in_the_middle_resumes_to_the_same_plan(
    data: Path, tmp_path: Path, signal_number: int
) -> None:
    # Enough layers for the run to be in the middle of the heads when it is killed.
    model, layers = tmp_path / "deep.onnx", 4
    save(bert_like(17, layers), model)
    cut, whole = tmp_path / "cut.json", tmp_path / "whole.json"
    arguments = [
        *(sys.executable, "-m", "onnx_attnq", "tune", str(model), "--data", str(data), "--max-loss", "60%"),
        *("--samples", "1", "--jobs", "1", "-o", str(cut)),
    ]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=take_interrupts)
    wait_for_units(tmp_path / "cut.json.journal", 1)
    running.send_signal(signal_number)
    _, error = running.communicate(timeout=60)
    assert running.returncode == (130 if signal_number == signal.SIGINT else -signal_number)
    assert signal_number == signal.SIGKILL or error.strip() == "onnx-attnq: interrupted"
    measured = len((tmp_path / "cut.json.journal").read_text().splitlines()) - 1
    assert 1 <= measured < layers, "it was not in the middle"
    assert all(entry.scheme is None for entry in load_plan(cut).sites), "the best so far"
    if signal_number == signal.SIGINT:
        return  # it leaves the same files
    loaded = load_samples(data, load(model))
    for plan, resume in ((cut, True), (whole, False)):
        run = Tuner(model, loaded[:1], Agreement(model, loaded), Goal(0.6), Effort(jobs=1))
        run.run(plan, resume=resume)
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--max-loss", "nonsense"], "is not a share"),
        (["--max-loss", "200%"], "between 0% and 100%"),
        (["--task", "retrieval", "--metric", "a:b"], "give one of them"),
        (["--metric", "no_such_module:f"], "--metric no_such_module:f"),
        (["--address", "x:1"], "--backend dask"),
    ],
)
def test_bad_options_are_one_line(
    model: Path,
    samples: list[Sample],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
) -> None:
    np.savez(tmp_path / "0.npz", **{name: np.concatenate([s[name] for s in samples[:1]]) for name in samples[0]})
    with pytest.raises(SystemExit) as stopped:
        main(["tune", str(model), "--data", str(tmp_path / "0.npz"), *extra])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.plan.json*"))
