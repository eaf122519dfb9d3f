"""A study in memory, on disk, and merged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from studies import SCHEMES, make_study

from onnx_attnq.errors import CannotWrite, InvalidData
from onnx_attnq.study import Study
from onnx_attnq.study.mergeable_arrays import array_fields


def assert_equal(a: Study, b: Study):
    for field in ("model", "sha256", "data", "samples", "unobserved", "schemes", "tokens"):
        assert getattr(a, field) == getattr(b, field)
    for ours, theirs in zip(a.sites, b.sites, strict=True):
        assert ours.site == theirs.site
        for x, y in [(ours, theirs), *zip(ours.schemes, theirs.schemes, strict=True)]:
            for name, array in array_fields(x).items():
                np.testing.assert_array_equal(array, getattr(y, name), strict=True)


def test_a_study_survives_saving_and_loading(tmp_path):
    study = make_study()
    study.save(tmp_path / "study.npz")
    loaded = Study.load(tmp_path / "study.npz")
    assert_equal(study, loaded)
    assert loaded.example.tokens == study.example.tokens
    for site, maps in study.example.maps.items():
        np.testing.assert_array_equal(loaded.example.maps[site], maps)


def test_equal_studies_give_equal_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        make_study().save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_study_without_schemes_or_example_survives_too(tmp_path):
    study = dataclasses.replace(make_study(schemes=()), example=None)
    study.save(tmp_path / "study.npz")
    loaded = Study.load(tmp_path / "study.npz")
    assert_equal(study, loaded)
    assert loaded.example is None


def test_shards_that_were_saved_merge_like_those_in_memory(tmp_path):
    shards = [make_study(seed) for seed in range(3)]
    for k, shard in enumerate(shards):
        shard.save(tmp_path / f"{k}.npz")
    loaded = [Study.load(tmp_path / f"{k}.npz") for k in range(3)]
    merged = loaded[0].merge(loaded[1]).merge(loaded[2])
    assert_equal(merged, shards[0].merge(shards[1]).merge(shards[2]))
    assert merged.samples == 6
    assert merged.tokens == 3 * shards[0].tokens
    assert merged.data == "random 0 + random 1 + random 2"


def test_studies_of_other_things_do_not_merge():
    study = make_study()
    for other, message in [
        (dataclasses.replace(study, sha256="cd" * 32), "SHA-256"),
        (dataclasses.replace(study, sites=study.sites[:1]), "different sites"),
        (make_study(schemes=SCHEMES[:1]), "3 and 1 schemes"),
    ]:
        with pytest.raises(InvalidData, match=message):
            study.merge(other)


def damage_array(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["0/histogram"] = arrays["0/histogram"][:, :-1]
    np.savez(path, **arrays)


def drop_array(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "1/0/pruned"}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "no saved study"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "no saved study"),
        (lambda path: np.savez(path, about=np.array({"format": 1}, dtype=object)), "no saved study"),
        (lambda path: np.savez(path, x=np.zeros(3)), "no saved study"),
        (lambda path: np.savez(path, about=np.array('{"format": 99}')), "format 99"),
        (damage_array, "0/histogram"),
        (drop_array, "1/0/pruned"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_one_line(tmp_path, damage, message):
    path = tmp_path / "study.npz"
    make_study().save(path)
    damage(path)
    with pytest.raises(InvalidData, match=message) as caught:
        Study.load(path)
    assert "study.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(CannotWrite, match="nowhere"):
        make_study().save(tmp_path / "nowhere" / "study.npz")


def test_a_notebook_shows_a_table_with_escaped_names():
    study = dataclasses.replace(make_study(), model="<b>.onnx")
    shown = study._repr_html_()
    assert "&lt;b&gt;.onnx" in shown
    assert "<b>" not in shown
    assert "layer.1" in shown
    assert "pruned by row-log-mean 3 bit" in shown
