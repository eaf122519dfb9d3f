"""How to verify."""

from __future__ import annotations

import dataclasses

from onnx_attnq.inputs import InputShapes, Sample
from onnx_attnq.verification.limits import Limits


@dataclasses.dataclass(frozen=True)
class VerifySettings:
    """How to verify a model that was rewritten.

    Attributes:
        samples: Inputs; None to make them up from the model's signature.
        count: How many samples to make up.
        seed: Random seed for generated samples.
        input_shapes: The whole shape of some inputs of these, by name.
        limits: What is asked of the outputs.
        keep_failed: Keep a model that failed as NAME.failed.onnx, beside where it would have been.
    """

    samples: tuple[Sample, ...] | None = None
    count: int = 4
    seed: int = 0
    input_shapes: InputShapes = dataclasses.field(default_factory=dict)
    limits: Limits = Limits()
    keep_failed: bool = False


__all__ = ["VerifySettings"]
