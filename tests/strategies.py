"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from onnx_attnq.errors import InvalidScheme
from onnx_attnq.scheme import Normalize, Pruned, QuantScheme, Reference, Rounding, Spacing


@st.composite
def schemes(
    draw: st.DrawFn, bits: st.SearchStrategy[int | None] | None = None, pruned: Pruned | None = None
) -> QuantScheme:
    """Any valid scheme, with pruned values treated in the given way, or in either."""
    chosen = draw(st.none() | st.integers(1, 8) if bits is None else bits)
    reference, normalize = draw(st.sampled_from(Reference)), draw(st.sampled_from(Normalize))
    if chosen is None:
        scheme = QuantScheme(reference, normalize, draw(st.floats(0.0, 0.999)))
    else:
        threshold = draw(st.floats(1e-8, 0.5))
        spacing, rounding = draw(st.sampled_from(Spacing)), draw(st.sampled_from(Rounding))
        scheme = QuantScheme(reference, normalize, threshold, chosen, spacing, rounding)
    chosen_fate = draw(st.sampled_from(Pruned)) if pruned is None else pruned
    return dataclasses.replace(scheme, pruned=chosen_fate) if may_share(scheme) else scheme


def may_share(scheme: QuantScheme) -> bool:
    """Whether pruned values of the scheme may share what they summed to."""
    try:
        dataclasses.replace(scheme, pruned=Pruned.MEAN)
    except InvalidScheme:
        return False
    return True
