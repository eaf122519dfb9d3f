"""Loading and saving: what stays the same, what is refused, and what is left behind when it fails."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import small_models

from onnx_attnq.errors import CannotWrite, InvalidModel
from onnx_attnq.model import load, opset, save, sha256, structure_hash, tensors

X = np.linspace(-1, 1, 2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8)


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


def listing(folder: Path) -> dict[str, str]:
    return {entry.name: sha256(entry) for entry in folder.iterdir() if entry.is_file()}


@pytest.fixture
def inline(tmp_path: Path) -> Path:
    return small_models.write(small_models.attention(), tmp_path / "model.onnx")


@pytest.fixture
def external(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return small_models.write_external(small_models.attention(), folder / "model.onnx")


def test_a_saved_model_computes_the_same_and_the_input_is_untouched(inline: Path) -> None:
    before = sha256(inline)
    output = inline.with_name("out.onnx")
    save(load(inline), output)
    np.testing.assert_array_equal(run(output), run(inline))
    assert sha256(inline) == before
    assert sorted(entry.name for entry in inline.parent.iterdir()) == ["model.onnx", "out.onnx"]
    onnx.checker.check_model(str(output), full_check=True)


def test_external_data_is_copied_to_one_file_of_the_output(external: Path, tmp_path: Path) -> None:
    before = listing(external.parent)
    folder = tmp_path / "out"
    folder.mkdir()
    save(load(external), folder / "out.onnx")
    assert listing(external.parent) == before
    expected = run(external)
    for entry in external.parent.iterdir():
        entry.unlink()
    assert sorted(entry.name for entry in folder.iterdir()) == ["out.onnx", "out.onnx.data"]
    np.testing.assert_array_equal(run(folder / "out.onnx"), expected)
    onnx.checker.check_model(str(folder / "out.onnx"), full_check=True)


def test_external_data_is_kept_where_it_is_when_asked(external: Path) -> None:
    before = listing(external.parent)
    output = external.with_name("out.onnx")
    save(load(external), output, external_data="keep")
    assert listing(external.parent) == {**before, "out.onnx": sha256(output)}
    np.testing.assert_array_equal(run(output), run(external))


def test_data_cannot_be_kept_from_another_folder(external: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match="can only be kept where it is"):
        save(load(external), tmp_path / "out.onnx", external_data="keep")
    assert not (tmp_path / "out.onnx").exists()


def test_tensors_that_share_bytes_still_share_them(tmp_path: Path) -> None:
    proto = small_models.attention()
    path = small_models.write_external(proto, tmp_path / "model.onnx")
    proto = onnx.load(path, load_external_data=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "weight")
    twin = proto.graph.initializer.add()
    twin.CopyFrom(weight)
    twin.name = "twin"
    small_models.write(proto, path)
    save(load(path), tmp_path / "out.onnx")
    copies = {tensor.name: tensor.offset for tensor in tensors(load(tmp_path / "out.onnx"))}
    assert copies["twin"] == copies["weight"] != copies["bias"]


@pytest.mark.parametrize("fixture", ["inline", "external"])
def test_two_saves_give_the_same_bytes(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(fixture)
    outputs = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        save(load(path), folder / "out.onnx")
        outputs.append(listing(folder))
    assert outputs[0] == outputs[1]


def test_the_order_in_which_metadata_was_added_does_not_show(inline: Path, tmp_path: Path) -> None:
    hashes = set()
    for keys in (("b", "a"), ("a", "b")):
        model = load(inline)
        for key in keys:
            model.metadata_props[key] = key
            model.graph.node(0).metadata_props[key] = key
        save(model, tmp_path / "out.onnx")
        hashes.add(sha256(tmp_path / "out.onnx"))
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "./model.onnx"])
def test_a_file_of_the_input_is_never_overwritten(name: str, external: Path) -> None:
    before = listing(external.parent)
    with pytest.raises(CannotWrite, match="file of the input"):
        save(load(external), external.parent / name)
    assert listing(external.parent) == before


def test_a_data_file_of_the_input_is_never_overwritten(tmp_path: Path) -> None:
    path = small_models.write_external(small_models.attention(), tmp_path / "model.onnx", "out.onnx.data")
    before = listing(tmp_path)
    with pytest.raises(CannotWrite, match=r"out\.onnx\.data is a file of the input"):
        save(load(path), tmp_path / "out.onnx")
    assert listing(tmp_path) == before


def test_a_clone_knows_the_file_of_its_input(inline: Path) -> None:
    with pytest.raises(CannotWrite, match="file of the input"):
        save(load(inline).clone(), inline)


def test_an_output_needs_a_name(inline: Path) -> None:
    with pytest.raises(CannotWrite, match="not the name of a file"):
        save(load(inline), "")


def test_the_input_is_recognized_through_a_link(inline: Path) -> None:
    link = inline.with_name("link.onnx")
    link.symlink_to(inline)
    with pytest.raises(CannotWrite, match="file of the input"):
        save(load(inline), link)


def test_an_output_replaces_a_link_and_leaves_its_target(inline: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = tmp_path / "out.onnx"
    link.symlink_to(secret)
    save(load(inline), link)
    assert secret.read_text() == "secret"
    assert not link.is_symlink()


@pytest.mark.parametrize("where", ["missing/out.onnx", "folder", "model.onnx/out.onnx", "n" * 300, "nul\0"])
def test_a_place_that_cannot_be_written_gives_one_line(where: str, inline: Path) -> None:
    (inline.parent / "folder").mkdir()
    before = listing(inline.parent)
    with pytest.raises(CannotWrite, match=r"\Acannot write [^\n]+\Z"):
        save(load(inline), inline.parent / where)
    assert listing(inline.parent) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_gives_one_line(inline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(CannotWrite, match="Permission denied"):
        save(load(inline), folder / "out.onnx")


def test_an_output_is_as_readable_as_the_umask_says(inline: Path, tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        save(load(inline), tmp_path / "out.onnx")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out.onnx").stat().st_mode) == 0o640


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_nothing_is_left_behind_when_saving_is_interrupted(
    failure: type[BaseException], external: Path, tmp_path: Path
) -> None:
    class Interrupting(ir.Tensor[np.ndarray]):
        def tobytes(self) -> bytes:
            raise failure

    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.onnx").write_text("the previous output")
    model = load(external)
    bias = model.graph.initializers["bias"]
    bias.const_value = Interrupting(np.zeros(8, dtype=np.float32), name="bias")
    with pytest.raises((failure, InvalidModel)):
        save(model, folder / "out.onnx")
    assert listing(folder) == {"out.onnx": sha256(folder / "out.onnx")}
    assert (folder / "out.onnx").read_text() == "the previous output"


def test_data_that_vanished_after_loading_gives_one_line(external: Path, tmp_path: Path) -> None:
    model = load(external)
    (external.parent / "weights.bin").unlink()
    with pytest.raises(InvalidModel, match="has vanished"):
        save(model, tmp_path / "out.onnx")
    assert not list(tmp_path.glob("*out*"))


def test_a_model_that_outgrows_its_file_gets_a_data_file(
    inline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_attnq.model.files.INLINE_LIMIT", 100)
    monkeypatch.setattr("onnx_attnq.model.files.SPILL_SIZE", 100)
    save(load(inline), tmp_path / "out.onnx")
    moved = {tensor.name: isinstance(tensor, ir.ExternalTensor) for tensor in tensors(load(tmp_path / "out.onnx"))}
    assert moved == {"weight": True, "bias": False}
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), run(inline))


def test_the_cache_of_the_hugging_face_hub_can_be_read(external: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("model.onnx", "aaa"), ("weights.bin", "bbb")):
        (external.parent / name).rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    save(load(snapshot / "model.onnx"), tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), run(snapshot / "model.onnx"))


def test_data_partly_beside_a_link_and_partly_behind_links_is_refused(tmp_path: Path) -> None:
    for name in ("snap", "blobs"):
        (tmp_path / name).mkdir()
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { z = Add(x, a) y = Add(z, b) }'
    )
    for name in ("a", "b"):
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{name}.bin")
        proto.graph.initializer.append(tensor)
    small_models.write(proto, tmp_path / "blobs" / "m")
    (tmp_path / "snap" / "m.onnx").symlink_to("../blobs/m")
    (tmp_path / "snap" / "a.bin").write_bytes(bytes(8))
    (tmp_path / "blobs" / "bb").write_bytes(bytes(8))
    (tmp_path / "snap" / "b.bin").symlink_to("../blobs/bb")
    with pytest.raises(InvalidModel, match="partly behind symbolic links and partly not"):
        load(tmp_path / "snap" / "m.onnx")


def test_nodes_out_of_order_are_sorted(inline: Path) -> None:
    proto = small_models.attention()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    save(load(small_models.write(proto, inline.with_name("reversed.onnx"))), inline.with_name("out.onnx"))
    onnx.checker.check_model(inline.with_name("out.onnx"))
    np.testing.assert_array_equal(run(inline.with_name("out.onnx")), run(inline))


def test_opset(inline: Path) -> None:
    assert opset(load(inline)) == 17


class TestFingerprint:
    def test_it_survives_other_writers_and_other_weights(self, inline: Path, external: Path, tmp_path: Path) -> None:
        expected = structure_hash(load(inline))
        assert structure_hash(load(external)) == expected
        ir.save(ir.load(inline), tmp_path / "ir.onnx")
        onnx.save(onnx.load(inline), tmp_path / "onnx.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(inline)), tmp_path / "inferred.onnx")
        proto = small_models.parse(small_models.ATTENTION, bias=np.ones(8, dtype=np.float32))
        small_models.write(proto, tmp_path / "tuned.onnx")
        for name in ("ir", "onnx", "inferred", "tuned"):
            assert structure_hash(load(tmp_path / f"{name}.onnx")) == expected, name

    def test_it_is_the_same_in_every_process(self, inline: Path) -> None:
        # Pinned, because plans on disk refer to it: when this changes, every plan becomes invalid.
        assert structure_hash(load(inline)) == "90e1f3e4236f2ea48ad31a6facbaaa4c873041d642ecd65bb3154b31f0568d59"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("axis = -1", "axis = 1"),
            ("float[8] bias", "float[1] bias"),
            ("Add(context, bias)", "Sub(context, bias)"),
            ("Add(context, bias)", "Add(bias, context)"),
            ('"" : 17', '"" : 18'),
            ("float[batch, length, 8] x", "float[batch, n, 8] x"),
            ("context", "attended"),
        ],
    )
    def test_structure_changes_it(self, old: str, new: str, inline: Path, tmp_path: Path) -> None:
        text = small_models.ATTENTION.replace(old, new)
        assert text != small_models.ATTENTION
        other = small_models.write(small_models.parse(text), tmp_path / "other.onnx")
        assert structure_hash(load(other)) != structure_hash(load(inline))

    def test_metadata_and_doc_strings_do_not(self, inline: Path) -> None:
        model = load(inline)
        expected = structure_hash(model)
        model.metadata_props["note"] = "x"
        model.graph.doc_string = "x"
        model.graph.node(0).doc_string = "x"
        assert structure_hash(model) == expected
