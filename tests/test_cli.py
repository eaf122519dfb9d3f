"""The command line: exit codes, JSON keys, one clear line for each mistake, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from attention_forms import FORMS
from look_alikes import LOOK_ALIKES
from small_graphs import parse

import onnx_attnq
from onnx_attnq.cli import main
from onnx_attnq.model import load, save
from onnx_attnq.rewriting import read_record
from onnx_attnq.rewriting.record import write_record

ALBERT = Path(__file__).parent / "gallery" / "albert__optimum.onnx"
TEXT = FORMS["scale and additive mask"].text


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save(parse(TEXT), path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]


# --- exit code 0


def test_the_model_is_written_beside_its_input_which_stays(model: Path, run: Run) -> None:
    before = model.read_bytes()
    code, out, err = run(model)
    assert (code, err) == (0, "")
    assert model.read_bytes() == before
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.attnq.onnx", "model.onnx"]
    assert "1 of 1 sites" in out
    assert "Verified" in out
    assert str(model.with_name("model.attnq.onnx")) in out


@pytest.mark.parametrize("external_data", ["copy", "keep"])
def test_the_size_of_external_data_counts(external_data: str, tmp_path: Path, run: Run) -> None:
    proto = small_models.parse(small_models.ATTENTION, weight=np.zeros((8, 8), np.float32))
    path = small_models.write_external(proto, tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(3_000_000))
    code, out, _ = run(path, "--no-verify", "--external-data", external_data)
    assert code == 0
    assert re.search(r"size +3\.0 MB +" + {"copy": r"0\.0 MB", "keep": r"3\.0 MB"}[external_data], out)


def test_compress_by_its_name_does_the_same(model: Path, run: Run) -> None:
    assert run("compress", model, "-o", model.with_name("a.onnx"))[0] == 0
    assert run(model, "-o", model.with_name("b.onnx"))[0] == 0
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()


def test_quiet_when_piped(model: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "onnx_attnq", str(model), "--json", "-"], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert json.loads(result.stdout)["verification"]["passed"] is True
    assert "\x1b" not in result.stdout


def test_an_installation_without_the_native_library_says_so(model: Path, tmp_path: Path) -> None:
    package = Path(onnx_attnq.__file__).parent
    shutil.copytree(package, tmp_path / "onnx_attnq", ignore=shutil.ignore_patterns("*.so", "*.dylib", "*.dll"))
    # Without site (-S), which would find an editable installation first, the library's folder has to be named.
    paths = os.pathsep.join([str(tmp_path), sysconfig.get_path("purelib")])
    command = [sys.executable, "-S", "-m", "onnx_attnq", str(model)]
    result = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Native library: not built" in result.stdout


def test_json_has_the_keys_that_are_promised(model: Path, run: Run) -> None:
    code, out, _ = run(model, "--json", "-")
    data = json.loads(out)
    assert code == 0
    assert set(data) == {
        "model",
        "output",
        "scheme",
        "sites",
        "rejected",
        "verification",
        "native_verification",
        "refused_samples",
        "warnings",
    }
    assert set(data["model"]) == {"path", "sha256", "opset"}
    assert set(data["output"]) == {"path", "sha256"}
    assert set(data["scheme"]) == {
        "reference",
        "normalize",
        "threshold",
        "bits",
        "spacing",
        "rounding",
        "pruned",
        "name",
    }
    assert {"id", "op_type", "node", "scope", "form"} <= set(data["sites"][0])
    assert data["sites"][0]["form"] in ("softmax", "probabilities", "attention")
    verification = data["verification"]
    assert {"passed", "notes", "rewrite", "implementation", "deviation", "pruned"} <= set(verification)
    assert {"missing", "wrong_sites", "other_weights", "outputs"} <= set(verification["rewrite"])
    assert {"sites_checked", "codes_checked", "disagreements"} <= set(verification["implementation"])
    assert {"max_abs", "mean_abs", "cosine", "top1_agreement"} <= set(verification["deviation"]["y"])
    assert list(verification["pruned"]) == [data["sites"][0]["id"]]


BAKED = (
    FORMS["plain"]
    .text.replace("{", "{ size = Constant<value_ints=[1,2,9,4]>() q0 = Reshape(q, size)", 1)
    .replace("MatMul(q,", "MatMul(q0,")
)
"""A model that declares any length, but was traced with one row of nine tokens."""


def test_samples_that_the_original_refuses_are_left_out(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "baked.onnx"
    save(parse(BAKED), path)
    code, out, _ = run(path, "--json", tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert code == 0
    assert (data["verification"]["samples"], len(data["refused_samples"])) == (1, 3)
    assert "3 of 4 made-up samples left out" in out
    for command in ("verify", "bisect"):
        code, out, err = run(command, path, tmp_path / "baked.attnq.onnx")
        assert code == 0, err
        assert "made-up samples left out" in out


def test_a_model_that_runs_on_no_sample_needs_data(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "baked.onnx"
    save(parse(BAKED.replace("[1,2,9,4]", "[5,2,3,4]")), path)
    code, _, err = run(path)
    assert code == 2
    assert "runs on none of the samples that were made up; give it data" in one_line(err)
    assert run(path, "--no-verify")[0] == 0


def test_inspect_json_has_the_keys_that_are_promised(model: Path, run: Run) -> None:
    data = json.loads(run("inspect", model, "--json", "-")[1])
    assert set(data) == {"model", "sites", "rejected"}
    run(model, "--scheme", "ji2021")
    data = json.loads(run("inspect", model.with_name("model.attnq.onnx"), "--json", "-")[1])
    assert {"model", "sites", "rejected", "scheme"} <= set(data)
    assert data["scheme"]["name"] == "ji2021"
    assert len(data["sites"]) == 1
    assert data["rejected"] == []


def test_rejections_are_in_the_json(tmp_path: Path, run: Run) -> None:
    save(parse(LOOK_ALIKES["classifier"][0]), tmp_path / "m.onnx")
    data = json.loads(run("inspect", tmp_path / "m.onnx", "--json", "-")[1])
    assert [set(r) for r in data["rejected"]] == [{"node", "op_type", "scope", "reason"}]


def test_inspect_shows_a_rewritten_model_as_such(model: Path, run: Run) -> None:
    run(model, "--scheme", "ji2021", "--bits", "4")
    code, out, _ = run("inspect", model.with_name("model.attnq.onnx"))
    assert code == 0
    assert "rewritten by onnx-attnq" in out
    assert re.search(r"Softmax_p +\w+ +ji2021 +4 +0\.001", out)
    assert "no attention found" not in out
    assert "attention site" not in out


@pytest.mark.parametrize("options", [["--no-verify"], ["--no-verify", "--inline"]])
def test_inspect_of_a_rewritten_model_declines_nothing_of_what_was_put_in(
    options: list[str], tmp_path: Path, run: Run
) -> None:
    shutil.copy(ALBERT, tmp_path / "m.onnx")
    assert run(tmp_path / "m.onnx", *options)[0] == 0
    code, out, err = run("inspect", tmp_path / "m.attnq.onnx")
    assert (code, err) == (0, "")
    assert "row-log-mean" in out
    assert "declined" not in out


def test_inspect_of_a_rewritten_model_lists_the_sites_that_were_left_alone(tmp_path: Path, run: Run) -> None:
    shutil.copy(ALBERT, tmp_path / "m.onnx")
    ids = [site["id"] for site in json.loads(run("inspect", tmp_path / "m.onnx", "--json", "-")[1])["sites"]]
    assert run(tmp_path / "m.onnx", "--no-verify", "--exclude", ids[0])[0] == 0
    done, left = run("inspect", tmp_path / "m.attnq.onnx")[1].split("m.attnq.onnx: 1 attention site left alone\n")
    assert ids[0] not in done
    assert ids[0] in left
    assert not any(one in left for one in ids[1:])


def test_explain_tells_the_story_of_one_softmax(model: Path, run: Run) -> None:
    code, out, _ = run("inspect", model, "--explain", "Softmax_p")
    assert code == 0
    assert "scores: MatMul 'MatMul_s' multiplies query and key" in out
    assert out.endswith("attention: one op replaces the products and the softmax\n")
    code, _, err = run("inspect", model, "--explain", "nowhere")
    assert code == 2
    assert "'nowhere'" in err


@pytest.mark.parametrize("options", [[], ["--inline"]])
def test_explain_of_a_rewritten_model_looks_at_the_original(options: list[str], tmp_path: Path, run: Run) -> None:
    shutil.copy(ALBERT, tmp_path / "m.onnx")
    done, left = (site["id"] for site in json.loads(run("inspect", tmp_path / "m.onnx", "--json", "-")[1])["sites"])
    assert run(tmp_path / "m.onnx", "--no-verify", "--bits", "2", "--exclude", left, *options)[0] == 0
    rewritten = tmp_path / "m.attnq.onnx"
    story = run("inspect", tmp_path / "m.onnx", "--explain", done)[1].splitlines()
    now = run("inspect", rewritten, "--explain", done)[1].splitlines()
    replaced = "the softmax; the products stay" if options else "the products and the softmax"
    assert now[:-1] == story[:-1]
    assert now[-1] == f"rewritten by onnx-attnq: one op replaces {replaced}; row-log-mean (2 bits, threshold 0.03)"
    assert run("inspect", rewritten, "--explain", left) == run("inspect", tmp_path / "m.onnx", "--explain", left)
    ours = {node.name for node in onnx.load(rewritten).graph.node} - {n.name for n in onnx.load(ALBERT).graph.node}
    code, out, _ = run("inspect", rewritten, "--explain", min(ours - {""}))
    assert (code, out.startswith("put in by onnx-attnq")) == (0, True)
    for name in ("nowhere", onnx.load(ALBERT).graph.node[-1].name):
        assert run("inspect", rewritten, "--explain", name)[0] == 2


def test_a_rewrite_that_cannot_be_undone_is_looked_at_without_what_was_put_in(tmp_path: Path, run: Run) -> None:
    shutil.copy(ALBERT, tmp_path / "m.onnx")
    done, left = (site["id"] for site in json.loads(run("inspect", tmp_path / "m.onnx", "--json", "-")[1])["sites"])
    assert run(tmp_path / "m.onnx", "--no-verify", "--exclude", left)[0] == 0
    model = load(tmp_path / "m.attnq.onnx")
    rewritten = tmp_path / "rewritten.onnx"
    record = read_record(model)
    assert record is not None
    write_record(model, dataclasses.replace(record, undo=None, irreversible="it is too large to be kept"))
    save(model, rewritten)
    out = run("inspect", rewritten)[1]
    assert "cannot be reverted: it is too large to be kept" in out
    assert "1 attention site left alone" in out
    assert "declined" not in out
    assert run("inspect", rewritten, "--explain", done)[1].startswith("rewritten by onnx-attnq: one op replaces")
    assert run("inspect", rewritten, "--explain", left) == run("inspect", tmp_path / "m.onnx", "--explain", left)


def test_explain_ends_with_the_reason_where_the_walk_alone_gives_none(tmp_path: Path, run: Run) -> None:
    model = parse(LOOK_ALIKES["pointer: query and keys, but the probabilities are the answer"][0])
    for node in model.graph:
        node.name = None
    save(model, tmp_path / "m.onnx")
    code, out, _ = run("inspect", tmp_path / "m.onnx", "--explain", "p")
    assert code == 0
    assert out.splitlines() == ["scores: MatMul 's' multiplies query and key", "declined: no product with V follows it"]


def test_inspect_shows_the_sizes_that_are_known(tmp_path: Path, run: Run) -> None:
    save(parse(TEXT, inferred=True), tmp_path / "m.onnx")
    assert "B x 2 x L x L" in run("inspect", tmp_path / "m.onnx")[1]


def test_dry_run_writes_nothing(model: Path, run: Run) -> None:
    code, out, _ = run(model, "--dry-run")
    assert code == 0
    assert "Nothing was written" in out
    assert list(model.parent.iterdir()) == [model]


def test_a_plan_that_was_written_can_be_edited_and_applied(model: Path, run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert run(model, "--write-plan", plan, "--dry-run")[0] == 0
    text = plan.read_text()
    assert run(model, "--plan", plan, "-o", tmp_path / "a.onnx")[0] == 0
    assert run(model, "-o", tmp_path / "b.onnx")[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    plan.write_text(text.replace('"bits": 3', '"bits": 2'))
    data = json.loads(run(model, "--plan", plan, "-o", tmp_path / "c.onnx", "--json", "-")[1])
    assert data["scheme"]["bits"] == 2


def test_names_with_brackets_are_shown_as_they_are(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "m[bold].onnx"
    graph = parse(TEXT)
    next(node for node in graph.graph if node.op_type == "Softmax").name = "layer[red]/[/x]:smile:"
    save(graph, path)
    for arguments in ((path,), ("inspect", path)):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert "m[bold]" in out
        assert "layer[red]/[/x]:smile:" in out


# --- exit code 1


def test_too_much_deviation_fails(model: Path, run: Run) -> None:
    code, out, _ = run(model, "--max-deviation", "max_abs=1e-9")
    assert code == 1
    assert "failed: output 'y': max_abs is" in out
    assert "Not verified" in out


def test_a_deviation_within_the_limit_passes(model: Path, run: Run) -> None:
    assert run(model, "--max-deviation", "max_abs=100", "--max-deviation", "cosine=-1")[0] == 0


# --- exit code 3


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--json", "-"]])
def test_nothing_to_rewrite_is_no_success(options: list[str], tmp_path: Path, run: Run) -> None:
    path = tmp_path / "m.onnx"
    save(parse(LOOK_ALIKES["classifier"][0]), path)
    code, out, err = run(path, *options)
    assert code == 3
    assert out == ""
    assert "no attention found; Softmax 'Softmax_p'" in err
    assert list(tmp_path.iterdir()) == [path]


def test_everything_excluded_is_no_success(model: Path, run: Run) -> None:
    code, _, err = run(model, "--exclude", "*")
    assert code == 3
    assert "leaves every site" in err


# --- exit code 2: one line each, which names the file, the option or the node


def one_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert "Traceback" not in err
    return lines[-1]


BAD_OPTIONS = [
    (["--scheme", "rowlog"], "rowlog"),
    (["--bits", "9"], "bits must be a whole number from 1 to 8, not 9"),
    (["--threshold", "1.5"], "threshold"),
    (["--scheme", "boolean", "--bits", "3"], "1 bit"),
    (["--scheme", "identity", "--threshold", "0.1"], "takes no threshold"),
    (["--include", "layer*"], "--include 'layer*' matches no site"),
    (["--exclude", "layer*"], "--exclude 'layer*' matches no site"),
    (["--max-deviation", "max_abs"], "is no limit"),
    (["--max-deviation", "max_rel=1"], "is no limit"),
    (["--max-deviation", "max_abs=nan"], "is no limit"),
    (["--max-deviation", "max_abs=1", "--no-verify"], "--no-verify"),
    (["--max-deviation", "max_abs=1", "--dry-run"], "--dry-run"),
    (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
    (["--plan", "nowhere.json"], "nowhere.json"),
    (["--samples", "0"], "--samples"),
    (["--threads", "0"], "--threads"),
    (["--no-such-option"], "--no-such-option"),
    (["-o", "/nonexistent/out.onnx"], "/nonexistent/out.onnx"),
    (["--external-data", "move"], "move"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_bad_option_is_one_line(options: list[str], message: str, model: Path, run: Run) -> None:
    code, out, err = run(model, *options)
    assert code == 2
    assert message in one_line(err)
    assert out == ""
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize(
    "option", [["--include", "*"], ["--scheme", "row-log"], ["--bits", "3"], ["--threshold", "0.1"]]
)
def test_a_plan_leaves_nothing_for_other_options_to_say(
    option: list[str], model: Path, run: Run, tmp_path: Path
) -> None:
    run(model, "--write-plan", tmp_path / "plan.json", "--dry-run")
    code, _, err = run(model, "--plan", tmp_path / "plan.json", *option)
    assert code == 2
    assert option[0] in one_line(err)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def without_data(path: Path) -> None:
    proto = onnx.load(path)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "w"))
    onnx.save(proto, path, save_as_external_data=True, location="gone.data", size_threshold=0)
    (path.parent / "gone.data").unlink()


def of_opset(version: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        proto = onnx.load(path)
        proto.opset_import[0].version = version
        path.write_bytes(proto.SerializeToString())

    return damage


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "does not exist"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "text": (lambda p: p.write_text("not a model " * 20), "not an ONNX file"),
    "truncated": (truncated, "truncated"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "folder"),  # compress takes one, but not an empty one
    "external data missing": (without_data, "gone.data"),
    "opset too old": (of_opset(6), "opset"),
    "opset of the future": (of_opset(999), "opset"),
}


@pytest.mark.parametrize("command", [[], ["inspect"]], ids=["compress", "inspect"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_one_line_that_names_it(case: str, command: list[str], model: Path, run: Run) -> None:
    damage, message = DAMAGED[case]
    damage(model)
    code, out, err = run(*command, model)
    assert code == 2
    assert message in one_line(err)
    assert str(model) in one_line(err)
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not model.with_name("model.attnq.onnx").exists()


DATA: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "wrong name": ({"query": np.zeros((1, 2, 3, 4), np.float32)}, "'q' is missing"),
    "wrong type": ({"q": np.zeros((1, 2, 3, 4))}, "wrong type"),
    "wrong shape": ({"q": np.zeros((1, 3, 3, 4), np.float32)}, "wrong shape"),
    "wrong number of axes": ({"q": np.zeros((1, 2, 4), np.float32)}, "wrong shape"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_does_not_fit_is_one_line(case: str, model: Path, run: Run, tmp_path: Path) -> None:
    good = {name: np.zeros((1, 2, 3, 4), np.float32) for name in "qkv"} | {"m": np.zeros((1, 1, 1, 3), np.float32)}
    change, message = DATA[case]
    data = {**good, **change}
    if case == "wrong name":
        del data["q"]
    np.savez(tmp_path / "sample.npz", **data)
    code, _, err = run(model, "--data", tmp_path / "sample.npz")
    assert code == 2
    assert message in one_line(err)
    assert "sample.npz" in one_line(err)
    assert not model.with_name("model.attnq.onnx").exists()
    np.savez(tmp_path / "sample.npz", **good)
    assert run(model, "--data", tmp_path / "sample.npz")[0] == 0


def test_a_second_rewrite_is_refused(model: Path, run: Run) -> None:
    run(model)
    output = model.with_name("model.attnq.onnx")
    before = output.read_bytes()
    code, _, err = run(output)
    assert code == 2
    assert one_line(err).endswith("rewritten already; start from the original")
    assert str(output) in err
    assert output.read_bytes() == before
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.attnq.onnx", "model.onnx"]


def test_the_input_is_never_overwritten(model: Path, run: Run) -> None:
    before = model.read_bytes()
    code, _, err = run(model, "-o", model)
    assert code == 2
    assert "never overwritten" in one_line(err)
    assert model.read_bytes() == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_not_writable_is_one_line(model: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    code, _, err = run(model, "-o", folder / "out.onnx")
    assert code == 2
    assert "Permission denied" in one_line(err)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format"),
        ({"structure_hash": "c0ffee"}, "was made for the model"),
        ({"sites": []}, "no entry for the site 'Softmax_p'"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_a_plan_that_does_not_fit_is_one_line(
    change: dict[str, object], message: str, model: Path, run: Run, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    run(model, "--write-plan", plan, "--dry-run")
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change))
    code, _, err = run(model, "--plan", plan)
    assert code == 2
    assert message in one_line(err)
    assert "plan" in one_line(err)


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    code, out, err = run()
    assert "Usage: onnx-attnq" in out + err
    assert run("--help")[0] == 0
    assert run("--version")[1].startswith("onnx-attnq ")
    assert code in (0, 2)


def test_a_model_named_like_a_command_is_reached_by_a_path(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(parse(TEXT), tmp_path / "model.onnx")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "inspect")
    monkeypatch.chdir(tmp_path)
    assert run("./inspect", "-o", "out.onnx")[0] == 0


def test_options_may_stand_before_the_model(model: Path, run: Run) -> None:
    assert run("--bits", "2", model)[0] == 0
    (record,) = ir.load(model.with_name("model.attnq.onnx")).metadata_props.values()
    assert json.loads(record)["sites"][0]["scheme"]["bits"] == 2
