"""What the native kernel of GroupQueryAttention does with scores, for each kind of scheme, against its body."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from fused_case import CURRENT_KERNELS, Array, Case, random_array
from test_decoder_op import decoding, ops, rewritten, session
from test_fused_group_query_attention import defined

from onnx_attnq.run import native_library
from onnx_attnq.scheme import HeadSchemes, Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing, preset

pytestmark = [
    CURRENT_KERNELS,
    pytest.mark.skipif(native_library() is None, reason="the library was not built"),
]

FLIPPED_ROWS = 0.02
"""The share of context rows (one head of one query) with a key so near an edge that the executions differ on it."""

ROUNDING = 1e-4
"""By how much a row of context differs where all codes are the same: float32 sums in another order."""

SCHEMES = {
    "zero": preset("row-log"),
    "mean": preset("row-log-mean", bits=2, threshold=0.1),
    "absolute": preset("ji2021"),
    "absolute, mean": preset("log-mean"),
    "kept as they are": preset("prune-only"),
    "by head": HeadSchemes(tuple(preset("row-log", bits=bits, threshold=0.03 / bits) for bits in (1, 2, 3, 4))),
    "mean, by head": HeadSchemes(tuple(preset("row-log-mean", bits=bits, threshold=0.03) for bits in (1, 2, 3, 4))),
}

STEPS = {
    "decode": ((5,), 8, 1),
    "decode far": ((300,), 400, 1),
    "different lengths": ((300, 170, 300), 310, 1),
    "prompt": ((40,), 64, 40),
    "long prompt": ((290,), 290, 290),
    "chunk": ((600,), 640, 20),
}

FORMS = {
    "plain": ({}, False, False),
    "window": ({"local_window_size": 100}, False, False),
    "softcap": ({"softcap": 3.0}, False, False),
    "smooth": ({"smooth_softmax": 1}, False, False),
    "sinks": ({}, False, True),
    "bias": ({}, True, False),
    "all": ({"softcap": 3.0, "local_window_size": 37, "rotary_interleaved": 1}, True, True),
}


def spread(case: Case, *, bias: bool, sinks: bool) -> Case:
    """The case with scores of which most are pruned, and optional inputs."""
    rng = np.random.default_rng(7)
    query, lengths = case.inputs[0], case.inputs[5]
    assert query is not None
    assert lengths is not None
    more: list[Array | None] = [None, None, None]
    if bias:
        more[1] = random_array(rng, (1, 4, query.shape[1], int(lengths.max()) + 1)) * 3
    if sinks:
        more[2] = random_array(rng, (4,)) * 3
    return dataclasses.replace(case, inputs=[query * 8, *case.inputs[1:], *more])


def share_of_rows_that_differ(found: list[Array], expected: list[Array]) -> float:
    return float((np.abs(found[0] - expected[0]).reshape(-1, 16).max(axis=-1) > ROUNDING).mean())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=name, marks=[] if name in ("different lengths", "chunk") else pytest.mark.slow)
        for name, step in STEPS.items()
    ],
)
def test_does_what_the_body_does(
    step: tuple[tuple[int, ...], int, int], form: tuple[dict[str, int], bool, bool]
) -> None:
    attributes, bias, sinks = form
    for scheme in SCHEMES.values() if form is FORMS["all"] else (SCHEMES["zero"], SCHEMES["mean, by head"]):
        case = spread(decoding(*step, **attributes), bias=bias, sinks=sinks)
        model, _ = rewritten(case, scheme)
        assert "GroupQueryAttention" in ops(model)[0]
        found, expected = (
            defined(case, session(model, native=native).run(None, case.feeds())) for native in (True, False)
        )
        assert share_of_rows_that_differ(found, expected) <= FLIPPED_ROWS, scheme
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_kernel_knows_every_form_by_its_attribute() -> None:
    case = decoding((9,), capacity=16)
    kinds = [*itertools.product([3], Spacing, Rounding), (None, None, None)]
    for reference, normalize, (bits, spacing, rounding) in itertools.product(Reference, Normalize, kinds):
        scheme = QuantScheme(reference, normalize, 0.05, bits, spacing, rounding)
        shares = spacing is not Spacing.LINEAR and normalize is not Normalize.MASS
        for one in (scheme, dataclasses.replace(scheme, pruned=Pruned.MEAN)) if shares else (scheme,):
            model, _ = rewritten(case, one)
            found, expected = (
                defined(case, session(model, native=native).run(None, case.feeds())) for native in (True, False)
            )
            assert share_of_rows_that_differ(found, expected) == 0, one
