"""The C++ program of examples/deploy, compiled against onnxruntime's headers where they are, gives what Python gives."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_transformers import bert_like
from test_native_abi import header_directory

from onnx_attnq.job import compress
from onnx_attnq.model import save
from onnx_attnq.run import Session, native_library

SOURCES = Path(__file__).parent.parent / "examples" / "deploy" / "cpp"
RUNTIMES = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
"""The library that the Python package comes with. It runs programs that were compiled with older headers."""

pytestmark = pytest.mark.skipif(
    header_directory() is None or not RUNTIMES or shutil.which("cmake") is None or shutil.which("g++") is None,
    reason="needs CMake, g++, onnxruntime_cxx_api.h (ONNXRUNTIME_INCLUDE=FOLDER) and libonnxruntime.so",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    (build / "libonnxruntime.so.1").symlink_to(RUNTIMES[-1])  # the name that the program asks the system for
    options = [f"-DONNXRUNTIME_INCLUDE={header_directory()}", f"-DONNXRUNTIME_LIBRARY={build / 'libonnxruntime.so.1'}"]
    subprocess.run(["cmake", "-S", SOURCES, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return build / "encoder"


@pytest.mark.parametrize("native", [False, True], ids=["portable", "native library"])
def test_it_prints_the_output_of_the_model(program: Path, native: bool, tmp_path: Path) -> None:
    if native and native_library() is None:
        pytest.skip("the native library was not built")
    save(bert_like(17), tmp_path / "model.onnx")
    compress(tmp_path / "model.onnx", verification=None)
    ids = np.random.default_rng(0).integers(20, size=(2, 5))
    library = str(native_library()) if native else "-"
    command = [program, tmp_path / "model.attnq.onnx", library, "2", "5", *map(str, ids.ravel())]
    done = subprocess.run(
        command, env=os.environ | {"LD_LIBRARY_PATH": str(program.parent)}, check=True, capture_output=True, text=True
    )
    expected = Session(tmp_path / "model.attnq.onnx", native=native).run(
        {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    )
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), expected["logits"].ravel(), rtol=1e-6)
