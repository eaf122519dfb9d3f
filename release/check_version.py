"""Whether a tag, the package's version and the changelog agree: `python release/check_version.py v0.1.0`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problem(tag: str) -> str | None:
    """What does not agree; None when all does."""
    text = (ROOT / "onnx_attnq" / "version.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "([^"]+)"', text)
    if version is None or tag != f"v{version[1]}":
        return f"the tag {tag} is not v{version and version[1]}, the version in onnx_attnq/version.py"
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if first is None or not re.fullmatch(re.escape(version[1]) + r" \(\d{4}-\d\d-\d\d\)", first[1]):
        return f"CHANGELOG.md has to begin with '## {version[1]} (YYYY-MM-DD)', not with '## {first and first[1]}'"
    recipe = (ROOT / "release" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    return None if f'version: "{version[1]}"' in recipe else "release/conda/recipe.yaml has another version"


if __name__ == "__main__":
    sys.exit(problem(sys.argv[1]))
