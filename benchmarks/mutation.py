"""Change the code in small wrong ways, one at a time, and see whether the tests nearest to it notice: `make mutation`.

Over `find/`, `rewriting/` and `scheme/`, with cosmic-ray. Modules are changed where they are and put back, so the work
tree has to be clean; after an interrupt, `git checkout onnx_attnq`.

    python benchmarks/mutation.py onnx_attnq/scheme --sample 40

Prints how many of a package's mutants survive, and the difference that each of these makes.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).parent.parent
TESTS = {
    "scheme": ("test_scheme.py", "test_numerics.py", "test_heads.py"),
    "find": (
        *("test_axis_walk.py", "test_sites.py", "test_site_identity.py", "test_inlining.py", "test_fused*.py"),
        *("test_decoder_op_caches.py", "test_cases_graphs.py"),
    ),
    "rewriting": ("test_function.py", "test_plan.py", "test_rewrite.py", "test_revert.py", "test_fused_choice.py"),
}
"""The tests nearest to each package, beside the examples in its modules; those that tell most in a second first."""

LEFT_OUT = ("grows", *(f"-{opset}-" for opset in (12, 14, 15, 16, 18, 19, 20, 21, 22, 24)))
"""Tests that take minutes and tell few mutants from others: growth of the search, and most of the opsets."""

SECONDS = 1200
"""After which a mutant counts as noticed: all tests take a few minutes, on a busy machine three times as long."""


def config(package: str, path: Path) -> str:
    own = path.relative_to(ROOT)
    tests = [str(found.relative_to(ROOT)) for name in TESTS[package] for found in sorted((ROOT / "tests").glob(name))]
    chosen = " and ".join(f"not {name}" for name in LEFT_OUT)
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -k '{chosen}' {own} {' '.join(tests)}"
    return (
        f'[cosmic-ray]\nmodule-path = "{own}"\ntimeout = {SECONDS}\nexcluded-modules = ["**/__init__.py"]\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )


def survivors(path: Path, sample: int | None, seed: int) -> tuple[int, int, list[str]]:
    """How many mutants a module or a package has, how many were tried, and the differences that no test noticed."""
    package = path.relative_to(ROOT / "onnx_attnq").parts[0]
    with tempfile.TemporaryDirectory() as folder:
        settings, session = Path(folder, "config.toml"), Path(folder, "session.sqlite")
        settings.write_text(config(package, path), encoding="utf-8")
        command = [sys.executable, "-m", "cosmic_ray.cli"]
        subprocess.run([*command, "baseline", str(settings)], cwd=ROOT, check=True)  # tests that fail notice everything
        subprocess.run([*command, "init", str(settings), str(session)], cwd=ROOT, check=True)
        with use_db(str(session), WorkDB.Mode.open) as database:
            items = list(database.work_items)
            # `X | None` in annotations, which nothing runs.
            real = [item for item in items if all("BitOr" not in m.operator_name for m in item.mutations)]
            chosen = real if sample is None else random.Random(seed).sample(real, min(sample, len(real)))
            kept = {item.job_id for item in chosen}
            skipped = [item.job_id for item in items if item.job_id not in kept]
            database.set_multiple_results(skipped, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
        subprocess.run([*command, "exec", str(settings), str(session)], cwd=ROOT, check=True)
        with use_db(str(session), WorkDB.Mode.open) as database:
            alive = [result.diff for _, result in database.results if result.test_outcome == TestOutcome.SURVIVED]
    return len(real), len(chosen), [str(diff) for diff in alive]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="modules or folders; all three packages by default")
    parser.add_argument("--sample", type=int, help="so many mutants of each; all by default, which takes days")
    parser.add_argument("--seed", type=int, default=0, help="random seed for the sample")
    arguments = parser.parse_args()
    if subprocess.run(["git", "status", "--porcelain", "onnx_attnq"], cwd=ROOT, capture_output=True, check=True).stdout:
        parser.error("onnx_attnq/ has changes that are not committed; mutants could not be told from them")
    for path in map(Path.resolve, arguments.paths or [ROOT / "onnx_attnq" / package for package in TESTS]):
        whole, count, alive = survivors(path, arguments.sample, arguments.seed)
        print(f"{path.relative_to(ROOT)}: {len(alive)} of {count} survive, of {whole}", *alive, sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
