"""Which fused ops are rewritten, which stay, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from decoder_models import decoder
from fused_case import CURRENT_KERNELS

from onnx_attnq.cli.group import cli
from onnx_attnq.job import compress, plan_only
from onnx_attnq.model import load
from onnx_attnq.rewriting import RewriteSettings, read_record
from onnx_attnq.scheme import preset

pytestmark = CURRENT_KERNELS

GALLERY = Path(__file__).parent / "gallery"
SHOWS_SCORES = GALLERY / "fused_mha__qkout.onnx"
"""Its op shows its scores, so that the products have to stay."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def ops(path: Path) -> list[str]:
    return [node.op_type for node in load(path).graph]


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    onnx.save(decoder(), tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def test_keeping_fused_ops_is_a_result(gqa: Path) -> None:
    done = run(gqa, "--keep-fused")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "nothing to rewrite, its attention stays in fused ops" in shown
    assert "left: GroupQueryAttention 'attention_0_node': left fused, as it was asked for" in shown
    assert "computes the same" in shown
    written = gqa.with_name("decoder.attnq.onnx")
    assert ops(written) == ops(gqa)
    assert read_record(load(written)) is None
    data = json.loads(run(gqa, "--keep-fused", "--json", "-").output)
    assert data["sites"] == []
    assert [r["op_type"] for r in data["rejected"]] == ["GroupQueryAttention"] * 2
    assert data["verification"] is None


@pytest.mark.parametrize("options", [["--dry-run"], ["--weights", "int8", "--samples", "1"]])
def test_keeping_fused_ops_goes_with_other_options(options: list[str], gqa: Path) -> None:
    done = run(gqa, "--keep-fused", *options)
    assert done.exit_code == 0, done.output
    written = gqa.with_name("decoder.attnq.onnx")
    assert written.exists() == ("--dry-run" not in options)
    if written.exists():
        assert ops(written).count("GroupQueryAttention") == 2
        assert written.stat().st_size < gqa.stat().st_size


def test_a_fused_op_without_a_kernel_is_left_and_rewritten_when_asked(tmp_path: Path) -> None:
    kept, forced = tmp_path / "kept.onnx", tmp_path / "forced.onnx"
    done = run(SHOWS_SCORES, "-o", kept)
    assert done.exit_code == 0, done.output
    assert "the native library has no kernel for all that this MultiHeadAttention does" in " ".join(done.output.split())
    assert "MultiHeadAttention" in ops(kept)
    done = run(SHOWS_SCORES, "-o", forced, "--rewrite-fused")
    assert done.exit_code == 0, done.output
    assert "MultiHeadAttention" not in ops(forced)
    assert "slower: 1 fused ops were taken apart" in " ".join(done.output.split())


def test_one_fused_op_is_left_and_the_others_are_rewritten(tmp_path: Path) -> None:
    model = decoder()
    second = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"][1]
    second.attribute.append(onnx.helper.make_attribute("qk_output", 2))
    second.output.append("scores")
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx")
    assert [entry.scheme is None for entry in found.plan.sites] == [False, True]
    assert found.output is not None
    assert found.verification is not None
    assert found.verification.passed
    assert {"GroupQueryAttention", "QuantizedGroupQueryAttention"} <= set(ops(found.output))


def test_what_a_plan_says_counts(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run(SHOWS_SCORES, "--rewrite-fused", "--dry-run", "--write-plan", plan).exit_code == 0
    done = run(SHOWS_SCORES, "--plan", plan, "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert "MultiHeadAttention" not in ops(tmp_path / "m.onnx")


def test_inlining_rewrites_all_since_nothing_has_a_kernel_then(tmp_path: Path) -> None:
    done = run(SHOWS_SCORES, "--inline", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert "MultiHeadAttention" not in ops(tmp_path / "m.onnx")


def test_says_that_the_standard_bodies_are_slower(gqa: Path) -> None:
    found = compress(gqa, verification=None)
    (warning,) = found.warnings
    assert "--keep-fused" in warning
    assert "the standard bodies of 2 fused ops" in warning
    assert warning in " ".join(run(gqa, "--no-verify").output.split())
    assert json.loads(run(gqa, "--no-verify", "--json", "-").output)["warnings"] == [warning]


def test_nothing_is_said_of_a_model_without_fused_ops(tmp_path: Path) -> None:
    onnx.save(decoder("concat"), tmp_path / "m.onnx")
    assert compress(tmp_path / "m.onnx", verification=None).warnings == ()


def test_windows_in_turns_and_a_softcap_as_in_gemma_2_get_the_native_op(tmp_path: Path) -> None:
    onnx.save(decoder(windows=(4, -1), softcap=5.0, scale=0.2), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx")
    assert found.output is not None
    assert found.verification is not None
    assert found.verification.passed
    names = ["QuantizedGroupQueryAttention", "QuantizedGroupQueryAttention_2"]
    assert sorted(node.op_type for node in load(found.output).graph if node.domain == "onnx_attnq") == names


def test_layers_of_one_op_keep_the_numbers_of_their_own_schemes(tmp_path: Path) -> None:
    """They share the body of the op, which refers to the attributes of each call."""
    path = tmp_path / "m.onnx"
    onnx.save(layers_with_windows(4, 4), path)
    plan = plan_only(path, RewriteSettings(scheme=preset("row-log"))).plan
    thresholds = zip(plan.sites, (0.01, 0.3), strict=True)
    sites = tuple(dataclasses.replace(s, scheme=preset("row-log", threshold=t)) for s, t in thresholds)
    found = compress(path, rewriting=RewriteSettings(plan=dataclasses.replace(plan, sites=sites)))
    assert found.output is not None
    assert found.verification is not None
    assert found.verification.passed, found.verification.failures
    names = [node.op_type for node in load(found.output).graph if node.domain == "onnx_attnq"]
    assert names == ["QuantizedGroupQueryAttention"] * 2


@pytest.mark.parametrize("kind", ["mha", "attention", "scatter"])
def test_one_op_stands_for_attention_with_a_cache_also_where_heads_share_keys(kind: str, tmp_path: Path) -> None:
    onnx.save(decoder(kind), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx", scheme=preset("row-log"))
    assert found.verification is not None
    assert found.verification.passed
    assert found.output is not None
    model = load(found.output)
    assert [node.op_type for node in model.graph if node.domain == "onnx_attnq"] == ["QuantizedAttention"] * 2
    assert not [node for node in model.graph if node.op_type == "Expand"]  # keys are not repeated


def test_a_cache_in_half_precision_stays_fused(tmp_path: Path) -> None:
    """Its kernel would need all of the cache in float32 at every step."""
    shape = (1, 4, "past", 16)
    info = onnx.helper.make_tensor_value_info
    half = onnx.TensorProto.FLOAT16
    node = onnx.helper.make_node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"], "att")
    inputs = [info(n, half, (1, 4, "l", 16)) for n in ("q", "k", "v")] + [info(n, half, shape) for n in ("pk", "pv")]
    outputs = [info(n, half, (1, 4, None, 16)) for n in ("y", "nk", "nv")]
    imports = [onnx.helper.make_opsetid("", 23)]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=11), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx", verification=None)
    assert "in float32 at every step" in found.plan.sites[0].reason


@pytest.mark.parametrize(("kind", "left"), [("gqa", 0), ("mha", 0), ("attention", 2), ("scatter", 2), ("concat", 0)])
def test_the_scheme_decides_too(kind: str, left: int, tmp_path: Path) -> None:
    """The shares of pruned values take more than ONNX Attention at a step; the other kernels have that much to spare."""
    onnx.save(decoder(kind), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx", scheme=preset("row-log-mean", bits=2, threshold=0.1), verification=None)
    assert sum("shares of pruned values" in entry.reason for entry in found.plan.sites) == left


@pytest.mark.parametrize("past", [False, True])
def test_the_weights_of_an_attention_of_microsofts_are_no_cache(past: bool, tmp_path: Path) -> None:
    """Its second input is the projection, and its seventh how many tokens are in the past."""
    half, info = onnx.TensorProto.FLOAT16, onnx.helper.make_tensor_value_info
    names = ["x", "w", "b", "", "p" if past else "", "", "n"]
    shared = {"past_present_share_buffer": int(past)}
    outputs = ["y", "present"] if past else ["y"]
    node = onnx.helper.make_node("Attention", names, outputs, "att", domain="com.microsoft", num_heads=2, **shared)
    weights = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float16), name) for name, shape in (("w", (16, 48)), ("b", 48))
    ]
    inputs = [info("x", half, (1, "l", 16)), info("n", onnx.TensorProto.INT32, (1,))]
    inputs += [info("p", half, (2, 1, 2, 32, 8))] if past else []
    graph = onnx.helper.make_graph([node], "g", inputs, [info(name, half, None) for name in outputs], weights)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx", verification=None)
    assert [("in float32 at every step" in entry.reason) for entry in found.plan.sites] == [past]


@pytest.mark.slow
def test_a_fifth_kind_of_layer_stays_fused_and_says_so(tmp_path: Path) -> None:
    """One op has four names, and each kind of layer needs its own."""
    model = layers_with_windows(2, 3, 4, 5, 6)
    onnx.save(model, tmp_path / "m.onnx")
    found = compress(tmp_path / "m.onnx")
    assert found.verification is not None
    assert found.verification.passed
    assert found.output is not None
    reasons = [entry.reason for entry in found.plan.sites if entry.scheme is None]
    assert len(reasons) == 1
    assert "names for 4 kinds of GroupQueryAttention" in reasons[0]
    assert ops(found.output).count("GroupQueryAttention") == 1
    done = run(tmp_path / "m.onnx", "--rewrite-fused", "--no-verify", "-o", tmp_path / "forced.onnx")
    assert done.exit_code == 0, done.output
    assert "slower: 1 fused ops were taken apart" in " ".join(done.output.split())


def test_float16_becomes_one_op_too(tmp_path: Path) -> None:
    onnx.save(layers_with_windows(-1, dtype=np.float16), tmp_path / "m.onnx")
    done = run(tmp_path / "m.onnx", "-o", tmp_path / "out.onnx")
    assert done.exit_code == 0, done.output
    assert ops(tmp_path / "out.onnx") == ["Shape", "QuantizedGroupQueryAttention"]


def layers_with_windows(*windows: int, dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """One token after a past, through one attention for each window."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cache = ["B", 1, "S", 8]
    inputs, outputs, nodes = [("query", ["B", "L", 16])], [], []
    inputs += [(name, ["B", "L", 8]) for name in ("key", "value")]
    for i, window in enumerate(windows):
        past, present = ([f"{kind}_{i}.{part}" for part in ("key", "value")] for kind in ("past", "present"))
        inputs += [(name, cache) for name in past]
        outputs += [(f"y_{i}", ["B", "L", 16]), *((name, ["B", 1, "T", 8]) for name in present)]
        nodes.append(
            onnx.helper.make_node(
                "GroupQueryAttention",
                ["query", "key", "value", *past, "last", "total"],
                [f"y_{i}", *present],
                domain="com.microsoft",
                num_heads=2,
                kv_num_heads=1,
                local_window_size=window,
            )
        )
    info = onnx.helper.make_tensor_value_info
    whole = onnx.TensorProto.INT32
    graph = onnx.helper.make_graph(
        nodes,
        "layers",
        [*(info(n, element, s) for n, s in inputs), info("last", whole, ["B"]), info("total", whole, [])],
        [info(n, element, s) for n, s in outputs],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
