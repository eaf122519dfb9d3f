"""The example's text quotes what its script wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "paper_figures"


@pytest.fixture(scope="module")
def figures():
    spec = importlib.util.spec_from_file_location("paper_figures", EXAMPLE / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["minilm", "rxnmapper"])
def test_the_tables_in_the_readme_are_those_that_the_script_printed(figures, name, capsys):
    numbers = json.loads((EXAMPLE / "results" / "numbers.json").read_text())
    figures.show(name, numbers[name])
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [line for line in capsys.readouterr().out.splitlines()[3:] if line]
    assert len(lines) > 20
    assert [line for line in lines if line not in readme] == []


@pytest.mark.parametrize(("name", "inputs"), [("xquad", 3), ("reactions", 2)])
def test_the_committed_tokens_become_samples(figures, name, inputs):
    names = ("input_ids", "attention_mask", "token_type_ids")[:inputs]
    samples, labels = figures.samples_of(name, names)
    assert all(tuple(sample) == names for sample in samples)
    assert all(sample["attention_mask"].all() for sample in samples)
    first = [labels[token] for token in samples[0]["input_ids"][0].tolist()]
    assert (first[0], first[-1]) == ("[CLS]", "[SEP]")
    assert len({sample["input_ids"].shape[1] for sample in samples}) > 10
    assert np.concatenate([sample["input_ids"][0] for sample in samples]).dtype == np.int64
