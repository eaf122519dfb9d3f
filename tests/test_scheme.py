"""A scheme is validated data: exact JSON, clear errors, and no argument that is silently ignored."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import schemes

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.scheme import PRESETS, TAIL_NATS, Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing, preset

TAKES_BITS = ("row-log", "ji2021", "ji2021-log", "ji2021-linear", "ji2021-linear-pruned", "fq-log2")
TAKES_THRESHOLD = (
    "row-log",
    "row-log-mean",
    "log-mean",
    "ji2021",
    "ji2021-log",
    "ji2021-linear-pruned",
    "boolean",
    "prune-only",
    "prune-only-row-max",
)


@given(schemes())
def test_json_round_trip_is_exact(scheme: QuantScheme) -> None:
    assert QuantScheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


@given(schemes())
def test_json_may_omit_what_has_a_default(scheme: QuantScheme) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(QuantScheme)}
    short = {name: value for name, value in scheme.to_json().items() if value != defaults[name]}
    assert QuantScheme.from_json(short) == scheme


@given(schemes())
def test_strings_do_for_enum_members(scheme: QuantScheme) -> None:
    again = QuantScheme(**scheme.to_json())
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert isinstance(again.reference, Reference)
    assert again.spacing is None or isinstance(again.spacing, Spacing)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_named_after_itself_and_round_trips(name: str) -> None:
    scheme = preset(name)
    assert scheme.name == name
    assert QuantScheme.from_json(scheme.to_json()) == scheme


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", TAKES_BITS)
def test_preset_takes_bits(name: str, bits: int) -> None:
    scheme = preset(name, bits=bits)
    assert scheme.bits == bits
    assert scheme.levels == 2**bits - 1


@pytest.mark.parametrize("name", TAKES_THRESHOLD)
def test_preset_takes_a_threshold(name: str) -> None:
    assert preset(name, threshold=0.05) != preset(name)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(TAKES_BITS) - {"boolean", "row-log-mean", "log-mean"}))
def test_bits_are_refused_where_there_are_none(name: str) -> None:
    with pytest.raises(InvalidScheme, match="takes no bits"):
        preset(name, bits=3)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(TAKES_THRESHOLD)))
def test_a_threshold_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(InvalidScheme, match="takes no threshold"):
        preset(name, threshold=0.05)


@pytest.mark.parametrize("name", TAKES_THRESHOLD)
@pytest.mark.parametrize("threshold", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_preset_refuses_a_threshold_outside_of_its_range(name: str, threshold: float) -> None:
    with pytest.raises(InvalidScheme, match="threshold"):
        preset(name, threshold=threshold)


@pytest.mark.parametrize("name", TAKES_BITS)
@pytest.mark.parametrize("bits", [0, 9, -1, 1000])
def test_preset_refuses_bits_outside_of_their_range(name: str, bits: int) -> None:
    with pytest.raises(InvalidScheme, match="bits"):
        preset(name, bits=bits)


def test_unknown_preset_is_answered_with_the_known() -> None:
    with pytest.raises(InvalidScheme, match="unknown scheme 'rowlog'; known: row-log-mean, row-log, log-mean, ji2021"):
        preset("rowlog")


def test_shared_mass_takes_bits_as_long_as_the_levels_below_the_threshold_fit_a_byte() -> None:
    for bits in range(1, 5):
        assert preset("row-log-mean", bits=bits).bits == bits
    assert preset("row-log-mean", bits=6, threshold=1e-3).step * 255 >= TAIL_NATS
    with pytest.raises(InvalidScheme, match=r"5 bits above threshold 0\.1 have 0\.075: take fewer bits"):
        preset("row-log-mean", bits=5, threshold=0.1)


def test_any_preset_may_share_what_it_prunes_where_that_has_a_meaning() -> None:
    assert preset("row-log", pruned=Pruned.MEAN, bits=2, threshold=0.1) == dataclasses.replace(
        preset("row-log-mean", bits=2, threshold=0.1), name="row-log"
    )
    assert preset("ji2021", pruned=Pruned.MEAN).pruned is Pruned.MEAN
    assert preset("row-log-mean", bits=2, threshold=0.1, pruned=Pruned.ZERO).pruned is Pruned.ZERO
    with pytest.raises(InvalidScheme, match="linear levels do not continue"):
        preset("ji2021-linear", pruned=Pruned.MEAN)


def test_json_of_before_there_was_a_choice_prunes_to_zero() -> None:
    old = {name: value for name, value in preset("row-log").to_json().items() if name != "pruned"}
    assert QuantScheme.from_json(old) == preset("row-log")


def test_boolean_has_one_bit() -> None:
    assert preset("boolean", bits=1) == preset("boolean")
    with pytest.raises(InvalidScheme, match="1 bit"):
        preset("boolean", bits=2)


def test_row_log_with_shared_mass_is_the_default_and_what_the_design_says() -> None:
    assert preset() == preset(PRESETS[0]) == preset("row-log-mean")
    assert preset() == QuantScheme(
        Reference.ROW_MAX, Normalize.UNIT, 0.03, 3, Spacing.LOG, Rounding.NEAREST, Pruned.MEAN, name="row-log-mean"
    )
    assert preset("row-log") == QuantScheme(
        Reference.ROW_MAX, Normalize.UNIT, 0.01, 3, Spacing.LOG, Rounding.NEAREST, name="row-log"
    )
    assert preset("row-log").step == pytest.approx(-math.log(0.01) / 6.5, rel=1e-15)


def test_the_default_refuses_bits_that_leave_pruned_values_no_room_and_says_what_to_do() -> None:
    assert preset(bits=5).bits == 5
    with pytest.raises(InvalidScheme, match="take fewer bits, a lower threshold, or pruned zero"):
        preset(bits=6)
    assert preset(bits=8, pruned=Pruned.ZERO).bits == 8


BASE = preset().to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "row-sum"}, "reference must be one of absolute, row-max"),
        ({"normalize": "l2"}, "normalize must be one of none, unit, mass"),
        ({"spacing": "cubic"}, "spacing must be one of log, linear"),
        ({"rounding": "up"}, "rounding must be one of floor, nearest"),
        ({"pruned": "half"}, "pruned must be one of zero, mean"),
        ({"pruned": "mean", "normalize": "mass"}, "which pruned mean keeps"),
        ({"pruned": "mean", "spacing": "linear"}, "linear levels do not continue"),
        ({"pruned": "mean", "bits": 8}, "needs steps of 0.098 nats or more"),
        (
            {"pruned": "mean", "bits": None, "spacing": None, "rounding": None, "threshold": 0.0},
            "threshold 0 prunes none",
        ),
        ({"threshold": "0.01"}, "threshold must be a number"),
        ({"threshold": True}, "threshold must be a number"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\)"),
        ({"threshold": math.nan}, r"threshold must be in \(0, 1\)"),
        ({"threshold": 0.9999}, "no room"),
        ({"bits": 0}, "bits must be a whole number from 1 to 8"),
        ({"bits": 9}, "bits must be a whole number from 1 to 8"),
        ({"bits": 3.0}, "bits must be a whole number from 1 to 8"),
        ({"bits": True}, "bits must be a whole number from 1 to 8"),
        ({"bits": None}, "spacing and rounding need bits"),
        ({"spacing": None}, "needs spacing and rounding"),
        ({"rounding": None}, "needs spacing and rounding"),
        ({"name": ""}, "name must be a non-empty string"),
        ({"name": 3}, "name must be a non-empty string"),
        ({"thresold": 0.1}, "unknown field 'thresold'"),
    ],
)
def test_each_bad_field_has_its_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidScheme, match=message) as caught:
        QuantScheme.from_json(BASE | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["reference", "normalize", "threshold"])
def test_json_without_a_required_field_is_refused(field: str) -> None:
    with pytest.raises(InvalidScheme, match=f"field '{field}' is missing"):
        QuantScheme.from_json({name: value for name, value in BASE.items() if name != field})


@pytest.mark.parametrize("data", [None, [], "row-log", 3])
def test_json_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(InvalidScheme, match="must be a JSON object"):
        QuantScheme.from_json(data)  # type: ignore[arg-type]


@given(st.floats(0.0, 0.999), st.sampled_from(Reference), st.sampled_from(Normalize))
def test_prune_only_has_no_levels(threshold: float, reference: Reference, normalize: Normalize) -> None:
    scheme = QuantScheme(reference, normalize, threshold)
    with pytest.raises(InvalidScheme, match="prunes only"):
        _ = scheme.levels
    assert scheme.is_identity == (threshold == 0.0)
