"""What the schemes do to the map of a trained vision transformer: which character is where in a picture of a line of text.

    python benchmarks/vision_map.py

The model is the recognizer of PP-OCRv4 (SVTR: convolutions, then attention over all positions), as the package
rapidocr-onnxruntime ships it (examples/trained_models fetches it). The pictures are lines of XQuAD's paragraphs, drawn.
Its map has a probability for each position and character. For each scheme: how many keys are pruned, the relative
error of the map (Frobenius, over all pictures) with a 95 % interval by bootstrap over pictures, and at how many
positions another character is read.
"""

from __future__ import annotations

import argparse
import json
import lzma
import runpy
import sys
import textwrap
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

from onnx_attnq.find import expose, find_sites
from onnx_attnq.rewriting import rewrite, uniform_plan
from onnx_attnq.scheme import QuantScheme, numerics, parse_scheme

EXAMPLES = Path(__file__).parent.parent / "examples"
SCHEMES = ("row-log", "row-log-mean", "row-log:threshold=.1", "row-log-mean:threshold=.1")
HEIGHT = 48  # of the pictures that the recognizer was trained with

Floats = npt.NDArray[np.float32]


def model_file() -> Path:
    trained = runpy.run_path(str(EXAMPLES / "trained_models" / "run.py"))
    (recognizer,) = (own for own in trained["MODELS"] if own.name == "pp-ocr")
    file: Path = trained["fetch"](recognizer)
    return file


def pictures(count: int, letters: int) -> list[Floats]:
    """Lines of text, (1, 3, HEIGHT, width) in [-1, 1], black on white."""
    data = json.loads(lzma.decompress((EXAMPLES / "data" / "xquad.en.json.xz").read_bytes()))
    texts = [p["context"] for article in data["data"] for p in article["paragraphs"]]
    font = ImageFont.load_default(size=32)
    found = []
    for text in texts[:count]:
        line = textwrap.wrap(text, letters)[0]
        image = Image.new("RGB", (int(font.getlength(line)) + 24, HEIGHT), "white")
        ImageDraw.Draw(image).text((12, 4), line, font=font, fill="black")
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None]
        found.append((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5))
    return found


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def rewritten(original: ir.Model, scheme: QuantScheme) -> ir.Model:
    model = original.clone()
    sites = find_sites(expose(model))
    rewrite(model, sites, uniform_plan(sites.exposed.structure_hash, [site.id for site in sites.sites], scheme))
    return model


def probabilities(original: ir.Model, images: list[Floats]) -> list[Floats]:
    """What the softmax of each attention gives for each picture: (..., keys)."""
    model = original.clone()
    softmax = [site.probabilities for site in find_sites(expose(model)).sites]
    model.graph.outputs[:] = softmax
    opened = session(model)
    (name,) = (given.name for given in opened.get_inputs())
    return [p for image in images for p in opened.run(None, {name: image})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--letters", type=int, default=80, help="most in a line")
    given = parser.parse_args()
    original, images = ir.load(model_file()), pictures(given.pictures, given.letters)

    def maps(model: ir.Model) -> list[Floats]:
        opened = session(model)
        (name,) = (given.name for given in opened.get_inputs())
        return [opened.run(None, {name: image})[0] for image in images]

    expected = maps(original)
    weighed = probabilities(original, images)
    squares = np.array([np.square(own).sum() for own in expected])
    random = np.random.default_rng(0)
    drawn = random.integers(len(images), size=(2000, len(images)))
    positions = sum(own.shape[1] for own in expected)
    print(
        f"{len(images)} pictures, {positions} positions, {min(p.shape[-1] for p in weighed)} to "
        f"{max(p.shape[-1] for p in weighed)} keys"
    )
    print("| scheme | pruned, % | relative error of the map | other characters, % |")
    print("|---|---|---|---|")
    for text in SCHEMES:
        scheme = parse_scheme(text)
        codes = [numerics.codes(numerics.relative(p.astype(np.float64), scheme), scheme) for p in weighed]
        pruned = sum(int((c == 0).sum()) for c in codes) / sum(c.size for c in codes)
        found = maps(rewritten(original, scheme))
        errors = np.array([np.square(a - b).sum() for a, b in zip(found, expected, strict=True)])
        low, high = np.quantile(np.sqrt(errors[drawn].sum(axis=1) / squares[drawn].sum(axis=1)), [0.025, 0.975])
        other = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in zip(found, expected, strict=True))
        error = np.sqrt(errors.sum() / squares.sum())
        print(
            f"| {text} | {100 * pruned:.0f} | {error:.4f} ({low:.4f} to {high:.4f}) | {100 * other / positions:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
