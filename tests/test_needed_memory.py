"""A model that asks for more memory or time than there is ends with one line, before anything runs where that can be told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import parse

from onnx_attnq.cli import main
from onnx_attnq.errors import InvalidData, InvalidModel
from onnx_attnq.inputs import load_samples, made_up_samples
from onnx_attnq.inputs.shape_check import LargestValue, ShapeCheck
from onnx_attnq.run import RunSettings, Session, machine_memory

TERA = 2**40
ATTENTION = """
    xt = Transpose<perm = [0, 2, 1]>(x)
    scores = MatMul(x, xt)
    p = Softmax<axis = -1>(scores)
    c = MatMul(p, x)
    most = ReduceMax<keepdims = 0>(big)
    y = Add(c, most)
"""
HUGE = {
    "ConstantOfShape": "s = Constant<value = int64[2] {1048576, 1048576}>() big = ConstantOfShape(s)",
    "Expand": "s = Constant<value = int64[4] {1048576, 1048576, 1, 1}>() big = Expand(x, s)",
    "Range": """
        zero = Constant<value_int = 0>() one = Constant<value_int = 1>() end = Constant<value_int = 1099511627776>()
        r = Range(zero, end, one)
        big = Cast<to = 1>(r)""",
    "MatMul": """
        a = Constant<value = int64[2] {1048576, 1}>() b = Constant<value = int64[2] {1, 1048576}>()
        one = ReduceMax<keepdims = 0>(x) left = Expand(one, a) right = Expand(one, b)
        big = MatMul(left, right)""",
    "Tile": "s = Constant<value = int64[3] {1048576, 1048576, 1}>() big = Tile(x, s)",
    "If": """
        s = Constant<value = int64[2] {1048576, 1048576}>() yes = Constant<value = bool {1}>()
        big = If(yes) <then_branch = t () => (float[a, b] o) { z = ConstantOfShape(s) o = Exp(z) },
                       else_branch = e () => (float[a, b] q) { q = Identity(x) }>""",
    "Loop": """
        s = Constant<value = int64[2] {1048576, 1048576}>() n = Constant<value_int = 3>() yes = Constant<value = bool {1}>()
        big = Loop(n, yes, x) <body = b (int64 i, bool go, float[a, b, c] h) => (bool stay, float[d, e, f] o) {
            stay = Identity(go) z = ConstantOfShape(s) m = ReduceMax<keepdims = 0>(z) o = Add(h, m) }>""",
    "Loop that doubles": """
        n = Constant<value_int = 40>() yes = Constant<value = bool {1}>()
        big = Loop(n, yes, x) <body = b (int64 i, bool go, float[a, b, c] h) => (bool stay, float[d, e, f] o) {
            stay = Identity(go) o = Concat<axis = 0>(h, h) }>""",
    "Loop that stacks": """
        n = Constant<value_int = 1099511627776>()
        h0, big = Loop(n, , x) <body = b (int64 i, bool go, float[a, b, c] h) => (bool stay, float[a, b, c] o, float[a, b, c] w) {
            stay = Identity(go) o = Identity(h) w = Exp(h) }>""",
    "Scan": """
        s = Constant<value = int64[2] {1048576, 1048576}>()
        big = Scan<num_scan_inputs = 1, body = b (float[a, b] h) => (float[d, e] o) {
            z = ConstantOfShape(s) m = ReduceMax<keepdims = 0>(z) o = Add(h, m) }>(x)""",
    "function": "big = local.Grow(x)",
}
GROW = """<domain: "local", opset_import: ["" : 17]> Grow (h) => (z) {
    s = Constant<value = int64[2] {1048576, 1048576}>() z = ConstantOfShape(s) }"""


def model_of(kind: str) -> ir.Model:
    functions = GROW if kind == "function" else ""
    return parse(f"(float[N, L, 4] x) => (float[N, L, 4] y) {{ {HUGE[kind]} {ATTENTION} }}", functions=functions)


@pytest.mark.parametrize("kind", HUGE)
def test_a_value_larger_than_memory_is_refused_before_anything_runs(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    with pytest.raises(InvalidData, match=r"makes a value of shape .* which is too large to be computed \(limit "):
        made_up_samples(model, 2)
    np.save(tmp_path / "x.npy", np.ones((1, 3, 4), np.float32))
    with pytest.raises(InvalidData, match=r"makes a value of shape .* which is too large to be computed \(limit "):
        load_samples(tmp_path / "x.npy", model)


def largest(text: str) -> LargestValue:
    model = parse(f"(float[N, L, 4] x) => (float[a, b, c] y) {{ {text} }}")
    return ShapeCheck(model).largest({"x": (np.dtype(np.float32), (2, 3, 4))}, {})


def test_the_largest_value_is_told_with_its_node() -> None:
    found = largest("a = Concat<axis = 0>(x, x, x) y = ReduceMax(a)")
    assert found == LargestValue("Concat 'Concat_a'", (6, 3, 4), 6 * 3 * 4 * 4)


LOOP = """
    n = Constant<value_int = {count}>() yes = Constant<value = bool {{{begins}}}>()
    y, many = Loop(n, yes, x) <body = b (int64 i, bool go, float[a, b, c] h)
                                     => (bool stay, float[a, b, c] o, float[a, b, c] w) {{ {body} }}>"""
STAYS = "stay = Identity(go) o = Identity(h) w = Exp(h)"
UNTIL = "three = Constant<value_int = 3>() stay = Less(i, three) o = Identity(h) w = Exp(h)"
GROWS_UNTIL = "three = Constant<value_int = 3>() stay = Less(i, three) o = Concat<axis = 0>(h, h) w = Exp(h)"


@pytest.mark.parametrize(
    ("count", "begins", "body", "elements"),
    [
        (5, 1, STAYS, 5 * 24),  # what is stacked
        (2**62, 1, UNTIL, 24),  # a condition ends it
        (2**62, 1, GROWS_UNTIL, 24 * 2**4),  # the iterations 0 to 3
        (5, 0, STAYS, 0),  # none runs
        (0, 1, STAYS, 0),
    ],
)
def test_iterations_of_a_loop_are_counted_only_where_they_run(
    count: int, begins: int, body: str, elements: int
) -> None:
    assert largest(LOOP.format(count=count, begins=begins, body=body)).nbytes == 4 * elements


def test_a_condition_that_is_computed_is_not_followed() -> None:
    text = """
        zero = Constant<value_float = 0.>() top = ReduceMax<keepdims = 0>(x) yes = Greater(top, zero)
        s = Constant<value = int64[2] {1048576, 1048576}>()
        y = If(yes) <then_branch = t () => (float[a, b] o) { o = ConstantOfShape(s) },
                     else_branch = e () => (float[a, b, c] q) { q = Identity(x) }>"""
    assert largest(text).nbytes < TERA


HIDDEN = """
    zero = Constant<value = int64[1] {0}>() most = ReduceMax<keepdims = 0>(x) size = Cast<to = 7>(most)
    one = Constant<value = int64[1] {1}>() part = Reshape(size, one) s = Concat<axis = 0>(part, part) z = ConstantOfShape(s)
    m = ReduceMax<keepdims = 0>(z) y = Add(x, m)
"""
"""What the values of x ask for."""


def test_what_cannot_be_told_before_ends_in_one_line_too() -> None:
    session = Session(parse(f"(float[N, L, 4] x) => (float[N, L, 4] y) {{ {HIDDEN} }}"))
    x = np.full((1, 2, 4), 2.0, np.float32)
    assert session.run({"x": x})["y"].shape == x.shape
    for frugal in (True, False):  # the two ways in which onnxruntime gets memory say it in words of their own
        session = Session(parse(f"(float[N, L, 4] x) => (float[N, L, 4] y) {{ {HIDDEN} }}"), frugal=frugal)
        with pytest.raises(
            InvalidData, match=r"ConstantOfShape 'ConstantOfShape_z' needs more memory than there is; give"
        ):
            session.run({"x": x * 2**21})


def test_memory_is_that_of_the_machine_or_of_less() -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    assert 2**28 < machine_memory() < 2**44
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (machine_memory() - 2**20, before[1]))
        assert machine_memory() == resource.getrlimit(resource.RLIMIT_AS)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


ENDLESS = """
    n = Constant<value_int = 1099511627776>()
    h0 = Loop(n, , x) <body = b (int64 i, bool go, float[a, b, c] h) => (bool stay, float[a, b, c] o) {
        stay = Identity(go) o = Identity(h) }>
    big = Identity(h0)"""


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = parse(f"(float[N, L, 4] x) => (float[N, L, 4] y) {{ {ENDLESS} {ATTENTION} }}")
    session = Session(model, RunSettings(seconds=0.2))
    with pytest.raises(InvalidData, match=r"it takes longer than 0\.2 s, the --time-limit"):
        session.run({"x": np.ones((1, 2, 4), np.float32)})
    ir.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", np.ones((1, 2, 4), np.float32))
    command = [str(tmp_path / "model.onnx"), "--data", str(tmp_path / "x.npy"), "--time-limit", "0.2"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "it takes longer than 0.2 s, the --time-limit" in capsys.readouterr().err
    assert not (tmp_path / "model.attnq.onnx").exists()


@pytest.mark.parametrize("seconds", [60.0, 1e300, float("inf")])
def test_a_run_in_time_is_not_ended(seconds: float) -> None:
    model = parse("(float[N, L, 4] x) => (float[N, L, 4] y) { y = Exp(x) }")
    session = Session(model, RunSettings(seconds=seconds))
    assert session.run({"x": np.zeros((1, 2, 4), np.float32)})["y"].max() == 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidData, match=r"a time limit of \S+ s; it has to be more than 0"):
        RunSettings(seconds=seconds)


@pytest.mark.parametrize("command", ["", "analyze", "bench", "inspect", "verify"])
def test_each_command_says_it(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model_of("MatMul"), path)
    json_path = tmp_path / "result.json"
    models = [str(path), str(path)] if command == "verify" else [str(path)]
    with pytest.raises(SystemExit) as ended:
        main([*([command] if command else []), *models, "--json", str(json_path)])
    said = capsys.readouterr()
    if command == "inspect":  # all that it shows is known without a run
        assert not ended.value.code
        assert json.loads(json_path.read_text())["sites"][0]["heads"] == 1
    else:
        assert ended.value.code == 2
        assert "MatMul 'MatMul_big' makes a value of shape (1048576, 1048576), 4194304 MiB" in said.err
        assert len(said.err.splitlines()) == 1


def test_what_onnxruntime_does_not_load_is_named(tmp_path: Path) -> None:
    text = "(bfloat16[N, 4] x) => (bfloat16[N, N] y) { t = Transpose<perm = [1, 0]>(x) y = MatMul(x, t) }"
    model = parse(text)
    with pytest.raises(InvalidModel, match=r"^the model: onnxruntime does not load it: .*`compress --no-verify`"):
        Session(model)
    ir.save(model, tmp_path / "halves.onnx")
    with pytest.raises(InvalidModel, match=r"^halves\.onnx: onnxruntime does not load it: "):
        Session(tmp_path / "halves.onnx")
