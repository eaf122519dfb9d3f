"""Samples from files: what is accepted, and the message for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import small_models

from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.inputs import attention_mask_of, check_sample, generate_samples, load_samples, model_inputs
from onnx_attnq.inputs.signature import evaluate_dim
from onnx_attnq.model import load
from onnx_attnq.run import Session

CASES = Path(__file__).parent / "cases"

TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
two (int64[batch, length] ids, float[batch, 8] features) => (float[batch, n] y) {
    numbers = Cast<to = 1>(ids)
    y = Concat<axis = 1>(numbers, features)
}
"""
WITH_PAST = """
<ir_version: 8, opset_import: ["" : 17]>
past (int64[batch, n] input_ids, int64[batch, past_n] past, int64[batch, total] attention_mask)
    => (int64[batch, n] y) { y = Identity(input_ids) }
"""
IDS = np.array([[1, 2, 3], [4, 5, 6]])
FEATURES = np.ones((2, 8), dtype=np.float32)


def model(text: str) -> ir.Model:
    return ir.from_proto(small_models.parse(text))


def with_past() -> ir.Model:
    """The text format has no expressions for dims."""
    proto = small_models.parse(WITH_PAST)
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past_n + n"
    return ir.from_proto(proto)


def write_npz(path: Path, **arrays: np.ndarray | np.generic) -> Path:
    np.savez(path, **arrays)
    return path


def write_pb(folder: Path, arrays: dict[str, np.ndarray], names: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, array) in enumerate(arrays.items()):
        tensor = onnx.numpy_helper.from_array(array, name if names else "")
        (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())


def test_an_npz_is_one_sample_in_the_models_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES, ids=IDS)
    (sample,) = load_samples(tmp_path / "a.npz", model(TWO_INPUTS))
    assert list(sample) == ["ids", "features"]
    np.testing.assert_array_equal(sample["ids"], IDS)


def test_an_npy_is_a_sample_of_a_model_with_one_input(tmp_path: Path) -> None:
    array = np.ones((1, 2, 8), dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    (sample,) = load_samples(tmp_path / "a.npy", model(small_models.ATTENTION))
    np.testing.assert_array_equal(sample["x"], array)
    with pytest.raises(InvalidData, match=r"a\.npy holds one array, but the model has the inputs 'ids', 'features'"):
        load_samples(tmp_path / "a.npy", model(TWO_INPUTS))


def test_a_folder_holds_samples_of_any_length_in_natural_order(tmp_path: Path) -> None:
    for length in (10, 9, 2):
        np.savez(tmp_path / f"s{length}.npz", ids=np.ones((2, length), np.int64), features=FEATURES)
    (tmp_path / "readme.txt").write_text("not a sample")
    samples = load_samples(tmp_path, model(TWO_INPUTS))
    assert [sample["ids"].shape[1] for sample in samples] == [2, 9, 10]


@pytest.mark.parametrize("names", [True, False])
def test_test_data_sets_are_read_in_their_order(names: bool, tmp_path: Path) -> None:
    for index in (10, 2):
        write_pb(tmp_path / f"test_data_set_{index}", {"ids": IDS + index, "features": FEATURES}, names)
    samples = load_samples(tmp_path, model(TWO_INPUTS))
    assert [sample["ids"][0, 0] for sample in samples] == [3, 11]
    (single,) = load_samples(tmp_path / "test_data_set_2", model(TWO_INPUTS))
    np.testing.assert_array_equal(single["ids"], IDS + 2)


def test_tensors_with_names_may_come_in_another_order(tmp_path: Path) -> None:
    write_pb(tmp_path, {"features": FEATURES, "ids": IDS})
    (sample,) = load_samples(tmp_path, model(TWO_INPUTS))
    np.testing.assert_array_equal(sample["ids"], IDS)


def test_eleven_tensors_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    inputs = ", ".join(f"int64[1] i{index}" for index in range(11))
    text = f'<ir_version: 8, opset_import: ["" : 17]> many ({inputs}) => (int64[1] y) {{ y = Identity(i0) }}'
    write_pb(tmp_path, {f"i{index}": np.array([index]) for index in range(11)}, names=False)
    (sample,) = load_samples(tmp_path, model(text))
    assert [int(array[0]) for array in sample.values()] == list(range(11))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_whole_numbers_are_converted_when_every_value_fits(dtype: type, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=IDS.astype(dtype), features=FEATURES)
    (sample,) = load_samples(tmp_path / "a.npz", model(TWO_INPUTS))
    assert sample["ids"].dtype == np.int64


def test_bfloat16_survives_numpys_file_format(tmp_path: Path) -> None:
    text = TWO_INPUTS.replace("float[batch, 8] features", "bfloat16[batch, 8] features").replace("float[", "bfloat16[")
    features = FEATURES.astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", ids=IDS, features=features)
    (sample,) = load_samples(tmp_path / "a.npz", model(text))
    assert sample["features"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(sample["features"], features)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": IDS}, "input 'features' is missing; the file has 'ids'"),
        (
            {"ids": IDS, "features": FEATURES, "labels": IDS},
            "'labels' is not an input of the model; its inputs are 'ids', 'features'",
        ),
        (
            {"ids": IDS.astype(np.float32), "features": FEATURES},
            "input 'ids' has the wrong type: expected int64[batch, length], got float32[2, 3]",
        ),
        (
            {"ids": IDS, "features": FEATURES.astype(np.float64)},
            "input 'features' has the wrong type: expected float32[batch, 8], got float64[2, 8]",
        ),
        (
            {"ids": np.array([[2**63]], dtype=np.uint64), "features": FEATURES[:1]},
            "input 'ids' has the wrong type: expected int64[batch, length], got uint64[1, 1]",
        ),
        (
            {"ids": IDS[0], "features": FEATURES},
            "input 'ids' has the wrong shape: expected int64[batch, length], got int64[3]",
        ),
        (
            {"ids": IDS, "features": FEATURES[:, :7]},
            "input 'features' has the wrong shape: expected float32[batch, 8], got float32[2, 7]",
        ),
        (
            {"ids": IDS, "features": FEATURES[:1]},
            "'batch' is 2 in input 'ids', but 1 in input 'features'; they must be equal",
        ),
    ],
)
def test_a_wrong_sample_is_answered_with_what_was_expected(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InvalidData) as caught:
        load_samples(tmp_path / "a.npz", model(TWO_INPUTS))
    assert str(caught.value) == f"{tmp_path / 'a.npz'}: {message}"


def test_sums_of_dims_are_checked() -> None:
    sample = {
        "input_ids": np.ones((1, 3), np.int64),
        "past": np.ones((1, 4), np.int64),
        "attention_mask": np.ones((1, 7), np.int64),
    }
    inputs = model_inputs(with_past())
    check_sample(sample, inputs, "sample")
    with pytest.raises(InvalidData, match=r"'past_n \+ n' must be 7 in input 'attention_mask', but is 6"):
        check_sample({**sample, "attention_mask": np.ones((1, 6), np.int64)}, inputs, "sample")


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def pickled(path: Path) -> None:
    np.savez(path, ids=np.array([object()]), features=FEATURES)


def truncated(path: Path) -> None:
    np.savez(path, ids=IDS, features=FEATURES)
    path.write_bytes(path.read_bytes()[:200])


def damaged_member(path: Path) -> None:
    np.savez_compressed(path, ids=IDS, features=FEATURES)
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(bytes(content))


def huge_header(path: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, pickled, truncated, damaged_member, huge_header, empty])
def test_a_damaged_file_gives_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    damage(path)
    with pytest.raises(InvalidData, match=r"\A[^\n]*a\.npz cannot be read: [^\n]+\Z"):
        load_samples(path, model(TWO_INPUTS))


@pytest.mark.parametrize("damage", [garbage, empty])
def test_of_a_file_that_is_not_numpys_nothing_is_said_of_pickles(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    damage(tmp_path / "a.npz")
    with pytest.raises(InvalidData, match=r"neither \.npz nor \.npy"):
        load_samples(tmp_path / "a.npz", model(TWO_INPUTS))


def damage_pb(**fields: Any) -> bytes:
    tensor = onnx.numpy_helper.from_array(IDS, "ids")
    for name, content in fields.items():
        if isinstance(content, list):
            getattr(tensor, name)[:] = content
        else:
            setattr(tensor, name, content)
    return tensor.SerializeToString()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xff", "cannot be read"),
        (damage_pb(dims=[2**60]), "needs 9223372036854775808 bytes, but the file has 48"),
        (damage_pb(data_type=99), "unknown data type 99"),
        (damage_pb(data_location=1), "must not refer to external data"),
    ],
)
def test_a_damaged_tensor_gives_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    write_pb(tmp_path, {"ids": IDS, "features": FEATURES})
    (tmp_path / "input_0.pb").write_bytes(content)
    with pytest.raises(InvalidData, match=rf"\A[^\n]*input_0\.pb[^\n]*{reason}[^\n]*\Z"):
        load_samples(tmp_path, model(TWO_INPUTS))


def test_a_wrong_place_gives_one_line(tmp_path: Path) -> None:
    two = model(TWO_INPUTS)
    with pytest.raises(InvalidData, match="does not exist"):
        load_samples(tmp_path / "missing", two)
    with pytest.raises(InvalidData, match=r"has no \.npz"):
        load_samples(tmp_path, two)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(InvalidData, match="neither"):
        load_samples(tmp_path / "a.csv", two)
    write_pb(tmp_path / "one", {"ids": IDS})
    with pytest.raises(InvalidData, match="has 1 files"):
        load_samples(tmp_path / "one", two)


def test_inputs_that_are_not_tensors_are_refused() -> None:
    text = TWO_INPUTS.replace("float[batch, 8] features)", "float[batch, 8] features, seq(float[n]) rest)")
    with pytest.raises(InvalidModel, match="input 'rest' is not a tensor"):
        model_inputs(model(text))


def test_an_input_with_an_initializer_may_be_fed_and_need_not_be(tmp_path: Path) -> None:
    original = load(CASES / "overridable_initializer.onnx")
    assert [item.name for item in model_inputs(original)] == ["x"]
    assert [item.name for item in model_inputs(original, with_defaults=True)] == ["x", "wq", "wk", "wv", "sc"]
    x = np.random.RandomState(0).rand(2, 3, 8).astype(np.float32)
    np.savez(tmp_path / "0.npz", x=x)
    np.savez(tmp_path / "1.npz", x=x, sc=np.float32(5))
    plain, overridden = load_samples(tmp_path, original)
    outputs = [Session(original).run(sample)["y"] for sample in (plain, overridden)]
    assert not np.allclose(*outputs)
    write_pb(tmp_path / "pb", {"x": x, "sc": np.float32(5).reshape(())})
    (from_pb,) = load_samples(tmp_path / "pb", original)
    np.testing.assert_array_equal(Session(original).run(from_pb)["y"], outputs[1])
    with pytest.raises(InvalidData, match="input 'x' is missing"):
        load_samples(write_npz(tmp_path / "no_x.npz", sc=np.float32(5)), original)


def test_before_ir_version_4_an_initializer_is_no_input() -> None:
    original = load(CASES / "overridable_initializer.onnx")
    original.ir_version = 3
    assert [item.name for item in model_inputs(original, with_defaults=True)] == ["x"]


def test_a_symbol_that_stands_for_two_things_is_what_the_graph_takes(tmp_path: Path) -> None:
    original = load(CASES / "symbol_reused.onnx")
    random = np.random.RandomState(0)
    q, k = (random.rand(2, 2, length, 4).astype(np.float32) for length in (5, 7))
    (sample,) = load_samples(write_npz(tmp_path / "a.npz", q=q, k=k, v=k), original)
    assert Session(original).run(sample)["y"].shape == (2, 2, 5, 4)
    with pytest.raises(InvalidData, match="'M' is 7 in input 'k', but 5 in input 'v'; they must be equal"):
        load_samples(write_npz(tmp_path / "b.npz", q=q[:, :, :2], k=k, v=k[:, :, :5]), original)


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        ("n", 3),
        ("past + n", 7),
        ("n + past - 1", 6),
        ("2*n", 6),
        ("(n + 1) // 2", 2),
        ("total length", 9),
        ("unknown", None),
        ("n + unknown", None),
        ("n // 0", None),
        ("__import__('os').getpid()", None),
        ("n if n else n", None),
        ("(" * 5000, None),
        ("-" * 100_000 + "n", None),
    ],
)
def test_dims_are_evaluated_without_running_anything(dim: str, expected: int | None) -> None:
    assert evaluate_dim(dim, {"n": 3, "past": 4, "total length": 9}) == expected


@pytest.mark.parametrize("name", ["attention_mask", "input_mask", "mask"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.bool_])
def test_the_mask_is_found_by_name(name: str, dtype: type) -> None:
    mask = attention_mask_of({"input_ids": IDS, name: np.array([[1, 1, 0]], dtype=dtype)})
    assert mask is not None
    assert mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    "mask", [np.array([[0.0, -10000.0]]), np.ones((1, 1, 2, 2)), np.array([[1, 2]])], ids=["additive", "4-D", "counts"]
)
def test_what_is_not_one_for_tokens_is_no_mask(mask: np.ndarray) -> None:
    assert attention_mask_of({"attention_mask": mask}) is None


def test_generated_samples_run(tmp_path: Path) -> None:
    path = small_models.write(small_models.parse(small_models.BERT), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    samples = generate_samples(model(small_models.BERT), count=4)
    assert len({sample["input_ids"].shape for sample in samples}) > 1
    for sample in samples:
        assert np.isfinite(session.run(None, dict(sample))[0]).all()
        mask = attention_mask_of(sample)
        assert mask is not None
        assert 0 < mask.sum() < mask.size
        assert sample["input_ids"].max() < 100
        assert sample["token_type_ids"].max() == 0
