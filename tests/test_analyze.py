"""`onnx-attnq analyze` from the command line to the files that it writes."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from observed_models import attention, encoder, tokens
from studies import make_study

from onnx_attnq.cli.group import cli
from onnx_attnq.errors import AttnqError, InvalidData
from onnx_attnq.report.html_report import page_html, report_html
from onnx_attnq.report.tables import study_csv, study_json
from onnx_attnq.run import RunSettings
from onnx_attnq.scheme import GRAMMAR, preset
from onnx_attnq.study import (
    METRICS,
    SCHEME_METRICS,
    Study,
    analyze,
    findings,
    is_made_up,
    load_token_labels,
    scheme_label,
    separator_ids,
    summary,
    verdict,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def model(tmp_path):
    ir.save(encoder(), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "sentences"
    folder.mkdir()
    for k, lengths in enumerate([[5, 8], [11], [3, 4, 6]]):
        np.savez(folder / f"{k}.npz", **tokens(lengths, seed=k))
    return folder


SCHEMES = (preset(), preset(bits=2), preset("ji2021"), preset("ji2021", bits=2))
LAYERS, HEADS = 2, 2


@pytest.fixture(scope="module")
def report():
    """The report of a model with some layers and heads, at the most tokens that an example shows."""
    return report_html(make_study(layers=LAYERS, heads=HEADS, tokens=40, schemes=SCHEMES))


def page_of(study, limit=0.25):
    """The report without its pictures."""
    return page_html(study, limit, ())


def run(*arguments):
    return CliRunner().invoke(cli, ["analyze", *map(str, arguments)], catch_exceptions=True)


@pytest.mark.slow
def test_the_command_writes_the_report_and_the_numbers(model, data):
    result = run(model, "--data", data, "--data-name", "random words", "--separator-id", 2)
    assert result.exit_code == 0, result.output
    folder = model.with_name("tiny.analysis")
    assert {entry.name for entry in folder.iterdir()} == {"report.html", "numbers.json", "heads.csv", "study.npz"}
    assert {entry.name for entry in model.parent.iterdir()} == {"tiny.onnx", "sentences", "tiny.analysis"}
    output = " ".join(result.output.split())
    assert "tiny.onnx: 2 layers, 6 heads; 3 samples, 37 tokens of random words" in output
    assert re.search(
        r"At 3 bits \(row-log-mean, t=0.03\): \d+% pruned, context error 0\.\d\d; heads that resist", output
    )


@pytest.mark.slow
def test_the_pictures_are_written_alone_too(model, data):
    assert run(model, "--data", data, "--figures", "png").exit_code == 0
    figures = model.with_name("tiny.analysis") / "figures"
    assert (figures / "sparsity.png").read_bytes().startswith(b"\x89PNG")


def test_json_and_csv_have_the_numbers_of_the_study(model, data, tmp_path):
    result = run(
        model, "--data", data, "-o", tmp_path / "out", "--no-report", "--json", "-", "--scheme", "ji2021:bits=2"
    )
    assert result.exit_code == 0, result.output
    study = Study.load(tmp_path / "out" / "study.npz")
    numbers = json.loads(result.output)
    assert numbers == json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers == json.loads(json.dumps(study_json(study)))
    assert numbers["data"] == {"description": "sentences", "samples": 3, "tokens": 37}
    assert [scheme["bits"] for scheme in numbers["schemes"]] == [2]
    rows = list(csv.DictReader((tmp_path / "out" / "heads.csv").read_text().splitlines()))
    assert len(rows) == 6
    for row in rows:
        site = study.sites[int(row["layer"])]
        head = int(row["head"])
        found = numbers["sites"][int(row["layer"])]["heads"][head]
        for metric in METRICS:
            value = metric.of(site)[head]
            assert row[metric.key] == ("" if np.isnan(value) else repr(found[metric.key]))
        label = scheme_label(preset("ji2021", bits=2))
        for metric in SCHEME_METRICS:
            assert float(row[f"{label} {metric.key}"]) == metric.of(site.schemes[0])[head]
            assert found["schemes"][label][metric.key] == metric.of(site.schemes[0])[head]


def test_shards_that_are_combined_are_the_whole(model, data, tmp_path):
    parts = []
    for k in range(3):
        parts += ["--combine", tmp_path / f"part{k}" / "study.npz"]
        done = run(model, "--data", data / f"{k}.npz", "--data-name", "all", "--no-report", "-o", tmp_path / f"part{k}")
        assert done.exit_code == 0, done.output
    assert run(*parts, "--no-report", "-o", tmp_path / "combined").exit_code == 0
    assert run(model, "--data", data, "--data-name", "all", "--no-report", "-o", tmp_path / "whole").exit_code == 0
    combined, whole = (json.loads((tmp_path / name / "numbers.json").read_text()) for name in ("combined", "whole"))
    assert combined["data"] == whole["data"]
    for a, b in zip(combined["sites"], whole["sites"], strict=True):
        for x, y in zip(a["heads"], b["heads"], strict=True):
            assert x["histogram"] == y["histogram"]
            assert x["entropy"] == pytest.approx(y["entropy"], rel=1e-12)


def test_without_data_it_says_that_the_inputs_are_made_up(model):
    for more in ([], ["--data-name", "very real data"]):
        result = run(model, "--no-report", *more)
        assert result.exit_code == 0
        assert "inputs are made up" in result.output
        study = Study.load(model.with_name("tiny.analysis") / "study.npz")
        assert is_made_up(study)
    assert (
        run(
            "--combine", model.with_name("tiny.analysis") / "study.npz", "-o", model.with_name("c"), "--no-report"
        ).output.count("made up")
        == 1
    )
    warned, quiet = (page_of(dataclasses.replace(make_study(), data=data)) for data in (study.data, "sentences"))
    assert 'class="warning">The inputs are made up' in warned
    assert "made up" not in quiet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--scheme", "row-lag"], "unknown scheme 'row-lag'"),
        (["--scheme", "row-log:width=3"], GRAMMAR),
        (["--scheme", "row-log:bits=three"], "bits must be a number, not 'three'"),
        (["--include", "layer*"], "'layer*' matches no site; the sites are p0, p1"),
        (["--exclude", "p*"], "leave no site"),
        (["--tokenizer", "nowhere.json"], "nowhere.json does not exist"),
        (["-o", "/proc/nowhere"], "/proc/nowhere"),
    ],
)
def test_bad_usage_ends_in_one_line(model, arguments, message):
    result = run(model, "--no-report", *arguments)
    error = str(result.exception) if isinstance(result.exception, AttnqError) else result.output.splitlines()[-1]
    assert result.exit_code != 0
    assert message in error
    assert "\n" not in error


def test_a_model_or_studies_but_not_both(model, tmp_path):
    assert "either a MODEL or --combine" in run().output
    assert "either a MODEL or --combine" in run(model, "--combine", "x.npz").output
    assert "--combine needs -o" in run("--combine", tmp_path / "x.npz").output


def test_nothing_of_an_earlier_run_stands_beside_new_numbers(model, data):
    folder = model.with_name("tiny.analysis")
    assert run(model, "--data", data, "--no-report").exit_code == 0
    (folder / "report.html").write_text("of an earlier run")
    (folder / "figures").mkdir()
    (folder / "figures" / "sparsity.svg").write_text("of an earlier run")
    (folder / "notes.txt").write_text("mine")
    assert run(model, "--data", data, "--include", "p0", "--no-report").exit_code == 0
    assert {entry.name for entry in folder.iterdir()} == {
        "numbers.json",
        "heads.csv",
        "study.npz",
        "figures",
        "notes.txt",
    }
    assert list((folder / "figures").iterdir()) == []


def test_sites_can_be_chosen(model, data):
    assert run(model, "--data", data, "--exclude", "p0", "--no-report").exit_code == 0
    study = Study.load(model.with_name("tiny.analysis") / "study.npz")
    assert [site.site for site in study.sites] == ["p1"]


def test_without_the_extra_it_says_so_before_any_work(model, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else find_spec(name))
    result = run(model)
    assert "onnx-attnq[analyze]" in str(result.exception)
    assert not model.with_name("tiny.analysis").exists()


def test_the_numbers_need_neither_matplotlib_nor_jinja2(model, data):
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None\n"
        "from onnx_attnq.cli import main\n"
        f"main(['analyze', {str(model)!r}, '--data', {str(data)!r}, '--no-report'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_without_attention_says_what_was_found_instead(tmp_path):
    nodes = "logits = MatMul(x, w) context = Softmax(logits)"
    ir.save(attention(nodes, "float[2,4] x", w=np.ones((4, 3), np.float32)), tmp_path / "router.onnx")
    result = run(tmp_path / "router.onnx", "--no-report")
    assert result.exception.exit_code == 3
    assert "router.onnx: no attention found; Softmax" in str(result.exception)


def test_weights_on_disk_change_nothing(model, data, monkeypatch):
    samples = [tokens([5, 9])]
    before = analyze(model, samples, "x", run=RunSettings(1))
    monkeypatch.setattr("onnx_attnq.model.files.LARGE_FILE", 1)
    monkeypatch.setattr("onnx_attnq.model.weights_in_file.LARGE_TENSOR", 1)
    after = analyze(model, samples, "x", run=RunSettings(1))
    assert study_csv(before) == study_csv(after)


# The report


class _Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_without_scripts_or_network(report):
    page = _Page(report)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert page.links
    assert all(link.startswith(("data:image/svg+xml,", "data:image/png;base64,", "#")) for link in page.links)
    anchors = set(re.findall(r' id="([^"]+)"', report))
    assert {link[1:] for link in page.links if link.startswith("#")} <= anchors
    assert "@import" not in report
    assert "url(http" not in report


@pytest.mark.slow
def test_the_report_of_twelve_layers_is_smaller_than_five_megabytes():
    page = report_html(make_study(layers=12, heads=12, tokens=40, schemes=SCHEMES))
    assert len(page.encode()) < 5_000_000


def test_the_report_says_what_the_terminal_says_and_names_the_criterion(report):
    study = make_study(layers=LAYERS, heads=HEADS, tokens=40, schemes=(preset(), preset(bits=2)))
    text = " ".join("".join(_Page(report).text).split())
    for finding in findings(study):
        assert str(finding) in text
    assert "at most 0.25" in text
    assert "Not observed: layer.x: inside a Loop." in text


def test_names_cannot_break_out_of_the_report():
    study = dataclasses.replace(make_study(layers=1), model='<script>alert("x")</script>.onnx', example=None)
    page = page_of(study)
    assert "<script" not in page
    assert "script" not in _Page(page).tags


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_opens_in_a_browser_at_phone_and_desktop_width(report, tmp_path, width):
    # The page itself has no script; this one measures it.
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "page: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,"
        "images: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth).length,"
        "narrowest: Math.min(...[...document.images].map(i => i.clientWidth).filter(w => w)) }) })</script>"
    )
    # Headless Chromium has no windows narrower than 500; a frame is as narrow as it is told.
    (tmp_path / "report.html").write_text(report.replace("</body>", probe + "</body>"), encoding="utf-8")
    frame = (
        f'<iframe src=report.html width={width} height=800 onload="setTimeout(() => document.title ='
        'this.contentDocument.title, 1000)"></iframe>'
    )
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
         "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stdout[:500]
    seen = json.loads(title[1])
    assert seen["broken"] == 0
    assert seen["images"] > 20
    assert seen["page"] <= seen["window"] <= width  # nothing is wider than the page
    assert seen["narrowest"] > 300


# Findings, the verdict and labels


def errors_of(study, scheme, errors):
    """The study, with these context errors of its heads under one scheme."""
    sites = []
    for site, wanted in zip(study.sites, errors, strict=True):
        schemes = tuple(
            dataclasses.replace(s, context_error=np.asarray(wanted) * s.context_rows) if s.scheme == scheme else s
            for s in site.schemes
        )
        sites.append(dataclasses.replace(site, schemes=schemes))
    return dataclasses.replace(study, sites=tuple(sites))


def test_the_verdict_is_the_fewest_bits_within_the_limit_without_the_sites_beyond_it():
    three, two = preset("row-log"), preset("row-log", bits=2)
    study = make_study(schemes=(three, two, preset("prune-only")))
    study = errors_of(errors_of(study, three, [[0.1] * 3, [0.2] * 3]), two, [[0.4] * 3, [0.2] * 3])
    advice = verdict(study, 0.25)
    assert (advice.finding.scheme, advice.within_limit, advice.excluded) == (three, True, ())
    assert advice.command == "onnx-attnq tiny.onnx --scheme row-log"
    advice = verdict(study, 0.31)
    assert (advice.finding.scheme, advice.within_limit, advice.excluded) == (two, True, ("layer.0",))
    assert advice.command == "onnx-attnq tiny.onnx --scheme row-log:bits=2 --exclude layer.0"
    advice = verdict(study, 0.05)
    assert (advice.finding.scheme, advice.within_limit, advice.excluded) == (three, False, ())
    assert verdict(make_study(schemes=(preset("prune-only"),))) is None
    page = page_of(study, 0.31)
    assert "onnx-attnq tiny.onnx --scheme row-log:bits=2 --exclude layer.0" in page


def test_the_report_explains_a_smaller_mean_with_fewer_safe_heads():
    ours, theirs = preset("row-log"), preset("ji2021")
    study = make_study(schemes=(ours, theirs))
    study = errors_of(errors_of(study, ours, [[0.0, 0.0, 0.5]] * 2), theirs, [[0.2] * 3] * 2)
    assert "Why has row-log 3 bit, t=0.01 fewer safe heads than ji2021 3 bit, t=0.001" in " ".join(
        page_of(study).split()
    )
    assert 'id="odd"' not in page_of(study, 0.6)


def test_every_head_has_a_panel_with_its_map_and_its_costs(report):
    assert len(re.findall(r'<div class="head( shown)?"', report)) == LAYERS * HEADS
    assert len(re.findall(r'<div class="head shown"', report)) == 1
    assert report.count('<img src="data:image/png;base64,') == LAYERS * HEADS


def test_heads_resist_or_are_safe_by_the_error_of_their_context():
    study = make_study()
    for finding, scheme in zip(findings(study, 0.2), study.schemes, strict=True):
        errors = np.concatenate([site.of(scheme).mean_context_error for site in study.sites])
        assert len(finding.resisting) == (errors > 0.2).sum()
        assert len(finding.safe) == (errors <= 0.2).sum()
        assert [head.error for head in finding.heads] == sorted(errors, reverse=True)
        assert finding.context_error == pytest.approx(errors.mean())
        pruned = sum(site.of(scheme).pruned.sum() for site in study.sites)
        assert finding.pruned == pruned / sum(site.values.sum() for site in study.sites)
        assert finding._repr_html_().count("<tr>") == 7


def test_the_summary_has_a_line_for_each_scheme_and_for_what_is_missing():
    lines = summary(make_study()).splitlines()
    assert lines[0] == "tiny.onnx: 2 layers, 6 heads; 2 samples, 8 tokens of random 0"
    assert [line.split(" (")[0] for line in lines[1:4]] == ["At 3 bits", "At 2 bits", "Pruned only"]
    assert lines[4] == "not observed: layer.x: inside a Loop"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", "[CLS]\nĠthe\n[SEP]\n"),
        ("vocab.json", '{"[CLS]": 0, "Ġthe": 1, "[SEP]": 2}'),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"[CLS]": 0, "Ġthe": 1}}, "added_tokens": [{"id": 2, "content": "[SEP]"}]}',
        ),
        ("tokenizer.json", '{"model": {"vocab": [["[CLS]", 0.0], ["▁the", -1.5], ["[SEP]", 0.0]]}}'),
    ],
)  # fmt: skip
def test_labels_come_from_every_kind_of_vocabulary(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    labels = load_token_labels(tmp_path)
    assert labels == {0: "[CLS]", 1: "␣the", 2: "[SEP]"}
    assert separator_ids(labels) == (2,)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"model": {"vocab": 3}}', '{"a": "b"}'])
def test_what_is_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InvalidData, match=r"tokenizer\.json"):
        load_token_labels(tmp_path / "tokenizer.json")


@pytest.mark.slow
def test_twelve_layers_at_512_tokens_stay_under_a_gigabyte(tmp_path):
    ir.save(encoder(layers=12, heads=12, size=64), tmp_path / "large.onnx")
    np.savez(tmp_path / "long.npz", **tokens([512]))
    code = (
        "import atexit\n"
        "from onnx_attnq.cli import main\n"
        "from onnx_attnq.run.memory import peak_memory\n"
        "atexit.register(lambda: print(peak_memory()))\n"  # in megabytes
        "main()\n"
    )
    command = [sys.executable, "-c", code, "analyze", tmp_path / "large.onnx", "--data", tmp_path / "long.npz"]
    done = subprocess.run(
        [*command, "--no-report", "--threads", "1"], stdout=subprocess.PIPE, check=True, encoding="utf-8"
    )
    assert float(done.stdout.splitlines()[-1]) < 1000


def test_the_documentation_names_every_number():
    page = (Path(__file__).parent.parent / "docs" / "analyze.md").read_text(encoding="utf-8")
    for metric in (*METRICS, *SCHEME_METRICS):
        family = re.sub(r"^relative_", "", metric.key)
        family = re.sub(r"_(1e-\d|1e0)$", "_1e-6", re.sub(r"_\d\d$", "_50", family))
        assert f"`{family}`" in page, metric.key
