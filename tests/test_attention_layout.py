"""When P·V is the context that a model computed."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_attnq.study.attention_layout import agrees

TOLERANCE = 0.02  # written down here again, so that loosening it is seen


@pytest.mark.parametrize(("share_of_tolerance", "agreed"), [(0.995, True), (1.005, False)])
def test_a_context_may_be_off_by_the_tolerance_and_no_further(share_of_tolerance: float, agreed: bool) -> None:
    random = np.random.default_rng(0)
    p, v = random.random((1, 2, 5, 7)), random.standard_normal((1, 2, 7, 4))
    context = p @ v
    error = random.standard_normal(context.shape)
    # So that |error| is this share of the context that it is in: at right angles, |context + error| would be larger.
    error -= context * (error * context).sum() / (context * context).sum()
    size = share_of_tolerance * TOLERANCE / np.sqrt(1 - (share_of_tolerance * TOLERANCE) ** 2)
    error *= size * np.linalg.norm(context) / np.linalg.norm(error)
    assert agrees(p, v, context + error, np.ones(p.shape, bool)) == agreed
