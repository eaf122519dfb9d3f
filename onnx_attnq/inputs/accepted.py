"""Made-up samples that a model takes: some exports run only with the sizes with which they were traced."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import onnx_ir as ir

from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs.given_shapes import NO_SHAPES, InputShapes
from onnx_attnq.inputs.made_up import Draft, draft_samples, edge_samples
from onnx_attnq.inputs.shape_check import Misfit, ShapeCheck
from onnx_attnq.inputs.signature import Sample
from onnx_attnq.progress import Progress, Steps, no_progress
from onnx_attnq.run import Arrays, RunSettings, Session

MOST_RUNS: Final = 60
"""How often the model is run to find sizes that it takes, where shape inference finds none."""


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Samples, and why others were left out.

    Attributes:
        samples: Those that the model runs on.
        refused: For each of the others one line: the shape of its first input, and what onnxruntime says.
        outputs: What the model gives on each of the samples, where it was run on them.
    """

    samples: tuple[Sample, ...]
    refused: tuple[str, ...] = ()
    outputs: tuple[Arrays, ...] = ()

    @property
    def made(self) -> int:
        """How many samples were made."""
        return len(self.samples) + len(self.refused)


def made_up_samples(
    model: ir.Model,
    count: int,
    seed: int = 0,
    *,
    edges: bool = False,
    input_shapes: InputShapes = NO_SHAPES,
    run: RunSettings = RunSettings(),
    progress: Progress = no_progress,
) -> MadeUp:
    """Make samples as `generate_samples` does, and leave out those that the model does not run on.

    Where it runs on none, what onnxruntime says is used to look for sizes that it takes.

    Args:
        model: The original.
        count: How many samples to make.
        seed: Of token ids and features.
        edges: Make those of `edge_samples`, too.
        input_shapes: The whole shape of some inputs, by name.
        run: Threads and custom ops.
        progress: Called after each run.

    Raises:
        InvalidModel: onnxruntime does not take the model.
        InvalidData: The model runs on none of them, or computes a value from one that does not fit into memory; or an
            input is not there, or has no such shape.
    """
    check = ShapeCheck(model)
    drafts = draft_samples(model, count, seed, input_shapes=input_shapes, check=check)
    if drafts:
        max(drafts, key=lambda draft: draft.nbytes).check_memory(check)
    session = Session(model, run, frugal=True)
    samples = tuple(draft.sample() for draft in drafts)
    if edges:
        samples += edge_samples(model, seed, input_shapes)
    accepted: list[Sample] = []
    outputs: list[Arrays] = []
    refused: list[str] = []
    runs = Steps(len(samples), progress)
    for sample in samples:
        try:
            outputs.append(session.run(sample))
            accepted.append(sample)
        except InvalidData as error:
            name, array = next(iter(sample.items()))
            refused.append(f"{name} of shape {array.shape}: {error}")
        runs.advance("samples tried on the original")
    if not accepted:
        accepted = [_looked_for(model, session, drafts, refused[0])]
        outputs = [session.run(accepted[0])]
    return MadeUp(tuple(accepted), tuple(refused), tuple(outputs))


def _looked_for(model: ir.Model, session: Session, drafts: tuple[Draft, ...], refusal: str) -> Sample:
    """A sample with sizes that onnxruntime takes, found by what it says to others."""
    places = {node.name: place for place, node in enumerate(model.graph) if node.name}

    def complaint(draft: Draft) -> Misfit | None:
        error = _error(session, draft.sample())
        return None if error is None else _misfit(error, places)

    # The last draft is the shortest, so that a long search costs least.
    found = drafts[-1].fitted(complaint, MOST_RUNS) if drafts and drafts[-1].sizes else None
    if found is None or found.doubt is not None:
        doubts = [draft.doubt for draft in (*drafts, *([found] if found else ())) if draft.doubt is not None]
        inferred = f" By shape inference, {doubts[0]}." if doubts else ""
        if doubts and refusal.partition(": ")[2] in doubts[0]:  # that was the runtime again, not shape inference
            tried = doubts[0].rpartition("; tried ")[2] if "; tried " in doubts[0] else ""
            inferred = f"; it says the same with other sizes ({tried})" if tried else ""
        raise InvalidData(
            "the model runs on none of the samples that were made up; give it data, or the shapes of its inputs "
            f"(--input-shape). {refusal}{inferred}"
        )
    return found.sample()


def _error(session: Session, sample: Sample) -> str | None:
    try:
        session.run(sample, session.outputs[:1])
    except InvalidData as error:
        return str(error)
    return None


def _misfit(error: str, places: dict[str, int]) -> Misfit:
    """What onnxruntime says, as what shape inference would: the node, and two sizes that should be equal."""
    named = re.search(r"[Nn]ode\. Name:'([^']*)'", error)
    name = named.group(1) if named is not None else ""
    gap = re.search(r"(\d+) by (\d+)|[Gg]ot:? (\d+)\D{1,20}[Ee]xpected:? (\d+)", error)
    sizes = None if gap is None else tuple(int(group) for group in gap.groups() if group is not None)
    return Misfit(places.get(name, 0), name or "onnxruntime", error, () if sizes is None else ((sizes[0], sizes[1]),))


__all__ = ["MadeUp", "made_up_samples"]
