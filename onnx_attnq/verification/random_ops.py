"""Ops that draw random numbers: the same seeds in both models, so that only what differs otherwise is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from onnx_attnq.graph import constant, known_op

_SEEDED: Final = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def with_seeds(*models: ir.Model) -> tuple[tuple[ir.Model, ...], int]:
    """Copies in which each random op has a seed, the same for ops that give values of the same name.

    Where ops of functions draw, all ops get one seed: one model may have a function inlined, which renames its values.

    Args:
        models: Not changed.

    Returns:
        The models, themselves where nothing is random, and the number of random ops of the first.
    """
    counts = [sum(1 for body in _bodies(model) for _ in _random_ops(body)) for model in models]
    if not any(counts):
        return models, 0
    functions = [function for model in models for function in model.functions.values()]
    by_name = not any(True for function in functions for _ in _random_ops(function))
    seeds: dict[str | None, int] = {}
    copies = tuple(model.clone() for model in models)
    for model in copies:
        for node in (op for body in _bodies(model) for op in _random_ops(body)):
            name = node.outputs[0].name if by_name else None
            seed = seeds.setdefault(name, len(seeds) + 1)
            whole = known_op(node) == "Dropout"
            node.attributes["seed"] = ir.AttrInt64("seed", seed) if whole else ir.AttrFloat32("seed", float(seed))
    return copies, counts[0]


def seed_note(random_ops: int) -> str:
    """What to tell about the models that `with_seeds` gave."""
    return f"{random_ops} ops draw random numbers; both models got the same seeds"


def _bodies(model: ir.Model) -> tuple[ir.Graph | ir.Function, ...]:
    return (model.graph, *model.functions.values())


def _random_ops(body: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    return (node for node in body.all_nodes() if known_op(node) in _SEEDED or _drops(node))


def _drops(node: ir.Node) -> bool:
    """Whether a node is a Dropout that may be in training."""
    if known_op(node) != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = constant(node.inputs[2])
    return training is None or bool(training.numpy().any())


__all__ = ["seed_note", "with_seeds"]
