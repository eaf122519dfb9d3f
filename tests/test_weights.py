"""Quantized weights beside quantized attention: onnxruntime's quantizers in front, one proof of the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
import text_models
from attention_forms import FORMS
from click.testing import CliRunner
from small_graphs import parse
from small_transformers import bert_like

import onnx_attnq.verification.rewrite_proof as proof
from onnx_attnq.cli import main
from onnx_attnq.cli.group import cli
from onnx_attnq.errors import CannotWrite, InvalidModel, NothingToRewrite
from onnx_attnq.job import compress_weights
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import Record, read_record
from onnx_attnq.run import Session, quantize_weights
from onnx_attnq.verification import VerifySettings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(bert_like(17), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(("weights", "op"), [("int8", "MatMulInteger"), ("int4", "MatMulNBits")])
def test_one_command_quantizes_weights_and_attention_and_verifies_both(weights: str, op: str, model: Path) -> None:
    before = model.read_bytes()
    done = CliRunner().invoke(cli, [str(model), "--weights", weights, "--json", "-"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    written = model.with_name("model.attnq.onnx")
    assert op in {node.op_type for node in onnx.load(written).graph.node}
    record = read_record(load(written))
    assert record is not None
    assert len(record.sites) == 2
    assert found["model"]["path"] == str(model)
    assert found["verification"]["passed"] is True
    assert found["verification"]["implementation"]["errors"] == 0
    # The outputs are compared with those of the original, weights included.
    for output in found["verification"]["deviation"].values():
        assert output["max_abs"] > 0.0
        assert output["cosine"] > 0.9  # random weights, of which 4 bits leave little
    assert found["weights"]["type"] == weights
    assert found["weights"]["size"] == [len(before), written.stat().st_size]
    assert all(time > 0.0 for time in found["weights"]["cpu_ms"])
    assert model.read_bytes() == before
    assert {path.name for path in model.parent.iterdir()} == {"model.onnx", "model.attnq.onnx"}


def test_a_limit_holds_for_the_whole(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(model), "--weights", "int4", "--max-deviation", "max_abs<=1e-9"])
    assert stopped.value.code == 1
    shown = capsys.readouterr().out
    assert "Weights in int4: " in shown
    assert "times as fast" in shown


def test_what_failed_is_not_there_and_may_be_kept_under_another_name(model: Path) -> None:
    old = model.with_name("model.attnq.onnx")
    old.write_text("what was there")
    tight = [str(model), "--weights", "int8", "--max-deviation", "max_abs<=1e-9"]
    with pytest.raises(SystemExit) as stopped:
        main(tight)
    assert stopped.value.code == 1
    assert {path.name for path in model.parent.iterdir()} == {"model.onnx", "model.attnq.onnx"}
    with pytest.raises(SystemExit) as stopped:
        main([*tight, "--keep-failed"])
    assert stopped.value.code == 1
    assert old.read_text() == "what was there"
    assert read_record(load(model.with_name("model.attnq.failed.onnx"))) is not None


@pytest.mark.parametrize("verification", [None, VerifySettings(keep_failed=True)])
@pytest.mark.parametrize("output", ["model.onnx", "weights.bin", "link.onnx", "kept.onnx"])
def test_no_file_of_the_input_is_overwritten(output: str, verification: VerifySettings | None, tmp_path: Path) -> None:
    if output == "kept.onnx" and verification is None:
        return
    data = "kept.failed.onnx" if output == "kept.onnx" else "weights.bin"
    proto = ir.to_proto(bert_like(17))
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location=data, size_threshold=0)
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CannotWrite, match="is a file of the input model, which is never overwritten"):
        compress_weights(tmp_path / "model.onnx", tmp_path / output, "int8", verification=verification)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_model_in_the_cache_of_the_hub_is_quantized(weights: str, tmp_path: Path) -> None:
    path = small_models.write_external(ir.to_proto(bert_like(17)), tmp_path / "model.onnx")
    path = small_models.in_hub_cache(path, "weights.bin")
    done = compress_weights(path, tmp_path / "q.onnx", weights, verification=VerifySettings(count=1))
    assert done.compression.output == tmp_path / "q.onnx"


def test_an_interrupted_run_leaves_nothing(model: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_weights(model, None, "int8", progress=interrupt)
    assert {path.name for path in model.parent.iterdir()} == {"model.onnx"}


def test_the_rewrite_is_proved_against_the_model_with_quantized_weights(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compress_weights(model, None, "int8").compression.verification
    assert found is not None
    assert found.rewrite is not None
    # Against the original this would be the error of 8-bit weights.
    for output in found.rewrite.outputs.values():
        assert output.deviation.relative_error < found.rewrite.tolerance
    right = proof.rewrite

    def wrong(rewritten: ir.Model, *arguments: Any, **options: Any) -> Record:
        record = right(rewritten, *arguments, **options)
        for node in rewritten.graph:
            if "scale" in node.attributes:
                node.attributes["scale"] = ir.AttrTensor("scale", ir.tensor(np.array([9.0], np.float32)))
        return record

    monkeypatch.setattr(proof, "rewrite", wrong)
    model.with_name("model.attnq.onnx").unlink()
    failed = compress_weights(model, None, "int8").compression
    assert failed.failed
    assert failed.output is None
    assert failed.verification is not None
    assert any("even without quantization" in failure for failure in failed.verification.failures)


def test_a_model_without_attention_is_named_as_the_user_did(tmp_path: Path) -> None:
    text = "(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }".replace("x) =>", "x, float[64,64] w) =>")
    save(parse(text), tmp_path / "m.onnx")
    done = CliRunner().invoke(cli, [str(tmp_path / "m.onnx"), "--weights", "int8"])
    assert isinstance(done.exception, NothingToRewrite)
    assert str(done.exception).startswith(f"{tmp_path / 'm.onnx'}: no attention found")


def test_products_of_attention_stay_in_floating_point(model: Path, tmp_path: Path) -> None:
    for weights in ("int8", "int4"):
        quantize_weights(model, tmp_path / "q.onnx", weights)
        kinds = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
        assert kinds.count("MatMul") == 4  # two products in each of two layers
        assert kinds.count("Softmax") == 2
        sample = {"input_ids": np.ones((1, 5), np.int64), "attention_mask": np.ones((1, 5), np.int64)}
        assert Session(tmp_path / "q.onnx").run(sample)


def test_a_model_without_weights_is_one_line(tmp_path: Path) -> None:
    save(parse(FORMS["plain"].text), tmp_path / "m.onnx")
    for weights in ("int8", "int4"):
        with pytest.raises(InvalidModel, match="finds no weights"):
            quantize_weights(tmp_path / "m.onnx", tmp_path / "q.onnx", weights)


@pytest.mark.parametrize("option", [["--dry-run"], ["--external-data", "keep"]])
def test_options_that_would_be_ignored_are_refused(option: list[str], model: Path) -> None:
    done = CliRunner().invoke(cli, [str(model), "--weights", "int8", *option])
    assert done.exit_code == 2
    assert "--weights int8 writes new weights" in done.output


def test_bench_compares_all_four(model: Path) -> None:
    arguments = [
        "bench",
        str(model),
        "--weights",
        "int8",
        "--tokens",
        "8",
        "--repeats",
        "1",
        "--no-memory",
        "--json",
        "-",
    ]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    names = {timing["variant"] for timing in json.loads(done.output)["timings"]}
    assert {"original", "int8 weights", "attention, portable", "attention and int8 weights, portable"} <= names


@pytest.mark.parametrize("weights", ["int4", pytest.param("int8", marks=pytest.mark.slow)])
def test_evaluate_compares_all_four(weights: str, model: Path, tmp_path: Path) -> None:
    text_models.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("red house big tree green car " * 20, encoding="utf-8")
    task = ["--task", "text-generation", "--data", str(tmp_path / "text.txt"), "--max-length", "32", "--resamples", "5"]
    arguments = ["evaluate", str(model), *task, "--weights", weights, "--scheme", "row-log:bits=2", "--json", "-"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    by_name = {Path(entry["path"]).name: entry["metrics"] for entry in found["compressed"]}
    assert set(by_name) == {f"model.{weights}.onnx", "model.row-log.onnx", f"model.row-log.{weights}.onnx"}
    losses = [metric["relative_loss"]["estimate"] for metrics in by_name.values() for metric in metrics[:1]]
    assert len(set(losses)) == 3  # each change does something, and both together something else
    assert all(abs(loss) < 1.0 for loss in losses)
    shown = CliRunner().invoke(cli, arguments[:-2], env={"COLUMNS": "200"})
    assert all(name in shown.output for name in by_name)
    refused = CliRunner().invoke(cli, [*arguments, "--compressed", str(model)])
    assert "--weights makes the models to compare; it does not go with --compressed" in refused.output
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"model.onnx"}
