"""Build the conda recipe and try the package: `make conda-check`.

rattler-build builds `conda/recipe.yaml` as it is, and runs its tests. It needs no network: a local channel has one
package for each requirement, with the version that is installed here. `python` is this interpreter with the modules
of this environment; the others are empty. conda-forge's own compilers and packages are therefore not tried.
"""

from __future__ import annotations

import importlib.metadata
import json
import site
import sys
import tempfile
from pathlib import Path

import rattler_build as conda

RECIPE = Path(__file__).parent / "conda" / "recipe.yaml"
VARIANTS = conda.VariantConfig.from_yaml('cxx_compiler: ["cxx"]\nc_stdlib: ["stdlib"]\n')
NAME = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PYTHON = f"""
mkdir -p $PREFIX/bin $PREFIX/lib/{NAME}/site-packages
for name in python {NAME}; do ln -s {Path(sys.executable).resolve()} $PREFIX/bin/$name; done
echo home = {Path(sys.base_prefix) / "bin"} > $PREFIX/pyvenv.cfg
echo {site.getsitepackages()[0]} > $PREFIX/lib/{NAME}/site-packages/zz_environment.pth
"""


def version(requirement: str) -> str:
    """The version that is installed here; 1 for what is no Python package."""
    if requirement == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(requirement)
    except importlib.metadata.PackageNotFoundError:
        return "1"


def add_to_channel(channel: Path, requirement: str) -> None:
    """Build the package that stands for a requirement."""
    recipe = {
        "package": {"name": requirement, "version": version(requirement)},
        "build": {"number": 0, "script": PYTHON.strip().splitlines() if requirement == "python" else ["true"]},
    }
    conda.Stage0Recipe.from_yaml(json.dumps(recipe)).run_build(
        output_dir=channel, channels=[channel.as_uri()], variant_config=VARIANTS
    )


def main(folder: Path) -> None:
    """Build the recipe from a channel of its requirements, and run its tests."""
    channel = folder / "channel"
    for platform in ("noarch", conda.RenderConfig().build_platform):
        (channel / platform).mkdir(parents=True)
        (channel / platform / "repodata.json").write_text(
            json.dumps({"info": {"subdir": platform}, "packages": {}, "packages.conda": {}}), encoding="utf-8"
        )
    recipe = conda.Stage0Recipe.from_file(RECIPE)
    (rendered,) = recipe.render(VARIANTS)
    needed = rendered.recipe.to_dict()["requirements"]
    for requirement in sorted({text.split()[0] for kind in ("build", "host", "run") for text in needed[kind]}):
        add_to_channel(channel, requirement)
    (result,) = recipe.run_build(
        channels=[channel.as_uri()],
        output_dir=folder / "built",
        variant_config=VARIANTS,
    )
    package = conda.Package.from_file(result.packages[0])
    print(result.packages[0].name, "depends on", ", ".join(package.depends))
    library = [name for name in package.files if "libonnx_attnq" in name]
    if len(library) != 1 or "bin/onnx-attnq" not in package.files:
        raise SystemExit(f"the library or the command is missing in {result.packages[0].name}")
    for test in package.run_tests(channel=[channel.as_uri()]):
        if not test.success:
            raise SystemExit("\n".join(test.output))
    print(f"{package.test_count} tests of the recipe passed; the library is {library[0]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
