"""Ops that draw random numbers: the same seeds in both models, so that only what differs otherwise is seen."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

_SEEDED: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def with_seeds(*models: ir.Model) -> tuple[tuple[ir.Model, ...], int]:
    """Copies in which each random op has a seed, the same for ops that give values of the same name.

    Args:
        models: Not changed.

    Returns:
        The models, themselves where nothing is random, and the number of random ops of the first.
    """
    counts = [sum(node.op_type in _SEEDED for node in model.graph.all_nodes()) for model in models]
    if not any(counts):
        return models, 0
    names: dict[str, int] = {}
    copies = tuple(model.clone() for model in models)
    for model in copies:
        for node in model.graph.all_nodes():
            if node.op_type in _SEEDED:
                seed = names.setdefault(node.outputs[0].name or "", len(names) + 1)
                node.attributes["seed"] = ir.AttrFloat32("seed", float(seed))
    return copies, counts[0]


__all__ = ["with_seeds"]
