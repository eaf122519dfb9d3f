"""How Sphinx builds these pages; `make docs` runs it, with warnings as errors."""

from onnx_attnq.version import __version__

project = "onnx-attnq"
author = "the onnx-attnq authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"onnx-attnq {release}"

highlight_language = "text"  # blocks that name no language are what a program printed
smartquotes = False  # --data is an option, not a dash
default_role = "code"  # docstrings name objects in single backticks
autodoc_member_order = "bysource"
# Types of other packages are not linked: their indices are on the network, and the pages build without one.
nitpick_ignore_regex = [
    ("py:class", r"(click|collections|enum|numpy|np|npt|onnx_ir|onnxruntime|os|pathlib|typing)\..*"),
    ("py:class", r"(Any|Mapping|FloatArray|CodeArray|CanonicalJson)"),
    # What the public ones are made of.
    (
        "py:class",
        r"onnx_attnq\.(diff\.onnx_text|evaluate\.(bootstrap|task)|find\.(axis_walk|exposed|fused|score_ops|whole_attention)"
        r"|graph\.undo(_record)?|tune\.(choice|loss|search|sensitivity))\..*",
    ),
]
