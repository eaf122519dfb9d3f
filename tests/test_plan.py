"""A plan is data that a person can edit: exact JSON, bound to its model, and every mistake has its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import schemes

from onnx_attnq.errors import InvalidPlan
from onnx_attnq.rewriting import Plan, SitePlan, load_plan, save_plan, uniform_plan
from onnx_attnq.scheme import QuantScheme, preset

SITES = ["encoder/layer.0/Softmax", "encoder/layer.1/Softmax", "decoder/layer.0/Softmax"]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=5))
    choices = draw(st.lists(schemes(), min_size=1, max_size=3))
    reasons = st.text(min_size=1, max_size=8)
    entries = [
        SitePlan(name, draw(st.sampled_from(choices))) if draw(st.booleans()) else SitePlan(name, None, draw(reasons))
        for name in names
    ]
    return Plan(draw(st.text(max_size=8)), tuple(entries))


@given(plans())
def test_json_round_trip_is_exact(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_scheme_stands_once_however_many_sites_use_it(tmp_path: Path) -> None:
    data = uniform_plan("c0ffee", SITES, preset()).to_json()
    assert len(data["schemes"]) == 1
    save_plan(Plan.from_json(data), tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == Plan.from_json(data)
    assert (tmp_path / "plan.json").read_text().count("row-max") == 1


def test_schemes_of_one_name_are_told_apart() -> None:
    plan = Plan("m", (SitePlan("a", preset(bits=2)), SitePlan("b", preset(bits=3)), SitePlan("c", preset(bits=2))))
    assert len(plan.to_json()["schemes"]) == 2
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ([], [], [0, 1, 2]),
        (["encoder/*"], [], [0, 1]),
        ([], ["*layer.0*"], [1]),
        (["encoder/*"], ["*layer.0*"], [1]),
        (["*/layer.0/*", "*.1/*"], [], [0, 1, 2]),
    ],
)
def test_patterns_choose_sites(include: list[str], exclude: list[str], chosen: list[int]) -> None:
    plan = uniform_plan("m", SITES, preset(), include, exclude)
    assert [entry.site for entry in plan.sites if entry.scheme] == [SITES[i] for i in chosen]
    assert all(entry.reason for entry in plan.sites if entry.scheme is None)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(option: str) -> None:
    with pytest.raises(InvalidPlan, match=f"--{option} 'layer' matches no site; the sites are encoder/layer"):
        uniform_plan("m", SITES, preset(), **{option: ["layer"]})


def test_patterns_are_case_sensitive_everywhere() -> None:
    with pytest.raises(InvalidPlan, match="matches no site"):
        uniform_plan("m", SITES, preset(), include=["ENCODER/*"])


def test_a_plan_belongs_to_its_model_and_covers_its_sites() -> None:
    plan = uniform_plan("m" * 64, SITES, preset())
    plan.check("m" * 64, SITES)
    with pytest.raises(InvalidPlan, match="was made for the model mmmmmmmmmmmm…, this one is nnnnnnnnnnnn…"):
        plan.check("n" * 64, SITES)
    with pytest.raises(InvalidPlan, match=r"names the site 'decoder/.*', which the model does not have"):
        plan.check("m" * 64, SITES[:2])
    with pytest.raises(InvalidPlan, match="no entry for the site 'new'"):
        plan.check("m" * 64, [*SITES, "new"])


def test_a_site_stands_once() -> None:
    with pytest.raises(InvalidPlan, match="'a' is listed twice"):
        Plan("m", (SitePlan("a", preset()), SitePlan("a", preset())))


@pytest.mark.parametrize(("scheme", "reason"), [(None, ""), (preset(), "why not")])
def test_an_entry_has_a_scheme_or_a_reason(scheme: QuantScheme | None, reason: str) -> None:
    with pytest.raises(InvalidPlan, match="and not both"):
        SitePlan("a", scheme, reason)


GOOD = uniform_plan("m", ["a"], preset()).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "must be a JSON object"),
        ("{}", "lacks 'format'"),
        (json.dumps(GOOD | {"format": 3}), "format"),
        (json.dumps(GOOD | {"sites": {}}), "'sites' of .* must be of type list"),
        (json.dumps(GOOD | {"sites": [{"id": "a", "scheme": "nowhere"}]}), "'nowhere', which the plan does not define"),
        (json.dumps(GOOD | {"sites": [{"id": "a"}]}), "a"),
        (json.dumps(GOOD | {"sites": [{"id": "a", "scheme": None}]}), "needs a scheme, or null and a reason"),
        (json.dumps(GOOD | {"schemes": {"x": {"reference": "row-max"}}}), "missing"),
        (json.dumps(GOOD)[:-1] + ', "structure_hash": "n"}', "'structure_hash' is listed twice"),
    ],
)
def test_each_mistake_in_a_file_has_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InvalidPlan, match=message) as caught:
        load_plan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidPlan, match=r"plan\.json: "):
        load_plan(tmp_path / "plan.json")


def test_a_plan_of_the_first_version_is_read() -> None:
    old = GOOD | {"format": 1, "model": "m"}
    del old["structure_hash"]
    assert Plan.from_json(old) == Plan.from_json(GOOD)


def test_two_sites_of_one_id_are_refused() -> None:
    with pytest.raises(InvalidPlan, match="the same id"):
        uniform_plan("m", ["a"], preset()).check("m", ["a", "a"])


@pytest.mark.parametrize("name", ["layers[0]/softmax", "a*", "is it?", "[", "x]"])
def test_an_id_stands_for_itself_whatever_characters_it_has(name: str) -> None:
    plan = uniform_plan("m", [name, "layers0/softmax", "ab"], preset(), include=[name])
    assert [entry.site for entry in plan.sites if entry.scheme is not None] == [name]
