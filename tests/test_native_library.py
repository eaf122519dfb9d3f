"""The library inside of onnxruntime: precedence, errors, threads, symbols."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from executions import one_op_model
from native_models import attention_model, available_kernels, rows_model, run_attention, scheme_attributes, session

from onnx_attnq.run import native_library
from onnx_attnq.scheme import numerics, preset

pytestmark = pytest.mark.skipif(native_library() is None, reason="the native library was not built: make native")

LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_a_body_that_lies() -> onnx.ModelProto:
    """QuantizedSoftmax whose function returns its input."""
    model = ir.to_proto(one_op_model("softmax", preset("row-log")))
    body = model.functions[0]
    del body.node[:]
    body.node.append(onnx.helper.make_node("Identity", list(body.input), list(body.output)))
    return model


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_registered_kernel_wins_over_the_function_and_the_function_runs_without_it(level: object) -> None:
    model, x = with_a_body_that_lies(), draw(1, 2, 5, 30)
    for registered in (False, True):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        if registered:
            options.register_custom_ops_library(str(native_library()))
        got = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
        expected = numerics.quantize_scores(x, preset("row-log")) if registered else x
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_many_calls_on_one_session_at_once() -> None:
    model = attention_model(preset("row-log"), rank=3)
    shared = session(model, threads=2)
    inputs = [
        {
            "q": draw(i, 2, 10 + 7 * i, 16),
            "k": draw(i + 1, 2, 40 + i, 16),
            "v": draw(i + 2, 2, 40 + i, 16),
            "mask": np.zeros((), np.float32),
        }
        for i in range(8)
    ]
    alone = [shared.run(None, feeds)[0] for feeds in inputs]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: shared.run(None, inputs[i % 8])[0], range(64)))
    for i, got in enumerate(together):
        np.testing.assert_array_equal(got, alone[i % 8])


@pytest.mark.parametrize("kernels", available_kernels())
@pytest.mark.parametrize("qk", [0, 1])
def test_the_number_of_threads_changes_no_bit(kernels: str, qk: int) -> None:
    q, k, v = draw(1, 2, 3, 150, 24), draw(2, 2, 3, 170, 24), draw(3, 2, 3, 170, 24)
    model = attention_model(preset("ji2021"), qk=qk)
    results = [run_attention(model, q, k, v, kernels=kernels, threads=threads) for threads in (1, 2, 5)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_several_sessions_of_a_process_and_their_end() -> None:
    x = draw(1, 4, 20)
    expected = session(rows_model("softmax", preset("row-log"))).run(None, {"x": x})[0]
    for _ in range(20):
        sessions = [session(rows_model("softmax", preset(name))) for name in ("row-log", "ji2021")]
        np.testing.assert_array_equal(sessions[0].run(None, {"x": x})[0], expected)


def test_what_does_not_fit_is_said_in_one_line() -> None:
    model = attention_model(preset("row-log"), rank=3)
    good = draw(1, 2, 5, 8), draw(2, 2, 7, 8), draw(3, 2, 7, 8)
    for bad, words in [
        ((draw(1, 2, 5, 9), good[1], good[2]), r"query and key: shapes \(2, 5, 9\) and \(2, 8, 7\) do not fit"),
        ((good[0], good[1], draw(1, 2, 6, 8)), r"key and value: shapes \(2, 8, 7\) and \(2, 6, 8\) do not fit"),
        ((draw(1, 3, 5, 8), good[1], good[2]), r"query and key: shapes \(3\) and \(2\) do not fit"),
        ((good[0][0], good[1], good[2]), r"query: a permutation of 3 axes does not fit shape \(5, 8\)"),
    ]:
        with pytest.raises(Exception, match=words):
            run_attention(model, *bad)
    with pytest.raises(Exception, match=r"scores and mask: shapes \(2, 5, 7\) and \(6\) do not fit"):
        run_attention(model, *good, np.zeros(6))
    with pytest.raises(Exception, match="attribute q_perm is not a permutation"):
        run_attention(attention_model(preset("row-log"), rank=3, q_perm=[0, 1, 1]), *good)
    with pytest.raises(Exception, match="tables for 3 heads, the scores have 2"):
        run_attention(attention_model(*[preset("row-log")] * 3, rank=3), *good)


def test_attributes_are_required_and_checked() -> None:
    node = onnx.helper.make_node("QuantizedSoftmax", ["x"], ["y"], domain="onnx_attnq")
    model = rows_model("softmax", preset("row-log"))
    model.graph.node[0].CopyFrom(node)
    with pytest.raises(Exception, match="threshold"):
        session(model)
    for name, number in [("step", 0.0), ("levels", 0.0), ("levels", 7.5), ("levels", 256.0), ("levels", np.nan)]:
        attributes = scheme_attributes([preset("row-log")])
        attributes[name].float_data[0] = number
        model.graph.node[0].CopyFrom(
            onnx.helper.make_node("QuantizedSoftmax", ["x"], ["y"], domain="onnx_attnq", **attributes)
        )
        with pytest.raises(Exception, match="step must be positive and levels a whole number from 1 to 255"):
            session(model)


@pytest.mark.parametrize("element_type", [np.float64, np.float16, np.uint8, np.int32])
@pytest.mark.parametrize("name", ["threshold", "scale"])
def test_attributes_of_another_element_type_are_refused(name: str, element_type: type) -> None:
    """Their bytes would be taken for float32 numbers."""
    model = attention_model(preset("row-log"), rank=3)
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == name]
    attribute.t.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, element_type), name))
    with pytest.raises(Exception, match=rf"attribute {name} must be a float32 tensor, not one of ONNX element type"):
        session(model)


@pytest.mark.parametrize("numbers", [[], [1.0, 2.0]])
def test_attributes_of_another_size_are_refused(numbers: list[float]) -> None:
    model = attention_model(preset("row-log"), rank=3)
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == "scale"]
    attribute.t.CopyFrom(onnx.numpy_helper.from_array(np.array(numbers, np.float32), "scale"))
    with pytest.raises(Exception, match=r"attribute scale (is empty|must be one number)"):
        session(model)


class Base(ctypes.Structure):
    """OrtApiBase."""

    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def test_a_runtime_that_is_too_old_is_told_so() -> None:
    messages = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda _, message: messages.append(message.decode()) or 1
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
    version = ctypes.create_string_buffer(b"1.16.3")
    base = Base(
        type(Base().get_api)(lambda number: ctypes.addressof(table) if number <= 16 else None),
        type(Base().version)(lambda: ctypes.addressof(version)),
    )
    register = ctypes.CDLL(str(native_library())).RegisterCustomOps
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
    assert register(None, ctypes.addressof(base)) == 1
    assert messages == ["onnx_attnq needs onnxruntime 1.20 or newer; this is 1.16.3"]


# How nm lists the symbols of a library, as seen from outside. Windows comes with no such program.
NM = {"linux": ["nm", "--dynamic"], "darwin": ["nm", "-g"]}


@pytest.mark.skipif(sys.platform not in NM or shutil.which("nm") is None, reason="needs nm")
def test_one_symbol_is_exported_and_nothing_of_onnxruntime_is_needed() -> None:
    command = [*NM[sys.platform], str(native_library())]
    lines = [line.split() for line in subprocess.check_output(command, text=True).splitlines()]
    exported = [name.removeprefix("_") for *_, kind, name in lines if kind not in "Uuw"]
    assert exported == ["RegisterCustomOps"]
    assert not [name for *_, name in lines if "Ort" in name]


@pytest.mark.parametrize(
    ("system", "name"),
    [("linux", "libonnx_attnq.so"), ("darwin", "libonnx_attnq.dylib"), ("win32", "libonnx_attnq.dll")],
)
def test_the_name_on_each_system(system: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build writes these names: lib, also on Windows, and what the system's libraries end with."""
    import onnx_attnq

    (tmp_path / name).touch()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(onnx_attnq, "__path__", [str(tmp_path)])
    assert native_library() == tmp_path.resolve() / name


def test_the_library_lies_beside_the_package() -> None:
    import onnx_attnq

    library = native_library()
    assert library is not None
    # An editable installation has two directories: that of the sources, and that of what was built.
    assert library.parent in [Path(directory).resolve() for directory in onnx_attnq.__path__]


def test_of_two_libraries_the_newer_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make native` in a checkout that pip has built too, or the other way round."""
    import onnx_attnq

    folders = [tmp_path / "sources", tmp_path / "installed"]
    for folder in folders:
        folder.mkdir()
        (folder / "libonnx_attnq.so").touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(onnx_attnq, "__path__", [str(folder) for folder in folders])
    for newest in folders:
        for folder in folders:
            os.utime(folder / "libonnx_attnq.so", (0, 2 if folder == newest else 1))
        assert native_library() == newest.resolve() / "libonnx_attnq.so"
