"""Is the rewrite itself right? With the identity scheme, a rewritten model must compute what the original does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir

from onnx_attnq.errors import AttnqError, InvalidModel
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import Sample
from onnx_attnq.rewriting import Plan, Record, RewriteSettings, rewrite
from onnx_attnq.run import Arrays, RunSettings, Session
from onnx_attnq.scheme import preset
from onnx_attnq.verification.outputs import OutputComparison, OutputDeviation, token_masks
from onnx_attnq.verification.rewrite_again import other_than_rewritten

FLOAT32: Final = 1e-3
"""Relative error of an output in float32: sums in another order, through dozens of layers."""
FLOAT16: Final = 3e-2
"""The same in 16-bit floats, which round at 5e-4 of a value."""
QUANTIZED: Final = 5e-2
"""The same behind ops that round activations to 8 bits: a rounding moves a value by a whole step."""
ABSOLUTE: Final = 1e-5
"""An output whose elements are all as near as this is right, however small it is."""

_ROUNDING_OPS: Final = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulNBits", "QAttention"}
)


@dataclasses.dataclass(frozen=True)
class RewriteProof:
    """How far the original is from its rewrite with the identity scheme.

    Attributes:
        outputs: By name, how far they are from the original's.
        tolerance: Largest relative error that is allowed.
        wrong: Sites whose rewrite alone moves an output further than that; empty where all is right, or where only
            several sites together do.
        weights: Names of weights of the rewritten model that are not those of the original.
        graph: What the rewritten model's graph has otherwise than what the rewrite makes of the original; else empty.
        missing: Why there is no proof, and are no outputs; empty where there is one.
    """

    outputs: Mapping[str, OutputDeviation]
    tolerance: float
    wrong: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    graph: str = ""
    missing: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, a sentence each."""
        blame = f", by the sites {', '.join(map(repr, self.wrong))}" if self.wrong else ""
        moved = (
            f"output {name!r}: the rewrite moves it even without quantization: {_reason(output)}{blame}"
            for name, output in self.outputs.items()
            if not _is_right(output, self.tolerance)
        )
        weights = (f"weight {name!r} is not that of A" for name in self.weights)
        return (*((self.graph,) if self.graph else ()), *weights, *moved)

    def to_json(self) -> dict[str, Any]:
        """The JSON form that ``onnx-attnq verify`` writes."""
        return {
            "tolerance": self.tolerance,
            "wrong_sites": list(self.wrong),
            "missing": self.missing,
            "other_weights": list(self.weights),
            "other_graph": self.graph,
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
        }


def prove_rewrite(
    original: ir.Model,
    rewritten: ir.Model,
    record: Record,
    samples: Sequence[Sample],
    expected: Sequence[Arrays],
    run: RunSettings,
) -> RewriteProof:
    """Rewrite the sites of a record with the identity scheme, and compare with the original.

    All sites at once; one by one only where that fails. What is run is made from the original; so the rewritten model
    must be what the same rewrite makes with the schemes of the record.

    Args:
        original: The model before.
        rewritten: The model that was made from it.
        record: What the rewritten model says about itself.
        samples: Inputs.
        expected: The original's outputs on them.
        run: Threads and custom ops.

    Returns:
        What was found; where the original cannot be rewritten so, the reason.
    """
    ids = [site.id for site in record.sites]
    tolerance = _tolerance(original)
    graph, weights = other_than_rewritten(original, rewritten, record)
    try:
        whole = _identity(original, record, ids)
    except AttnqError as error:
        return RewriteProof({}, tolerance, (), weights, graph, str(error))
    outputs = _compare(whole, samples, expected, run)
    if all(_is_right(output, tolerance) for output in outputs.values()):
        return RewriteProof(outputs, tolerance, (), weights, graph)
    wrong = []
    for site in ids:
        try:
            alone = _identity(original, record, [site])
        except AttnqError:  # a site that is only rewritten with others is not blamed
            continue
        found = _compare(alone, samples, expected, run)
        wrong += [] if all(_is_right(output, tolerance) for output in found.values()) else [site]
    return RewriteProof(outputs, tolerance, tuple(wrong), weights, graph)


def _identity(original: ir.Model, record: Record, ids: Sequence[str]) -> ir.Model:
    model = original.clone()
    sites = find_sites(expose(model, keep=lambda site: site not in ids))
    plan = Plan.giving(sites, dict.fromkeys(ids, preset("identity")), "left out of the proof")
    if not any(entry.scheme for entry in plan.sites):
        raise InvalidModel("its sites are not found again")
    rewrite(model, sites, plan, RewriteSettings(inline=record.inlined))
    return model


def _compare(
    model: ir.Model, samples: Sequence[Sample], expected: Sequence[Arrays], run: RunSettings
) -> dict[str, OutputDeviation]:
    session = Session(model, run, frugal=True)
    outputs = {name: OutputComparison(masks=masks) for name, masks in token_masks(model).items()}
    for sample, before in zip(samples, expected, strict=True):
        for name, array in session.run(sample).items():
            outputs[name].add(before[name], array, sample)
    return {name: output.result() for name, output in outputs.items()}


def _tolerance(model: ir.Model) -> float:
    nodes = list(model.graph.all_nodes())
    if any(node.op_type in _ROUNDING_OPS for node in nodes):
        return QUANTIZED
    types = {value.dtype for node in nodes for value in node.outputs}
    types |= {value.dtype for value in model.graph.initializers.values()}
    return FLOAT16 if types & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16} else FLOAT32


def _is_right(output: OutputDeviation, tolerance: float) -> bool:
    d = output.deviation
    near = d.relative_error <= tolerance or d.max_abs <= ABSOLUTE
    return near and not d.one_sided and not output.shapes


def _reason(output: OutputDeviation) -> str:
    if output.shapes:
        return output.shapes[0]
    if output.deviation.one_sided:
        return f"{output.deviation.one_sided} elements are NaN or infinite in one model only"
    return f"its relative error is {output.deviation.relative_error:.2g}"


__all__ = ["RewriteProof", "prove_rewrite"]
