"""A study of random attention, for what is made of studies."""

from __future__ import annotations

import numpy as np

from onnx_attnq.scheme import numerics, preset
from onnx_attnq.study import Study
from onnx_attnq.study.model_study import Example
from onnx_attnq.study.probability_statistics import measure

SCHEMES = (preset(), preset("ji2021", bits=2), preset("prune-only"))


def make_study(seed=0, schemes=SCHEMES, layers=2, heads=3, tokens=4):
    rng = np.random.default_rng(seed)
    sites, maps = [], {}
    for site in (f"layer.{n}" for n in range(layers)):
        p = numerics.softmax(rng.normal(scale=3.0, size=(2, heads, tokens, tokens)))
        causal = np.tri(tokens, dtype=bool)
        value = rng.normal(size=(2, heads, tokens, 5))
        sites.append(measure(site, p, causal, schemes, value=value, separators=np.ones((2, tokens), bool)))
        maps[site] = np.where(causal, p[0], 0.0).astype(np.float32).astype(np.float64)
    return Study(
        model="tiny.onnx",
        sha256="ab" * 32,
        data=f"random {seed}",
        samples=2,
        sites=tuple(sites),
        unobserved={"layer.x": "inside a Loop"},
        example=Example(tuple(["a", "<b>", "$c", "d"][n % 4] for n in range(tokens)), maps),
    )
