"""One process may hold several onnxruntimes, as Python's and the one of onnxruntime-genai: the library serves all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from onnx_attnq.run import native_library

LIBRARIES = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))

pytestmark = [
    pytest.mark.skipif(native_library() is None, reason="the library was not built"),
    pytest.mark.skipif(not LIBRARIES, reason="this onnxruntime brings no library of its own for other programs"),
]

PROGRAM = """
import ctypes
import sys
import onnx
import onnxruntime

library, *runtimes = sys.argv[1:]
text = \'<ir_version: 8, opset_import: ["" : 17, "onnx_attnq" : 1]> agraph () => (uint8[N] y) {y = onnx_attnq.KernelName()}\'
model = onnx.parser.parse_model(text).SerializeToString()


class Runtime:
    def __init__(self, path):
        base_of = ctypes.CDLL(path).OrtGetApiBase
        base_of.restype = ctypes.POINTER(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32))
        self.base = base_of()
        self.api = self.base[0](20)

    def call(self, slot, *arguments):
        # Places in onnxruntime\'s table of functions never change.
        address = ctypes.c_void_p.from_address(self.api + slot * 8).value
        status = ctypes.CFUNCTYPE(ctypes.c_void_p, *(type(a) for a in arguments))(address)(*arguments)
        assert status is None, (slot, status)

    def session(self):
        environment, options, session = (ctypes.c_void_p() for _ in range(3))
        self.call(3, ctypes.c_int(3), ctypes.c_char_p(b"test"), ctypes.pointer(environment))
        self.call(10, ctypes.pointer(options))
        register = ctypes.CDLL(library).RegisterCustomOps
        register.restype = ctypes.c_void_p
        assert register(options, self.base) is None
        size = ctypes.c_size_t(len(model))
        self.call(8, environment, ctypes.c_char_p(model), size, options, ctypes.pointer(session))
        return session.value


def python_session():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


first = python_session()
others = [Runtime(path) for path in runtimes]
tables = {runtime.api for runtime in others}
sessions = [runtime.session() for runtime in others for _ in range(2)]
print(len(tables), len(set(sessions)), first.run(None, {})[0].tobytes() == python_session().run(None, {})[0].tobytes())
"""


def test_serves_three_onnxruntimes_of_one_process(tmp_path: Path) -> None:
    copy = shutil.copy(LIBRARIES[0], tmp_path / "another.so")
    arguments = [str(native_library()), str(LIBRARIES[0]), str(copy)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "4", "True"]
