"""The version, which every rewritten model records, and where to report faults of it."""

__version__ = "0.1.0"

ISSUES = "https://github.com/onnx-attnq/onnx-attnq/issues"
"""As in pyproject.toml."""
