"""Change the code in small wrong ways, one at a time, and see whether the tests nearest to it notice: `make mutation`.

Over `find/`, `rewriting/` and `scheme/`, with cosmic-ray. Modules are changed where they are and put back, so the work
tree has to be clean; after an interrupt, `git checkout onnx_attnq`.

    python benchmarks/mutation.py onnx_attnq/scheme --sample 40
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
    "find": ("test_axis_walk.py", "test_sites.py", "test_site_identity.py", "test_inlining.py", "test_fused*.py"),
    "rewriting": ("test_function.py", "test_plan.py", "test_rewrite.py", "test_revert.py"),
}
"""The tests nearest to each package, beside the examples in the module itself."""

SLOW = "not grows"  # the growth of the search, which takes minutes and tells no mutant from another
SECONDS = 300


def config(module: Path) -> str:
    package = module.relative_to(ROOT / "onnx_attnq").parts[0]
    tests = sorted(str(path.relative_to(ROOT)) for name in TESTS[package] for path in (ROOT / "tests").glob(name))
    own = module.relative_to(ROOT)
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -k '{SLOW}' {own} {' '.join(tests)}"
    return (
        f'[cosmic-ray]\nmodule-path = "{own}"\ntimeout = {SECONDS}\nexcluded-modules = []\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )


def survivors(module: Path, sample: int | None, seed: int) -> tuple[int, list[str]]:
    """How many mutants there were, and the differences of those that no test noticed."""
    with tempfile.TemporaryDirectory() as folder:
        settings, session = Path(folder, "config.toml"), Path(folder, "session.sqlite")
        settings.write_text(config(module), encoding="utf-8")
        command = [sys.executable, "-m", "cosmic_ray.cli"]
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
    return len(chosen), [str(diff) for diff in alive]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="modules or folders; all three packages by default")
    parser.add_argument("--sample", type=int, help="so many mutants of each module; all by default, which takes days")
    parser.add_argument("--seed", type=int, default=0, help="random seed for the sample")
    arguments = parser.parse_args()
    if subprocess.run(["git", "status", "--porcelain", "onnx_attnq"], cwd=ROOT, capture_output=True, check=True).stdout:
        parser.error("onnx_attnq/ has changes that are not committed; mutants could not be told from them")
    paths = arguments.paths or [ROOT / "onnx_attnq" / package for package in TESTS]
    modules = [
        m for path in map(Path.resolve, paths) for m in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    for module in modules:
        if module.name == "__init__.py":
            continue
        count, alive = survivors(module, arguments.sample, arguments.seed)
        print(f"{module.relative_to(ROOT)}: {len(alive)} of {count} survive", *alive, sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
