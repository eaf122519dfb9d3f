"""Shapes that are given to inputs of made-up samples, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_attnq import VerifySettings, compress, generate_samples
from onnx_attnq.cli.group import cli
from onnx_attnq.errors import InvalidData
from onnx_attnq.inputs import made_up_samples, parse_input_shape
from onnx_attnq.model import save

PAST = """<ir_version: 8, opset_import: ["" : 17]>
    m (int64[batch, tokens] ids, float[batch, past] old, float[batch, total] mask, float[4] scale, float[n] other)
    => (float[batch, total] y) { f = Cast <to = 1> (ids)  all = Concat <axis = 1> (old, f)  y = Add (all, mask) }"""


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    path = tmp_path / "bert.onnx"
    save(ir.from_proto(small_models.parse(small_models.BERT)), path)
    return path


def shapes(model: ir.Model, **given: tuple[int, ...]) -> list[dict[str, tuple[int, ...]]]:
    return [{k: v.shape for k, v in s.items()} for s in generate_samples(model, 3, input_shapes=given)]


def past_proto() -> onnx.ModelProto:
    proto = small_models.parse(PAST)
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + tokens"  # which the parser does not know
    return proto


def past() -> ir.Model:
    return ir.from_proto(past_proto())


def test_inputs_with_the_same_symbols_follow() -> None:
    for found in shapes(past(), ids=(3, 5)):
        batch, before = found.pop("old")
        assert batch == 3
        assert found == {"ids": (3, 5), "mask": (3, before + 5), "scale": (4,), "other": found["other"]}
    for found in shapes(past(), ids=(3, 5), old=(3, 2)):
        assert found["mask"] == (3, 7)
    for found in shapes(past(), mask=(2, 9), old=(2, 4)):
        assert found["ids"][0] == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_what_is_given_is_what_is_made(batch: int, tokens: int, before: int) -> None:
    given = {"ids": (batch, tokens), "old": (batch, before), "other": (before + 1,)}
    for found in shapes(past(), **given):
        assert found == {**given, "mask": (batch, before + tokens), "scale": (4,)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": (1, 2)}, "'id' is not an input of the model; its inputs are 'ids', 'old', 'mask', 'scale', 'other'"),
        ({"ids": (1, 2, 3)}, "input 'ids' is int64[batch, tokens] and cannot have the shape 1,2,3"),
        ({"scale": (5,)}, "input 'scale' is float32[4] and cannot have the shape 5"),
        ({"ids": (1, 2), "old": (2, 2)}, "input 'old' is float32[batch, past] and cannot have the shape 2,2: 'batch' is 1 elsewhere"),
        (
            {"ids": (1, 2), "old": (1, 2), "mask": (1, 5)},
            "input 'mask' is float32[batch, past + tokens] and cannot have the shape 1,5: 'past + tokens' is 4",
        ),
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_named(given: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InvalidData) as caught:
        generate_samples(past(), 1, input_shapes=given)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["ids", "=1,2", "ids=1,,2", "ids=1,", "ids=-1,2", "ids=a", "ids=1.5", "ids=1 2"])
def test_text_that_is_no_shape(text: str) -> None:
    with pytest.raises(InvalidData, match=r"write NAME=1,128"):
        parse_input_shape(text)


def test_text_of_shapes() -> None:
    assert parse_input_shape("past.0=k=2,8,0,64") == ("past.0=k", (2, 8, 0, 64))
    assert parse_input_shape("ids=1x128") == ("ids", (1, 128))
    assert parse_input_shape("scalar=") == ("scalar", ())


def test_rank_that_is_not_declared() -> None:
    proto = past_proto()
    proto.graph.input[4].type.tensor_type.ClearField("shape")
    assert all(found["other"] == (2, 3, 4) for found in shapes(ir.from_proto(proto), other=(2, 3, 4)))


def test_too_large_is_refused() -> None:
    with pytest.raises(InvalidData, match="too large to be made up"):
        generate_samples(past(), 1, input_shapes={"ids": (10**6, 10**6)})


def test_samples_that_are_tried_have_the_shape(bert: Path) -> None:
    model = ir.load(bert)
    found = made_up_samples(model, 2, edges=True, input_shapes={"input_ids": (3, 11)})
    assert len(found.samples) == 3
    assert {s["input_ids"].shape for s in found.samples} == {(3, 11)}
    assert {s["attention_mask"].shape for s in found.samples} == {(3, 11)}


def test_python(bert: Path) -> None:
    result = compress(bert, verification=VerifySettings(count=1, input_shapes={"input_ids": (1, 9)}))
    assert result.made_up is not None
    (sample,) = result.made_up.samples
    assert sample["input_ids"].shape == (1, 9)


def codes(arguments: list[str], output: Path) -> int:
    done = CliRunner().invoke(cli, [*arguments, "--json", str(output)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return int(json.loads(output.read_text())["verification"]["implementation"]["codes_checked"])


def test_command_line(bert: Path, tmp_path: Path) -> None:
    one = ["compress", str(bert), "--samples", "1", "--input-shape", "input_ids=1,9"]
    two = ["compress", str(bert), "--samples", "1", "--input-shape", "input_ids=1,18"]
    assert codes(two, tmp_path / "a.json") == 4 * codes(one, tmp_path / "b.json")
    model = tmp_path / "bert.attnq.onnx"
    for arguments in (
        ["verify", str(bert), str(model), "--metric", "cosine>=0.5"],
        ["bisect", str(bert), str(model)],
        ["analyze", str(bert), "--no-report", "-o", str(tmp_path / "study")],
        ["bench", str(bert), "--repeats", "1", "--tokens", "4", "--tokens", "5"],
    ):
        done = CliRunner().invoke(cli, [*arguments, "--input-shape", "input_ids=1,9"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        wrong = CliRunner().invoke(cli, [*arguments, "--input-shape", "nothing=1,9"])
        assert "'nothing' is not an input of the model" in f"{wrong.exception}{wrong.output}", arguments
    assert len([line for line in done.output.splitlines() if line.startswith("original ") and " 9 " in line]) == 1


def test_weights_too(bert: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(bert), "--weights", "int8", "--samples", "1", "--input-shape", "input_ids=1,9"]
    assert codes(arguments, tmp_path / "a.json") == codes([*arguments[:2], *arguments[4:]], tmp_path / "b.json")


def test_options_that_do_not_go_together(bert: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", input_ids=np.ones((1, 4), np.int64))
    for command in (["compress"], ["verify", str(bert)], ["bisect", str(bert)], ["analyze", "--no-report"], ["bench"]):
        arguments = [*command, str(bert), "--input-shape", "input_ids=1,4", "--data", str(tmp_path / "s.npz")]
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 2, command
        assert "--input-shape is for made-up samples; it does not go with --data" in done.output
    twice = CliRunner().invoke(cli, [str(bert), "--input-shape", "input_ids=1,4", "--input-shape", "input_ids=1,5"])
    assert "two shapes" in twice.output


def test_parts_of_a_folder(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    bert.rename(folder / "encoder.onnx")
    other = small_models.parse(small_models.BERT)
    for node in other.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.replace("input_ids", "decoder_ids")
    other.graph.input[0].name = "decoder_ids"
    save(ir.from_proto(other), folder / "decoder.onnx")
    run = ["compress", str(folder), "--samples", "1"]
    done = CliRunner().invoke(cli, [*run, "--input-shape", "decoder_ids=1,9", "--json", str(tmp_path / "j")])
    assert done.exit_code == 0, (done.output, done.exception)
    wrong = CliRunner().invoke(cli, [*run, "-o", str(tmp_path / "new"), "--input-shape", "ids=1,9"])
    assert "'ids' is not an input of any part; theirs are attention_mask, decoder_ids, input_ids" in str(
        wrong.exception
    )
