"""Made-up samples that a model takes: some exports run only with the sizes with which they were traced."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs.made_up import edge_samples, generate_samples
from onnx_attnq.inputs.signature import Sample
from onnx_attnq.run import Session


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Samples, and why others were left out.

    Attributes:
        samples: Those that the model runs on.
        refused: For each of the others one line: the shape of its first input, and what onnxruntime says.
    """

    samples: tuple[Sample, ...]
    refused: tuple[str, ...] = ()


def made_up_samples(
    model: ir.Model, count: int, seed: int = 0, *, edges: bool = False, threads: int | None = None
) -> MadeUp:
    """Make samples as `generate_samples` does, and leave out those that the model does not run on.

    Args:
        model: The original.
        count: How many samples to make.
        seed: Of token ids and features.
        edges: Make those of `edge_samples`, too.
        threads: Threads inside an op.

    Raises:
        InvalidModel: onnxruntime does not take the model.
        InvalidData: The model runs on none of them.
    """
    samples = generate_samples(model, count, seed) + (edge_samples(model, seed) if edges else ())
    session = Session(model, threads=threads)
    accepted, refused = [], []
    for sample in samples:
        try:
            session.run(sample, session.outputs[:1])
        except InvalidData as error:
            name, array = next(iter(sample.items()))
            refused.append(f"{name} of shape {array.shape}: {error}")
        else:
            accepted.append(sample)
    if not accepted:
        raise InvalidData(f"the model runs on none of the samples that were made up; give it data. {refused[0]}")
    return MadeUp(tuple(accepted), tuple(refused))


__all__ = ["MadeUp", "made_up_samples"]
