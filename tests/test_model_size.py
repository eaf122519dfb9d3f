"""Models of gigabytes: loading and saving takes little memory, because weights never pass through it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import small_models

LOAD_AND_SAVE = """
import resource, sys
from onnx_attnq.model import load, save
save(load(sys.argv[1]), sys.argv[2], sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[n, 8192] x) => (float[n, 8192] y) { y = Identity(x) }
"""


def sparse_model(path: Path, gigabytes: float) -> Path:
    """A chain of products whose weights are a hole in a file: they take no room on the disk."""
    proto = small_models.parse(CHAIN)
    size = 8192 * 8192 * 4
    count = int(gigabytes * 1e9 / size) + 1
    del proto.graph.node[:]
    for index in range(count):
        proto.graph.node.add(
            op_type="MatMul", input=[f"h{index}" if index else "x", f"w{index}"], output=[f"h{index + 1}"]
        )
        tensor = proto.graph.initializer.add(name=f"w{index}", data_type=1, dims=[8192, 8192])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "weights.bin"), ("offset", index * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    proto.graph.node[-1].output[0] = "y"
    with open(path.with_name("weights.bin"), "wb") as file:
        file.truncate(count * size)
    return small_models.write(proto, path)


@pytest.mark.slow
@pytest.mark.parametrize(("gigabytes", "megabytes_of_memory"), [(0.44, 300), (3.0, 500)])
@pytest.mark.parametrize("external_data", ["copy", "keep"])
def test_memory_does_not_grow_with_the_model(
    gigabytes: float, megabytes_of_memory: int, external_data: str, tmp_path: Path
) -> None:
    path = sparse_model(tmp_path / "model.onnx", gigabytes)
    output = tmp_path / "out.onnx"
    command = [sys.executable, "-c", LOAD_AND_SAVE, str(path), str(output), external_data]
    peak_kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak_kilobytes < megabytes_of_memory * 1000
    onnx.checker.check_model(str(output))
