"""Tuning per head: what is measured, how a plan is chosen, and that nothing is lost when a run stops."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import bert_like

from onnx_attnq.cli import main
from onnx_attnq.errors import CannotWrite, InvalidData, NothingToRewrite
from onnx_attnq.inputs import Sample, generate_samples
from onnx_attnq.job import compress
from onnx_attnq.model import save
from onnx_attnq.rewriting import RewriteSettings, load_plan
from onnx_attnq.scheme import numerics, preset, schemes_of
from onnx_attnq.tune import Effort, Goal, Tuner, dask_cluster
from onnx_attnq.tune.choice import Objective, choose, frontier
from onnx_attnq.tune.journal import Journal, Purpose
from onnx_attnq.tune.loss import Agreement, Part, halves
from onnx_attnq.tune.sensitivity import Trial, Unit, measure_unit, units

SCHEMES = (preset(bits=3), preset(bits=2, threshold=0.1), preset(bits=1, threshold=0.5))


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
    # Two schemes of the same bits and threshold are the same in every figure; a milder one of more bits may survive.
    trials = measure_unit(str(model), Unit("Softmax_p0", 0, 1), samples, SCHEMES)
    assert {t.scheme for t in trials} <= set(SCHEMES)
    for a in trials:
        worse = [
            b
            for b in trials
            if (b.scheme.bits or 0) <= (a.scheme.bits or 0) and b.pruned > a.pruned and b.divergence < a.divergence
        ]
        assert not worse or len(samples) > 1


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
    with pytest.raises(InvalidData, match="too few"):
        halves([1, 2, 3])


def test_a_model_agrees_with_itself(model: Path, samples: list[Sample]) -> None:
    loss = Agreement(model, samples)
    for part in Part:
        found = loss.measure(model, part)
        assert found.count == 2
        assert set(found.figures) == {"cosine", "kl"}
        assert abs(found.worst) < 1e-9


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
    assert found.calibration.worst <= 0.5
    assert found.confirmation.worst <= 0.5
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


def test_a_time_budget_ends_the_measurements_and_says_so(model: Path, samples: list[Sample], tmp_path: Path) -> None:
    run = Tuner(model, samples[:1], Agreement(model, samples), Goal(0.5), Effort(0.0, 1), CANDIDATES)
    with pytest.raises(NothingToRewrite, match="no head was measured in the time"):
        run.run(tmp_path / "plan.json")


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
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:

        def kill_one(what: str, done: int, total: int) -> None:
            if what == "heads" and done == 0:
                next(iter(cluster.workers.values())).process.process.kill()  # the worker, not its nanny

        with dask_cluster(cluster.scheduler_address):
            spread = tuner(model, samples, Goal(0.05), jobs=-1).run(tmp_path / "dask.json", progress=kill_one)
    assert spread.choice == local.choice


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
