"""examples/ji2021: the table for any exported model, and the classifier that is put on an encoder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from text_models import WORDS, attention, load, tokenizer

from onnx_attnq.evaluate import TextModel, load_task
from onnx_attnq.run import RunSettings

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "examples" / "ji2021"
SENTENCES = [f"{a} {b}" for a in WORDS[5:] for b in WORDS[5:]]
"""Two words each; the class is whether the first is a colour."""


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPTS / script, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_classifier_is_fitted_on_one_half_and_studied_on_the_other(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    encoder = attention(tmp_path / "encoder", width=16)
    tokenizer().save_pretrained(encoder.parent)
    order = np.random.default_rng(0).permutation(len(SENTENCES))
    rows = "".join(f"{SENTENCES[i]}\t{int(SENTENCES[i].split()[0] in ('red', 'green', 'blue'))}\n" for i in order)
    (tmp_path / "sst2.tsv").write_text(f"sentence\tlabel\n{rows}")

    fitted = run("fit_classifier.py", encoder, tmp_path / "sst2.tsv", "-o", tmp_path / "made")
    assert fitted.returncode == 0, fitted.stderr
    made = tmp_path / "made" / encoder.name
    held_out = load_task("text-classification", tmp_path / "made" / "held_out.tsv")
    model = TextModel.load(made, tokenizer(), run=RunSettings(1))
    records = held_out.records(model)
    assert len(records) == len(SENTENCES) - len(SENTENCES) // 2
    assert records[:, 0].mean() > 0.6
    # The logits are linear in the mean hidden state: so is their difference between texts.
    means = [load(encoder).run(tokenizer()([text]))["last_hidden_state"][0].mean(axis=0) for text in SENTENCES]
    logits = [model.logits(tokenizer()([text]))[0, 1] for text in SENTENCES]
    design = np.column_stack([np.array(means, np.float64), np.ones(len(means))])
    residual = design @ np.linalg.lstsq(design, np.array(logits), rcond=None)[0] - logits
    assert np.abs(residual).max() < 1e-3

    table = run(
        "study.py",
        *("--task", "text-classification", "--model", made, "--data", made.parent / "held_out.tsv", "--limit", "8"),
    )
    assert table.returncode == 0, table.stderr
    assert f"made/{encoder.name}, text-classification" in table.stdout
    assert "8 texts" in table.stdout
    rows = ("| prune", "| linear", "| log", "| row-log")
    assert sum(line.startswith(rows) for line in table.stdout.splitlines()) == 2 + 6 * 3
    said = table.stderr.splitlines()  # beside what transformers has to say
    assert said.index("text-classification: original") < said.index("text-classification: row-log (ours), 2 bits")


def test_the_study_says_what_a_task_without_a_model_needs() -> None:
    said = run("study.py", "--task", "text-classification")
    assert said.returncode == 2
    assert "needs --model and --data" in said.stderr
