"""Models that differ in nothing that matters have one canonical form, and others have another."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import variants
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attnq.cli.canonical import canonical
from onnx_attnq.cli.fingerprint import fingerprint
from onnx_attnq.diff import canonicalize
from onnx_attnq.diff.canonical import HEADER
from onnx_attnq.diff.onnx_text import tensor_text
from onnx_attnq.errors import InvalidModel

SEEDS = st.integers(0, 2**32 - 1).map(random.Random)
GOLDEN = Path(__file__).parent / "golden"


def model(body: str, signature: str = "(float[N] x) => (float[N] y)", opsets: str = '"" : 21') -> ir.Model:
    return ir.from_onnx_text(f"<ir_version: 10, opset_import: [{opsets}]> net {signature} {{ {body} }}")


def text(body: str, **arguments: str) -> str:
    return canonicalize(model(body, **arguments)).text


@pytest.mark.parametrize("name", sorted(variants.FILES))
@settings(max_examples=5, deadline=None)
@given(rng=SEEDS)
def test_names_order_and_storage_do_not_matter(name: str, rng: random.Random) -> None:
    original = variants.load(name)
    other = variants.copy(original)
    variants.store_as_constant_nodes(other, rng)
    variants.store_as_initializers(other, rng)
    variants.rename(other, rng)
    variants.reorder(other, rng)
    assert canonicalize(variants.store_typed(other)).text == canonicalize(original).text


@settings(max_examples=100, deadline=None)
@given(rng=SEEDS)
def test_names_and_order_do_not_matter_where_many_nodes_are_alike_and_unread(rng: random.Random) -> None:
    original = variants.random_model(rng)
    other = variants.copy(original)
    variants.rename(other, rng)
    variants.reorder(other, rng)
    assert canonicalize(other).text == canonicalize(original).text


@pytest.mark.parametrize("name", sorted(variants.FILES))
def test_external_data_does_not_matter(name: str, tmp_path: Path) -> None:
    original = variants.load(name)
    ir.save(variants.copy(original), tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    stored = ir.load(tmp_path / "model.onnx")
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in stored.graph.initializers.values())
    assert canonicalize(stored).text == canonicalize(original).text


def test_metadata_and_ir_version_matter_on_request_only() -> None:
    original = model("y = Relu (x)")
    other = model("y = Relu (x)")
    other.ir_version = 11
    other.metadata_props["tuned"] = "yes"
    other.graph.node(0).metadata_props["from"] = "layer 0"
    assert canonicalize(other).text == canonicalize(original).text
    added = {line.text.strip() for line in canonicalize(other, metadata=True).lines}
    added -= {line.text.strip() for line in canonicalize(original, metadata=True).lines}
    assert added == {"ir_version 11", 'metadata "tuned" : "yes"', 'metadata "from" : "layer 0"'}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("y = Softmax <axis = 0> (x)", "y = Softmax <axis = -1> (x)"),
        ("y = Softmax <axis = 0> (x)", "y = Softmax (x)"),
        ("y = Elu <alpha = 1.0> (x)", "y = Elu <alpha = 1.0000001> (x)"),
        ("t = Neg (x)  y = Sub (t, x)", "t = Neg (x)  y = Sub (x, t)"),
        ("t = Neg (x)  u = Neg (x)  y = Add (t, u)", "t = Neg (x)  y = Add (t, t)"),
        ("y = Neg (x)  t = Neg (y)", "y = Neg (x)"),
        ("y = Neg (x)  t = Neg (y)", "y = Neg (x)  t = Neg (x)"),
        ("y, t = Split <num_outputs = 2> (x)  u = Neg (t)", "t, y = Split <num_outputs = 2> (x)  u = Neg (t)"),
        ("t = Constant <value_float = 0.0> ()  y = Add (x, t)", "t = Constant <value_float = -0.0> ()  y = Add (x, t)"),
        (
            "t = Constant <value_float = 1.0> ()  y = Add (x, t)",
            "t = Constant <value_floats = [1.0]> ()  y = Add (x, t)",
        ),
        ("t = Constant <value_int = 1> ()  y = Neg (x)", "y = Neg (x)"),
        ("y = Clip (x, x)", 'y = Clip (x, "", x)'),
        ("y = Neg (x)", "y = other.Neg (x)"),
    ],
)
def test_what_matters_changes_the_form(a: str, b: str) -> None:
    assert text(a) != text(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ('y = Clip (x, x, "")', "y = Clip (x, x)"),
        ("y = Dropout (x)", 'y, "" = Dropout (x)'),
        ("t = Neg (x)  u = Abs (x)  y = Neg (x)", "y = Neg (x)  v = Abs (x)  w = Neg (x)"),
        (
            "t = Constant <value_ints = [1, 2]> ()  y = Expand (x, t)",
            "t = Constant <value: tensor = int64[2] {1, 2}> ()  y = Expand (x, t)",
        ),
        (
            "t = Constant <value_float = 1.0> ()  u = Constant <value_float = 1.0> ()  v = Add (t, u)  y = Mul (x, v)",
            "t = Constant <value_float = 1.0> ()  v = Add (t, t)  y = Mul (x, v)",
        ),
        ("y = Neg (x)", "y = ai.onnx.Neg (x)"),
    ],
)
def test_what_does_not_matter_leaves_the_form(a: str, b: str) -> None:
    assert text(a) == text(b)


@given(x=st.floats(width=32, allow_nan=False), narrow=st.floats(width=16, allow_nan=False))
def test_numbers_read_back_as_the_same_bits(x: float, narrow: float) -> None:
    for dtype, value in ((np.float32, x), (np.float16, narrow), (np.float64, x)):
        stored = np.array([value], dtype)
        written = tensor_text(ir.tensor(stored)).partition("{")[2].removesuffix("}")
        assert np.array([float(written)]).astype(dtype).tobytes() == stored.tobytes()


def test_numbers_are_written_as_python_does() -> None:
    """numpy's notation depends on its version: 2.4 writes the first one as 6.55e+04, 1.26 as 65500.0."""
    assert tensor_text(ir.tensor(np.array([65504, 0.1], np.float16))) == "float16[2] {65500.0, 0.1}"
    assert tensor_text(ir.tensor(np.array([1e16, -0.0], np.float32))) == "float[2] {1e+16, -0.0}"


def test_the_default_domain_has_two_names() -> None:
    assert text("y = Neg (x)", opsets='"ai.onnx" : 21') == text("y = Neg (x)")


def test_the_bits_of_a_nan_matter() -> None:
    forms = set()
    for bits in (0x7FC00000, 0x7FC00001):
        nan = model("y = Add (x, t)", signature="(float[N] x) => (float[N] y) <float t = {0.0}>")
        nan.graph.initializers["t"].const_value = ir.tensor(np.array(bits, np.uint32).view(np.float32))
        forms.add(canonicalize(nan).text)
    assert len(forms) == 2


def test_an_initializer_that_the_caller_may_override_is_an_input() -> None:
    overridable = model("y = Add (x, t)", signature="(float[N] x, float t = {2.0}) => (float[N] y)")
    fixed = model("y = Add (x, t)", signature="(float[N] x) => (float[N] y) <float t = {2.0}>")
    assert "  float t = float {2.0}\n" in canonicalize(overridable).text
    assert "y = Add (x, float {2.0})\n" in canonicalize(fixed).text


def test_a_constant_that_is_an_output_may_be_stored_in_both_ways() -> None:
    node = model("y = Constant <value_floats = [1.0, 2.0]> ()")
    initializer = model("t = Neg (x)", signature="(float[N] x) => (float[N] y) <float[2] y = {1.0, 2.0}>")
    initializer.graph.remove(initializer.graph.node(0))
    assert "  y = float[2] {1.0, 2.0}\n" in canonicalize(node).text
    initializer.graph.outputs[0].shape = ir.Shape(["N"])
    assert canonicalize(initializer).text == canonicalize(node).text


def test_a_graph_deeper_than_the_stack() -> None:
    x = ir.val("x", ir.DataType.FLOAT, ["N"])
    nodes = [ir.node("Neg", [x])]
    for _ in range(20_000):
        nodes.append(ir.node("Neg", [nodes[-1].outputs[0]]))
    y = nodes[-1].outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=nodes, opset_imports={"": 21})
    lines = canonicalize(ir.Model(graph, ir_version=10)).lines
    assert sum(" = Neg (" in line.text for line in lines) == 20_001


def test_memory_does_not_grow_with_external_data(tmp_path: Path) -> None:
    size = 64 << 20
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(size)
    weights = ir.ExternalTensor(
        "w.bin", 0, size, ir.DataType.UINT8, shape=ir.Shape([size]), name="w", base_dir=str(tmp_path)
    )
    large = model("y = Add (x, t)", signature="(uint8[N] x) => (uint8[N] y) <uint8 t = {0}>")
    large.graph.initializers["t"].const_value = weights
    tracemalloc.start()
    form = canonicalize(large).text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with open(tmp_path / "w.bin", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert f"uint8[{size}] sha256:{digest[:32]}" in form
    assert peak < size / 2


def test_missing_or_short_external_data_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(b"1234")
    for location in ("short.bin", "missing.bin"):
        broken = model("y = Add (x, t)", signature="(float[N] x) => (float[N] y) <float t = {0.0}>")
        broken.graph.initializers["t"].const_value = ir.ExternalTensor(
            location, 0, 400, ir.DataType.FLOAT, shape=ir.Shape([100]), name="t", base_dir=str(tmp_path)
        )
        with pytest.raises(InvalidModel, match="tensor 't'"):
            canonicalize(broken)


def test_a_cycle_is_refused() -> None:
    looped = model("t = Neg (x)  u = Neg (t)  y = Add (u, x)")
    first, second = looped.graph.node(0), looped.graph.node(1)
    first.name = "first"
    first.replace_input_with(0, second.outputs[0])
    with pytest.raises(InvalidModel, match="reads its own result"):
        canonicalize(looped)


def test_a_value_that_nothing_produces_is_refused() -> None:
    broken = model("y = Neg (x)")
    broken.graph.node(0).replace_input_with(0, ir.Value(name="lost"))
    with pytest.raises(InvalidModel, match="'lost' is read, but nothing produces it"):
        canonicalize(broken)


@pytest.mark.parametrize("name", ["bert__dynamo18-functions", "odd_if__ts17-script", "fused_attention23__gqa_past"])
def test_the_form_of_these_models_is_pinned(name: str) -> None:
    """A change here changes every golden file and fingerprint of every user: it needs a new number in HEADER."""
    golden = (GOLDEN / f"{name}.txt").read_text()
    assert golden.startswith(HEADER)
    assert CliRunner().invoke(canonical, [str(variants.FILES[name])], catch_exceptions=False).output == golden


def test_the_fingerprint_is_the_hash_of_the_text(tmp_path: Path) -> None:
    file, golden = str(variants.FILES["odd_if__ts17-script"]), tmp_path / "golden.txt"
    CliRunner().invoke(canonical, [file, "-o", str(golden)], catch_exceptions=False)
    output = CliRunner().invoke(fingerprint, [file], catch_exceptions=False).output
    assert output == f"{hashlib.sha256(golden.read_bytes()).hexdigest()}  {file}\n"
