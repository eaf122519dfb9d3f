"""What the layers of a decoder share in standard ops, and how many of these there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from decoder_models import HEAD_SIZE, HEADS, KV_HEADS, VOCABULARY, WIDTH, decoder
from onnx import helper, numpy_helper

from onnx_attnq.find import find_sites
from onnx_attnq.job import compress
from onnx_attnq.rewriting import RewriteSettings
from onnx_attnq.run import native_library
from onnx_attnq.scheme import preset

LAYERS = 2
MOST_NODES = 81
"""Of each attention in onnxruntime, after its optimizations; what layers share is spread over two of them."""


def session(path: Path, *, native: bool = False, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(native_library()))
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def rewritten(model: onnx.ModelProto, folder: Path, scheme: str = "identity") -> tuple[Path, Path]:
    before, after = folder / "a.onnx", folder / "b.onnx"
    onnx.save(model, before)
    compress(before, after, rewriting=RewriteSettings(preset(scheme)), verification=None)
    return before, after


def tokens(path: Path) -> list[str]:
    """What each layer takes for the number of tokens."""
    nodes = onnx.load(path).graph.node
    return [node.input[14] for node in nodes if "GroupQueryAttention" in node.op_type]


def feeds(queries: int, past: int, capacity: int, layers: int = LAYERS) -> dict[str, Any]:
    rng = np.random.default_rng(queries + past)
    batch = 2 if queries == 1 else 1  # more of both onnxruntime's op does not take
    shape = (batch, KV_HEADS, capacity, HEAD_SIZE)
    names = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    return {
        "input_ids": rng.integers(0, VOCABULARY, (batch, queries)),
        "attention_mask": np.ones((batch, past + queries), np.int64),
        **{name: rng.standard_normal(shape).astype(np.float32) for name in names},
    }


def node_count(path: Path, folder: Path) -> int:
    session(path, optimized=folder / "optimized.onnx")
    graph = onnx.load(folder / "optimized.onnx").graph
    branches = (a.g for node in graph.node if node.op_type == "If" for a in node.attribute if a.name == "else_branch")
    return len(graph.node) + sum(len(branch.node) for branch in branches)


def test_standard_ops_of_an_attention_are_few(tmp_path: Path) -> None:
    before, after = rewritten(decoder("gqa"), tmp_path, "row-log-mean")
    added = node_count(after, tmp_path) - node_count(before, tmp_path)
    assert added / LAYERS + 1 <= MOST_NODES


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(("queries", "past", "capacity"), [(1, 6, 16), (5, 0, 16), (3, 4, 7), (1, 4, 4)])
def test_layers_that_share_the_number_of_tokens_give_what_they_gave(
    queries: int, past: int, capacity: int, native: bool, tmp_path: Path
) -> None:
    if native and native_library() is None:
        pytest.skip("the library was not built")
    before, after = rewritten(decoder("gqa"), tmp_path)
    assert len(tokens(after)) == LAYERS
    assert len(set(tokens(after))) == 1
    given = feeds(queries, past, capacity)
    logits = [session(before).run(None, given)[0], session(after, native=native).run(None, given)[0]]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def change(model: onnx.ModelProto, to_query: Callable[[str], list[onnx.NodeProto]], layer: int = 1) -> onnx.ModelProto:
    """Puts nodes in front of a layer; the last of them gives what its norm reads."""
    nodes = model.graph.node
    norm = [i for i, node in enumerate(nodes) if node.op_type == "LayerNormalization"][layer]
    added = to_query(nodes[norm].input[0])
    nodes[norm].input[0] = added[-1].output[0]
    for place, node in enumerate(added):
        nodes.insert(norm + place, node)
    return model


def last_token(x: str) -> list[onnx.NodeProto]:
    bounds = {"start": [-1], "stop": [2**31], "token_axis": [1]}
    made = [
        helper.make_node("Constant", [], [name], value_ints=numbers, name=f"make_{name}")
        for name, numbers in bounds.items()
    ]
    return [*made, helper.make_node("Slice", [x, *bounds], ["last_token"], "slice")]


def last_token_added_to_one(x: str) -> list[onnx.NodeProto]:
    """A broadcast of one token and of all: as many as the greater has."""
    added = helper.make_node("Add", ["last_token", x], ["all_tokens"], "add_all")
    again = helper.make_node("Slice", ["all_tokens", "start", "stop", "token_axis"], ["one_token"], "slice_again")
    return [*last_token(x), added, again, helper.make_node("Mul", ["one_token", "last_token"], ["product"], "mul")]


@pytest.mark.parametrize("to_query", [last_token, last_token_added_to_one])
def test_a_layer_of_fewer_tokens_counts_its_own(
    to_query: Callable[[str], list[onnx.NodeProto]], tmp_path: Path
) -> None:
    before, after = rewritten(change(decoder("gqa"), to_query), tmp_path)
    assert len(set(tokens(after))) == LAYERS
    given = feeds(3, 4, 12)
    logits = [session(path).run(None, given)[0] for path in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_a_layer_of_the_tokens_of_two_others_counts_its_own(tmp_path: Path) -> None:
    """The third layer adds what the first and the second take: a broadcast, of as many tokens as the greater has."""

    def added_to_all(x: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Add", ["embedded", x], ["all_tokens"], "add_all")]

    model = change(decoder("gqa", windows=(-1, -1, -1)), last_token)
    before, after = rewritten(change(model, added_to_all, layer=2), tmp_path)
    assert len(tokens(after)) == len(set(tokens(after))) == 3
    given = feeds(3, 4, 12, layers=3)
    logits = [session(path).run(None, given)[0] for path in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_layers_behind_an_op_that_is_not_known_count_their_own(tmp_path: Path) -> None:
    """Another axis and back: as many tokens, but that is not known here."""

    def another_axis(x: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Unsqueeze", [x, "one"], ["apart"], "apart_node"),
            helper.make_node("Squeeze", ["apart", "one"], ["together"], "together_node"),
        ]

    before, after = rewritten(change(decoder("gqa"), another_axis), tmp_path)
    assert len(set(tokens(after))) == LAYERS
    given = feeds(2, 4, 8)
    logits = [session(path).run(None, given)[0] for path in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def without_sizes(model: onnx.ModelProto, unknown: int | str) -> onnx.ModelProto:
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param") and isinstance(unknown, int):
                dim.dim_value = unknown
            elif dim.HasField("dim_param"):
                dim.dim_param = unknown
    return model


@pytest.mark.parametrize("unknown", [-1, ""])
def test_what_exporters_write_for_unknown_sizes_makes_no_layers_equal(unknown: int | str, tmp_path: Path) -> None:
    model = change(decoder("gqa"), last_token)
    queries = [node.input[0] for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    shape = ["batch_size", "one", WIDTH]
    model.graph.value_info.append(helper.make_tensor_value_info(queries[1], onnx.TensorProto.FLOAT, shape))
    before, after = rewritten(without_sizes(model, unknown), tmp_path)
    assert len(set(tokens(after))) == LAYERS
    given = feeds(3, 4, 12)
    logits = [session(path).run(None, given)[0] for path in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unknown", [-1, ""])
def test_what_exporters_write_for_unknown_sizes_is_unknown(unknown: int | str) -> None:
    found = find_sites(ir.from_proto(without_sizes(decoder("concat"), unknown))).sites
    assert [(site.heads, site.shape) for site in found] == [(HEADS, (None, HEADS, None, None))] * LAYERS


def test_a_layer_behind_a_constant_of_more_tokens_counts_its_own(tmp_path: Path) -> None:
    def two_tokens(x: str) -> list[onnx.NodeProto]:
        rows = numpy_helper.from_array(np.ones((1, 2, WIDTH), np.float32))
        made = helper.make_node("Constant", [], ["rows"], "make_rows", value=rows)
        return [made, helper.make_node("Mul", [x, "rows"], ["two_tokens"], "mul_rows")]

    before, after = rewritten(change(decoder("gqa"), two_tokens), tmp_path)
    assert len(set(tokens(after))) == LAYERS
    given = {name: array[:1] for name, array in feeds(1, 4, 12).items()}
    logits = [session(path).run(None, given)[0] for path in (before, after)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
