"""The top of a report at desktop and phone width: how docs/images/report-1280.png and report-390.png were made.

onnx-attnq analyze MODEL --data FOLDER -o OUT
python examples/paper_figures/screenshot.py OUT/report.html docs/images    # needs chromium and Pillow
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIZES = {1280: 1850, 390: 2150}
"""Widths, and how much of the height is shown, in pixels of the page."""

PAGE = '<body style="margin:0"><iframe src="{url}" width="{width}" height="{height}" style="border:0"></iframe>'
"""A frame, because a window of chromium is never as narrow as a phone."""


def main(report: str, folder: str, *heights: str) -> None:
    for width, height in dict(zip(SIZES, map(int, heights), strict=True) if heights else SIZES.items()).items():
        with tempfile.TemporaryDirectory() as temporary:
            page, shot = Path(temporary, "page.html"), Path(temporary, "shot.png")
            page.write_text(PAGE.format(url=Path(report).resolve().as_uri(), width=width, height=height))
            options = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--allow-file-access-from-files",
            ]
            window = [f"--window-size=1300,{height}", "--virtual-time-budget=10000", f"--screenshot={shot}"]
            subprocess.run(["chromium", *options, *window, page.as_uri()], check=True, capture_output=True)
            with Image.open(shot) as image:
                small = image.convert("RGB").crop((0, 0, width, height)).quantize(128, dither=Image.Dither.NONE)
            small.save(Path(folder, f"report-{width}.png"), optimize=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
