"""Weights of a large model stay in its file: what is read, written and run is what protobuf would give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

import onnx_attnq.model.files as files
from onnx_attnq.errors import InvalidModel
from onnx_attnq.job import compress
from onnx_attnq.model import load, recheck, save, sharing_weights
from onnx_attnq.model.weights_in_file import WeightInFile, without_weights
from onnx_attnq.rewriting import revert
from onnx_attnq.run import RunSettings, Session
from onnx_attnq.verification import verify

WIDTH = 64  # 16 KiB a matrix

TEXT = """<ir_version: 8, opset_import: ["" : 17], doc_string: "d", producer_name: "p", metadata_props: ["k": "v"]>
 f (float[B,L,64] x) => (float[B,L,64] y) {
    q = MatMul(x, wq)  k = MatMul(x, wk)  kt = Transpose<perm = [0, 2, 1]>(k)  s = MatMul(q, kt)
    p = Softmax<axis = -1>(s)  c = MatMul(p, x)  h = MatMul(c, half)  f = Cast<to = 1>(h)  y = Add(f, small) }"""


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_FILE", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    proto = small_models.parse(TEXT)
    random = np.random.default_rng(0)
    for name in ("wq", "wk", "half"):
        array = random.standard_normal((WIDTH, WIDTH), np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.initializer[1].doc_string = "of the second"
    proto.graph.initializer[1].metadata_props.add(key="a", value="b")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(WIDTH, np.float32), "small"))
    return small_models.write(proto, tmp_path / "a.onnx")


def held(model: ir.Model) -> dict[str, WeightInFile]:
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, WeightInFile)
    }


def sample() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)}


def test_what_is_read_is_what_onnx_reads(path: Path) -> None:
    model, proto = load(path), onnx.load(path)
    assert set(held(model)) == {"wq", "wk", "half"}
    for tensor in proto.graph.initializer:
        found = model.graph.initializers[tensor.name].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), onnx.numpy_helper.to_array(tensor))
        assert found.tobytes() == tensor.raw_data
    assert model.graph.initializers["wk"].const_value.doc_string == "of the second"


def test_what_is_written_has_the_bytes_that_protobuf_gives(path: Path, tmp_path: Path) -> None:
    model = load(path)
    save(model, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == ir.to_proto(model).SerializeToString(deterministic=True)
    assert len(held(model)) == 3  # as before
    save(load(tmp_path / "b.onnx"), tmp_path / "c.onnx")
    assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_weights_that_need_a_data_file_get_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "INLINE_LIMIT", 1000)
    save(load(path), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx.data").stat().st_size >= 3 * 4 * WIDTH * WIDTH
    a, b = onnx.load(path), onnx.load(tmp_path / "b.onnx")
    assert [t.raw_data for t in a.graph.initializer] == [t.raw_data for t in b.graph.initializer]


@pytest.mark.parametrize("frugal", [False, True])
def test_what_runs_is_what_runs_from_the_file(path: Path, frugal: bool) -> None:
    expected = Session(path, RunSettings(1)).run(sample())["y"]
    found = Session(load(path), RunSettings(1), frugal=frugal).run(sample())["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_compressed_verified_and_reverted(path: Path, tmp_path: Path) -> None:
    result = compress(path, tmp_path / "b.onnx")
    assert result.verification is not None
    assert result.verification.passed
    assert onnx.load(tmp_path / "b.onnx").graph.initializer[0].raw_data
    model = load(tmp_path / "b.onnx")
    revert(model)
    recheck(model)
    save(model, tmp_path / "c.onnx")
    assert verify(load(path), load(tmp_path / "c.onnx"), [sample()]).passed


def test_weights_are_shared_only_where_their_bytes_are_the_same(path: Path, tmp_path: Path) -> None:
    compress(path, tmp_path / "b.onnx", verification=None)
    proto = onnx.load(tmp_path / "b.onnx")
    changed = next(tensor for tensor in proto.graph.initializer if tensor.name == "wk")
    changed.raw_data = changed.raw_data[:-1] + bytes([changed.raw_data[-1] ^ 1])
    onnx.save(proto, tmp_path / "c.onnx")
    original, rewritten = load(path), load(tmp_path / "c.onnx")
    shared = held(sharing_weights(rewritten, original))
    assert {name for name, tensor in shared.items() if tensor is held(original)[name]} == {"wq", "half"}
    assert shared["wk"] is held(rewritten)["wk"]
    assert held(rewritten)["wq"].place.file == tmp_path / "c.onnx"  # not changed


def test_a_weight_that_differs_is_seen(path: Path, tmp_path: Path) -> None:
    compress(path, tmp_path / "b.onnx", verification=None)
    proto = onnx.load(tmp_path / "b.onnx")
    changed = next(tensor for tensor in proto.graph.initializer if tensor.name == "half")
    changed.raw_data = (np.frombuffer(changed.raw_data, np.float32) * 1.5).tobytes()
    onnx.save(proto, tmp_path / "c.onnx")
    found = verify(load(path), load(tmp_path / "c.onnx"), [sample()])
    assert found.standard.outputs["y"].deviation.relative_error > 0.1


def test_a_file_that_changed_since_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    model = load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match=r"a\.onnx has changed since the model was loaded"):
        save(model, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()
    path.unlink()
    with pytest.raises(InvalidModel, match="cannot be read any more"):
        save(model, tmp_path / "b.onnx")


def test_damaged_files_are_refused_as_they_are_when_they_are_read_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut anywhere, and with any byte of what describes a weight changed: the same error, or the same model."""
    proto = onnx.load(path)
    proto.graph.initializer[1].ClearField("metadata_props")  # onnx_ir writes it twice for what it has as protobuf
    content = proto.SerializeToString()
    random = np.random.default_rng(0)
    start = content.index(b"wq") - 40
    damaged = [content[:cut] for cut in random.integers(1, len(content), 10)]
    damaged += [
        content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        for at in range(start, start + 60)
        for bit in random.integers(0, 8, 1)
    ]
    for number, data in enumerate(damaged):
        bad = path.with_name("bad.onnx")
        bad.write_bytes(data)
        os.utime(bad, ns=(number, number))
        outcomes = []
        for large in (1, 2**40):
            monkeypatch.setattr(files, "LARGE_FILE", large)
            try:
                outcomes.append(str(ir.to_proto(load(bad))))
            except InvalidModel as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], number


def test_a_model_whose_graph_comes_in_two_parts_is_read_whole(path: Path) -> None:
    """protobuf merges them."""
    proto = onnx.load(path)
    more = onnx.ModelProto()
    more.graph.doc_string = "more"
    path.write_bytes(proto.SerializeToString() + more.SerializeToString())
    assert without_weights(path) is None
    assert load(path).graph.doc_string == "more"
