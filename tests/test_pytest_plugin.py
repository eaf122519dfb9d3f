"""The fixtures as a team uses them: in test files of their own, run by pytest."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import variants

import onnx_attnq

pytest_plugins = ["pytester"]

EXAMPLE = Path(__file__).parent.parent / "examples" / "ci"
PLUGIN = ("-p", "onnx_attnq.pytest_plugin")


def save(path: Path, axis: int = -1) -> None:
    made = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 21]>
        net (float[B,4] x) => (float[B,4] y) {{ t = Softmax <axis = {axis}> (x)  y = Mul (t, x) }}""")
    ir.save(made, path)


def run(pytester: pytest.Pytester, body: str, *options: str) -> tuple[int, str]:
    pytester.makepyfile(body)
    result = pytester.runpytest_subprocess(*PLUGIN, *options)
    return int(result.ret), result.stdout.str()


@pytest.fixture(autouse=True)
def models(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(onnx_attnq.__file__).parent.parent))  # of the pytest that is run
    save(pytester.path / "a.onnx")
    save(pytester.path / "b.onnx", axis=0)
    np.savez(pytester.path / "x.npz", x=np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32))


def test_models_equal(pytester: pytest.Pytester) -> None:
    body = """
        import onnx_ir as ir

        def test_same(assert_models_equal):
            assert_models_equal("a.onnx", ir.load("a.onnx"))

        def test_other(assert_models_equal):
            assert_models_equal("a.onnx", "b.onnx")
    """
    code, output = run(pytester, body)
    assert code == 1
    assert "1 failed, 1 passed" in output
    assert "--- a.onnx\n+++ b.onnx\n@@ attribute axis = -1 became 0 @@ node 't' (Softmax)\n" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_golden_file_is_missing_written_and_compared(pytester: pytest.Pytester) -> None:
    body = """
        def test_golden(assert_rewrite):
            assert_rewrite("a.onnx", "a.txt")
    """
    code, output = run(pytester, body)
    assert code == 1
    assert "golden file a.txt does not exist; pytest --update-golden writes it" in output
    assert run(pytester, body, "--update-golden")[0] == 0
    assert "%Softmax_0 = Softmax <axis = -1> (x)" in (pytester.path / "a.txt").read_text()
    shutil.copy(pytester.path / "b.onnx", pytester.path / "a.onnx")
    code, output = run(pytester, body)
    assert code == 1
    assert "-  %Softmax_0 = Softmax <axis = -1> (x)\n+  %Softmax_0 = Softmax <axis = 0> (x)\n" in output
    assert "first at node 't' (Softmax)" in output


def test_close(pytester: pytest.Pytester) -> None:
    body = """
        import numpy as np

        def test_same(assert_close):
            assert_close("a.onnx", "a.onnx", "x.npz")

        def test_same_arrays(assert_close):
            assert_close("a.onnx", "a.onnx", {"x": np.zeros((1, 4), np.float32)})

        def test_other(assert_close):
            assert_close("a.onnx", "b.onnx", "x.npz")

        def test_other_but_not_far(assert_close):
            assert_close("a.onnx", "b.onnx", "x.npz", atol=3.0)
    """
    code, output = run(pytester, body)
    assert code == 1
    assert "1 failed, 3 passed" in output
    # x = 1 of the first row: exp(1) / (1 + e + e^2 + e^3) = 0.0871 became e / (e + 1) = 0.7311
    assert "@@ sample 0, rtol 0.0001, atol 1e-05\noutput 'y': 3 of 8 values are too far apart" in output


@pytest.mark.slow
def test_example_repository_catches_a_change_in_a_subgraph(pytester: pytest.Pytester) -> None:
    """A pull request that changes one attribute of one node in one branch of a merged decoder."""
    shutil.copytree(EXAMPLE, pytester.path / "example")
    assert _run_example(pytester)[0] == 0
    file = pytester.path / "example" / "models" / "decoder.onnx"
    model = ir.load(file)
    node = next(node for node in variants.all_nodes(model) if node.op_type == "Softmax")
    assert node.graph is not model.graph
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    ir.save(model, file)
    code, output = _run_example(pytester)
    assert code == 1
    assert f"first at node {node.name!r} (Softmax)" in output


def _run_example(pytester: pytest.Pytester) -> tuple[int, str]:
    result = pytester.runpytest_subprocess(*PLUGIN, "example")
    return int(result.ret), result.stdout.str()
