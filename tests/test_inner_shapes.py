"""Heads and shapes that `inspect` shows: from shape inference, or a run on made-up inputs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
import small_models
from click.testing import CliRunner

from onnx_attnq.cli.group import cli
from onnx_attnq.find import expose, find_sites
from onnx_attnq.inputs import generate_samples, inner_shapes
from onnx_attnq.model import load, save
from onnx_attnq.run import RunSettings
from onnx_attnq.study import with_shapes

GALLERY = Path(__file__).parent / "gallery"
UNTOLD = {"odd_if__ts17-script"}
"""A branch that made-up inputs do not take."""

CASES = {
    "albert__optimum": (4, "batch_size", 4, "sequence_length", "sequence_length"),
    "bert__dynamo18-functions": (4, "batch", 4, "seq", "seq"),
    "fused_gqa__sink": (4, "batch", 4, "seq", "total + 1"),
    "fused_attention23__gqa_past": (4, "batch", 2, 2, "seq", "total"),  # key heads, and the query heads of each
    "llama__int4-nbits": (4, "batch_size", 4, "sequence_length", "past_sequence_length + sequence_length"),
    "timm_vit__ts13": (4, "batch", 4, 16, 16),
    "vit__qoperator": (4, "batch", 4, 17, 17),
    "t5-decoder_model_merged__optimum": (4, "batch_size", 4, "decoder_sequence_length", "decoder_sequence_length"),
}


def told(path: Path, run: RunSettings | None = RunSettings(1)):
    original, exposed = load(path), expose(load(path))
    return with_shapes(original, exposed, find_sites(exposed), {}, run)


@pytest.mark.parametrize("name", CASES)
def test_first_site_of_exports(name: str) -> None:
    found, problem = told(GALLERY / f"{name}.onnx")
    assert problem is None
    assert (found.sites[0].heads, *(found.sites[0].shape or ())) == CASES[name]
    assert name in UNTOLD or all(site.heads and site.shape for site in found.sites)


def test_shapes_are_those_of_a_run(tmp_path: Path) -> None:
    """What is told, with the sizes of other inputs in it, is the shape that a run shows."""
    model = load(GALLERY / "llama__int4-nbits.onnx")
    (first, *_) = find_sites(expose(model)).sites
    assert inner_shapes(model, model, [first.probabilities], run=None)  # inference alone
    for sample in generate_samples(model, 1, seed=3, shapes=((3, 5),)):
        sizes = {
            dim.value: size
            for value in model.graph.inputs
            for dim, size in zip(value.shape, sample[value.name].shape, strict=True)
            if isinstance(dim, ir.SymbolicDim)
        }
        given = {name: array.shape for name, array in sample.items()}
        fixed = inner_shapes(model, model, [first.probabilities], input_shapes=given)[first.probabilities]
        named = inner_shapes(model, model, [first.probabilities])[first.probabilities]
        known = {**sizes, "past_sequence_length": sample["past_key_values.0.key"].shape[2]}
        total = known["past_sequence_length"] + known["sequence_length"]
        assert fixed == (known["batch_size"], 4, known["sequence_length"], total)
        assert named == ("batch_size", 4, "sequence_length", "past_sequence_length + sequence_length")


def test_heads_in_one_axis_with_the_batch() -> None:
    text = small_models.BERT.replace(
        "key = Transpose<perm = [0, 2, 1]>(x)", "shape = Constant<value_ints = [-1, 16, 4]>()"
        "  split = Reshape(x, shape)  key = Transpose<perm = [0, 2, 1]>(split)"
    ).replace("MatMul(x, key)", "MatMul(split, key)").replace("Add(scores, bias)", "Identity(scores)").replace(
        "y = MatMul(probabilities, x)", "c = MatMul(probabilities, split)  back = Shape(x)  y = Reshape(c, back)"
    )  # fmt: skip
    model = ir.from_proto(small_models.parse(text))
    (site,) = find_sites(expose(model)).sites
    found = inner_shapes(model, model, [site.probabilities], input_shapes={"input_ids": (6, 16)})
    assert found[site.probabilities] == (12, 16, 16)


def test_where_inference_ends_the_model_is_run() -> None:
    """The batch comes from values that inference does not know."""
    text = small_models.BERT.replace("scores = MatMul(x, key)", "wide = MatMul(x, key)  big = NonZero(wide)  few = Cast<to = 1>(big)"
                                     "  sum = ReduceSum<keepdims = 0>(few)  zero = Mul(sum, none)  scores = Add(wide, zero)")  # fmt: skip
    model = ir.from_proto(
        small_models.parse(text.replace("float[2, 8] segments", "float[2, 8] segments, float none = {0}"))
    )
    probe = model.graph.node(2).outputs[0]
    assert inner_shapes(model, model, [probe], run=None)[probe] == ("batch", "length", 8)
    few = next(node for node in model.graph if node.op_type == "NonZero").outputs[0].uses()[0].node.outputs[0]
    assert inner_shapes(model, model, [few], run=None) == {}
    assert inner_shapes(model, model, [few])[few] == (3, None)


def test_a_model_that_does_not_run_says_so(tmp_path: Path) -> None:
    path = Path(__file__).parent / "cases" / "custom_domain_mul.onnx"
    found, problem = told(path)
    assert len(found.sites) == 1
    assert "my.dom:Mul" in (problem or "")
    shown = CliRunner().invoke(cli, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "note: shapes are not all known: " in shown.output
    assert "shapes are not all known" not in CliRunner().invoke(cli, ["inspect", str(path), "--no-run"]).output


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(ir.from_proto(small_models.parse(small_models.BERT)), path)
    shown = CliRunner().invoke(cli, ["inspect", str(path)], catch_exceptions=False).output
    assert "batch x length x length" in shown
    fixed = ["inspect", str(path), "--input-shape", "input_ids=2,7", "--json", "-"]
    (site,) = json.loads(CliRunner().invoke(cli, fixed, catch_exceptions=False).output)["sites"]
    assert (site["heads"], site["shape"]) == (1, [2, 7, 7])
    wrong = CliRunner().invoke(cli, ["inspect", str(path), "--input-shape", "ids=2,7"])
    assert "'ids' is not an input" in str(wrong.exception)


def test_what_the_file_says_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = ir.from_proto(small_models.parse(small_models.BERT))
    (site,) = find_sites(expose(model)).sites
    site.probabilities.type = ir.TensorType(ir.DataType.FLOAT)
    site.probabilities.shape = ir.Shape(["rows", "queries", None])
    save(model, path)
    found, _ = told(path)
    assert found.sites[0].shape == ("rows", "queries", "length")
