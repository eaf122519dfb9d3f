"""One change at a random place of a model: the comparison finds it and names the node."""

from __future__ import annotations

import random

import pytest
import variants

from onnx_attnq.diff import diff_models, format_diff

MUTATIONS = {
    "bert__dynamo18-functions": 250,
    "bert__int8dyn-qattention": 200,
    "decoder": 40,
    "fused_attention23__gqa_past": 150,
    "fused_gqa__sink": 150,
    "llama__int4-nbits": 60,
    "odd_if__ts17-script": 290,
}
"""How many for each model, fewer for the larger ones."""


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_every_mutation_is_found_at_the_node_that_was_changed(name: str, share: float) -> None:
    model = variants.load(name)
    wanted = int(share * MUTATIONS[name])
    done = 0
    for seed in range(10 * wanted):
        rng = random.Random(f"{name} {seed}")
        mutated = variants.copy(model)
        before = {node: node.name for node in variants.all_nodes(mutated)}
        mutation = variants.mutate(mutated, rng)
        if mutation is None:
            continue
        variants.rename(mutated, rng)
        diff = diff_models(model, mutated)
        text = f"seed {seed}: {mutation.what}\n{format_diff(diff)}"
        assert not diff.equal, text
        first = diff.differences[0]
        if mutation.nodes is None:
            assert first.kind == mutation.kind, text
        else:
            changed = {before.get(node) for node in mutation.nodes}, {node.name for node in mutation.nodes}
            assert first.a is not None or first.b is not None, text
            assert first.a is None or first.a.node in changed[0], text
            assert first.b is None or first.b.node in changed[1], text
        done += 1
        if done == wanted:
            return
    pytest.fail(f"only {done} mutations apply to {name}")
