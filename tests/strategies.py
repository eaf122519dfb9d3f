"""Hypothesis strategies that several test files share."""

from __future__ import annotations

from hypothesis import strategies as st

from onnx_attnq.scheme import Normalize, QuantScheme, Reference, Rounding, Spacing


@st.composite
def schemes(draw: st.DrawFn, bits: st.SearchStrategy[int | None] | None = None) -> QuantScheme:
    """Any scheme whose bins are wide enough to be one."""
    chosen = draw(st.none() | st.integers(1, 8) if bits is None else bits)
    reference, normalize = draw(st.sampled_from(Reference)), draw(st.sampled_from(Normalize))
    if chosen is None:
        return QuantScheme(reference, normalize, draw(st.floats(0.0, 0.999)))
    threshold = draw(st.floats(1e-8, 0.5))
    spacing, rounding = draw(st.sampled_from(Spacing)), draw(st.sampled_from(Rounding))
    return QuantScheme(reference, normalize, threshold, chosen, spacing, rounding)
