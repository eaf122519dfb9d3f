"""Tensors in files reach onnxruntime from wherever they are: of two models, in subgraphs, functions and attributes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import small_models
from onnx.numpy_helper import from_array

from onnx_attnq.job import compress, compress_weights
from onnx_attnq.model import files, load, sharing_weights
from onnx_attnq.model.external_data import get_reference, set_reference
from onnx_attnq.model.wellformed import tensor_protos
from onnx_attnq.run import Session
from onnx_attnq.verification import verify

TEXT = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
f (float[B,L,64] x, bool flag) => (float[B,L,64] y) {
    h = MatMul(x, large)  k = Transpose<perm = [0, 2, 1]>(h)  s = MatMul(h, k)  p = Softmax<axis = -1>(s)
    c = MatMul(p, h)
    i = If(flag) <
        then_branch = yes () => (float[B,L,64] t) { u = MatMul(c, inner)  t = Add(u, inner_small) },
        else_branch = no () => (float[B,L,64] e) { e = Identity(c) }>
    j = Unsqueeze(i, axes)  l = Squeeze(j, axes)  a = Add(l, constant)
    m = Cast<to = 1>(half)  b = MatMul(a, m)  d = Add(b, small)  y = local.shift(d) }
<domain: "local", opset_import: ["" : 17]> shift (v) => (w) { w = Add(v, inside) }"""

KINDS = ("small", "half", "inner", "inner_small", "constant", "inside")
"""Tensors that change the output; ``large`` is the same in both models."""


def written(folder: Path, changed: str = "") -> Path:
    """A model with all of its tensors in a file beside it, one of them other than usual."""
    folder.mkdir(parents=True)
    proto = small_models.parse(TEXT)
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        array = random.standard_normal(shape, np.float32) / 8 + (name == changed)
        return from_array(array.astype(ml_dtypes.bfloat16) if name == "half" else array, name)

    def constant(name: str) -> onnx.NodeProto:
        return onnx.helper.make_node("Constant", [], [name], value=tensor(name, 64))

    proto.graph.initializer.extend([tensor("large", 64, 64), tensor("small", 64), tensor("half", 64, 64)])
    proto.graph.initializer.append(from_array(np.array([1]), "axes"))
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    choice.attribute[0].g.initializer.extend([tensor("inner", 64, 64), tensor("inner_small", 64)])
    proto.graph.node.insert(0, constant("constant"))
    proto.functions[0].node.insert(0, constant("inside"))
    with open(folder / "model.bin", "xb") as data:
        for each in tensor_protos(proto):
            reference = ("model.bin", data.tell(), len(each.raw_data))
            data.write(each.raw_data)
            set_reference(each, reference)
    return small_models.write(proto, folder / "model.onnx")


def in_memory(path: Path) -> bytes:
    """The model without files, which onnxruntime cannot take from elsewhere."""
    proto = onnx.load(path, load_external_data=False)
    content = path.with_name("model.bin").read_bytes()
    for tensor in tensor_protos(proto):
        _, offset, length = get_reference(tensor)
        for field in ("external_data", "data_location"):
            tensor.ClearField(field)
        tensor.raw_data = content[offset : offset + length]
    return proto.SerializeToString()


def sample() -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).standard_normal((2, 5, 64), np.float32)
    return {"x": x, "flag": np.array(True)}


@pytest.mark.parametrize("hub", [False, True])
def test_a_model_with_all_tensors_in_a_file_runs(hub: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    expected = onnxruntime.InferenceSession(in_memory(path)).run(None, sample())[0]
    path = small_models.in_hub_cache(path, "model.bin") if hub else path
    model = load(path)
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in files.tensors(model))
    for source in (model, path):
        np.testing.assert_array_equal(Session(source).run(sample())["y"], expected)
    # The model itself is as it was.
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in files.tensors(model))


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("changed", KINDS)
def test_what_differs_is_read_from_its_own_model(changed: str, hub: bool, tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", changed)
    before, expected = (
        onnxruntime.InferenceSession(in_memory(path)).run(None, sample())[0] for path in (first, second)
    )
    assert not np.allclose(before, expected, atol=0.01)
    a, b = (load(small_models.in_hub_cache(path, "model.bin") if hub else path) for path in (first, second))
    sharing = sharing_weights(b, a)
    assert {tensor.base_dir for tensor in files.tensors(sharing) if tensor.name == "large"} != {
        tensor.base_dir for tensor in files.tensors(sharing) if tensor.name == "small"
    }
    np.testing.assert_array_equal(Session(sharing).run(sample())["y"], expected)
    assert not verify(a, b, [sample()]).passed


def test_the_output_may_be_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    done = compress(written(tmp_path / "a"), tmp_path / "c" / "q.onnx")
    assert done.output == tmp_path / "c" / "q.onnx"
    assert done.verification is not None
    assert done.verification.passed


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("hub", [False, True])
def test_its_weights_can_be_quantized(hub: bool, weights: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    path = small_models.in_hub_cache(path, "model.bin") if hub else path
    (tmp_path / "c").mkdir()
    done = compress_weights(path, tmp_path / "c" / "q.onnx", weights).compression
    assert done.verification is not None
    assert done.verification.passed, done.verification.failures
