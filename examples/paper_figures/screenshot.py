"""One picture of a report at desktop and phone width, side by side: how docs/images/analyze-report.png was made.

onnx-attnq analyze MODEL --data FOLDER -o OUT
python screenshot.py OUT/report.html analyze-report.png    # needs chromium and Pillow
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PAGE = """<body style="margin:0;background:#888">
<iframe src="{url}" width="1180" height="1500" style="border:0;margin:10px"></iframe>
<iframe src="{url}" width="390" height="1500" style="border:0;margin:10px 0"></iframe>"""


def main(report: str, output: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "both.html"), Path(folder, "shot.png")
        page.write_text(PAGE.format(url=Path(report).resolve().as_uri()))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        window = ["--window-size=1612,1520", "--virtual-time-budget=10000", f"--screenshot={shot}"]
        subprocess.run(["chromium", *options, *window, page.as_uri()], check=True, capture_output=True)
        with Image.open(shot) as image:
            small = image.convert("RGB").resize(
                (image.width * 7 // 10, image.height * 7 // 10), Image.Resampling.LANCZOS
            )
        small.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
