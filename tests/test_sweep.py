"""A sweep over schemes: every point is what it says, nothing is lost when a run stops, and the files say the same."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_transformers import bert_like
from text_models import WORDS, attention, tokenizer

from onnx_attnq.cli import main
from onnx_attnq.errors import CannotWrite, InvalidData, InvalidScheme
from onnx_attnq.evaluate import Interval, load_task
from onnx_attnq.find import expose, find_sites
from onnx_attnq.graph import probe
from onnx_attnq.inputs import Sample, generate_samples
from onnx_attnq.model import load, save
from onnx_attnq.run import MEMORY, RunSettings, Session
from onnx_attnq.scheme import PRESETS, Pruned, numerics, preset
from onnx_attnq.tune import Agreement, Measured, Part, Point, Sweep, TaskLoss, grid, pareto
from onnx_attnq.tune.sensitivity import shares_pruned

SCHEMES = grid(["row-log-mean"], [1, 3], [0.1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    save(bert_like(17), made / "model.onnx")
    (made / "data").mkdir()
    for index, sample in enumerate(generate_samples(bert_like(17), 4, 0)):
        np.savez(made / "data" / f"{index}.npz", **sample)
    return made


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return generate_samples(bert_like(17), 4, 0)


def sweep_of(folder: Path, samples: list[Sample], repeats: int = 0) -> Sweep:
    model = folder / "model.onnx"
    return Sweep(model, samples[:2], Agreement(model, samples), SCHEMES, repeats, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_points(name: str) -> None:
    found = grid([name])
    assert found
    assert len(set(found)) == len(found)
    assert all(scheme.name == name for scheme in found)


def test_combinations_that_make_no_scheme_are_left_out() -> None:
    assert {s.bits for s in grid(["boolean"], [1, 2], [0.1])} == {1}
    assert {s.threshold for s in grid(["ji2021-linear"], [3], [0.1, 0.2])} == {0.125}
    assert {s.pruned for s in grid(["row-log"], [2], [0.1], list(Pruned))} == set(Pruned)
    with pytest.raises(InvalidScheme, match="pruned mean needs log spacing"):
        grid(["ji2021-linear"], [2], [0.1], [Pruned.MEAN])
    with pytest.raises(InvalidScheme, match="unknown scheme"):
        grid(["nonsense"])


POINTS = st.builds(
    lambda pruned, loss: Point(preset(), pruned, Measured({"a": Interval(loss, loss, loss)}, 9), math.nan),
    st.floats(0.0, 1.0),
    st.floats(-0.1, 1.0),
)


@given(st.lists(POINTS, max_size=12))
def test_nothing_beats_the_front_and_the_front_beats_the_rest(points: list[Point]) -> None:
    front = pareto(points, lambda p: p.pruned)
    for point in points:
        beaten = any(
            p.pruned >= point.pruned
            and p.loss.worst <= point.loss.worst
            and (p.pruned, p.loss.worst) != (point.pruned, point.loss.worst)
            for p in points
        )
        there = any((p.pruned, p.loss.worst) == (point.pruned, point.loss.worst) for p in front)
        assert there != beaten
    assert [p.pruned for p in front] == sorted(p.pruned for p in front)


def test_a_point_is_what_it_says(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    one, three = sweep_of(folder, samples, repeats=1).run(tmp_path / "journal")
    assert (one.scheme, three.scheme) == SCHEMES
    assert one.loss.worst > three.loss.worst > 0.0
    assert one.loss.count == 4
    assert one.pruned == three.pruned > 0.0  # the threshold decides
    assert one.speed > 0.0
    assert Point.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("memory", [1, MEMORY])
def test_shares_pruned_of_all_schemes_at_once_are_those_of_the_definition(
    folder: Path, samples: list[Sample], memory: int
) -> None:
    schemes = [preset(name) for name in PRESETS] + list(SCHEMES)
    path = folder / "model.onnx"
    found = shares_pruned(str(path), samples, schemes, RunSettings(threads=1, memory=memory))
    model = load(path)
    sites = find_sites(expose(model)).sites
    session = Session(probe(model, [str(site.probabilities.name) for site in sites]), RunSettings(threads=1))
    seen = [np.moveaxis(p, sites[0].axis, -1) for sample in samples for p in session.run(sample).values()]
    for scheme in schemes:
        pruned = sum(((numerics.codes(numerics.relative(p, scheme), scheme) == 0) & (p > 0)).sum() for p in seen)
        assert found[scheme] == pytest.approx(pruned / sum((p > 0).sum() for p in seen), abs=1e-15)
    assert found[preset("identity")] == 0.0 < found[preset("prune-only")]


def test_a_sweep_that_was_stopped_goes_on_where_it_was(folder: Path, samples: list[Sample], tmp_path: Path) -> None:
    job = sweep_of(folder, samples)
    whole = job.run(tmp_path / "whole")
    with (tmp_path / "whole").open() as file, (tmp_path / "cut").open("w") as cut:
        lines = file.readlines()
        cut.writelines([*lines[:-1], lines[-1][:20]])  # killed while it wrote the last
    done: list[int] = []
    resumed = job.run(tmp_path / "cut", resume=True, progress=lambda what, count, total: done.append(count))
    assert done == [1, 2]
    assert [p.to_json() for p in resumed] == [p.to_json() for p in whole]
    with pytest.raises(CannotWrite, match="--resume"):
        job.run(tmp_path / "cut")
    with pytest.raises(InvalidData, match="another model"):
        sweep_of(folder, samples, repeats=3).run(tmp_path / "cut", resume=True)
    (tmp_path / "bad").write_text(lines[0] + "{}\n")
    with pytest.raises(InvalidData, match="not a journal of a sweep"):
        job.run(tmp_path / "bad", resume=True)


def test_a_worker_in_another_folder_measures_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attention(tmp_path)
    rows = "".join(f"{first},{WORDS[5]},{number}\n" for number, first in enumerate(WORDS[5:13]))
    (tmp_path / "pairs.csv").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (path,) = Path().glob("*.onnx")
    loss = TaskLoss(path, load_task("sentence-similarity", Path("pairs.csv")), tokenizer())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert loss.measure(tmp_path / path, Part.ALL).worst == 0.0


def test_the_command_writes_numbers_pictures_and_a_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", str(folder / "model.onnx"), "--data", str(folder / "data"), "-o", str(out), "--jobs", "1"]
    arguments += ["--scheme", "row-log", "--bits", "1", "--bits", "3", "--threshold", "0.1", "--pruned", "mean"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--repeats", "0"])
    assert not stopped.value.code
    assert "no other beats these" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        *("points.csv", "points.json", "points.journal", "report.html", "front-pruned.svg"),
        *(f"{name}{suffix}.svg" for name in ("threshold", "sparsity", "bits") for suffix in ("", "-2")),
    }
    data = json.loads((out / "points.json").read_text())
    rows = list(csv.DictReader(io.StringIO((out / "points.csv").read_text())))
    assert [row["pruned values"] for row in rows] == ["mean", "mean"]
    for row, point in zip(rows, data["points"], strict=True):
        assert float(row["share pruned"]) == point["pruned"]
        assert float(row["cosine loss"]) == point["loss"]["figures"]["cosine"]["estimate"]
        assert row["best by pruned"] == str(int(point["best_by_pruned"]))
    page = (out / "report.html").read_text()
    assert page.count("<figure") == 7
    assert "row-log:bits=1,threshold=0.1,pruned=mean" in page
    for picture in out.glob("*.svg"):
        assert "row-log" in picture.read_text()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--repeats", "0"])
    assert stopped.value.code == 2
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--repeats", "0", "--resume", "--no-report", "--json", "-"])
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out) == data


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--scheme", "nonsense"], "unknown scheme 'nonsense'"),
        (["--threshold", "1.5"], "--threshold"),
        (["--address", "x:1"], "--backend dask"),
        (["--figure", "bleu"], "--figure bleu"),
        (["--scheme", "identity", "--bits", "2", "--pruned", "mean"], "pruned"),
    ],
)
def test_bad_options_are_one_line(
    folder: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", str(folder / "model.onnx"), "--data", str(folder / "data"), "-o", str(tmp_path / "out"), *extra])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out").exists()
