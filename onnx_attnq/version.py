"""The version, which every rewritten model records."""

__version__ = "0.1.0"
