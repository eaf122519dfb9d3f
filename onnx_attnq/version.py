"""The version, which every rewritten model records."""

from typing import Final

__version__: Final = "0.1.0"
