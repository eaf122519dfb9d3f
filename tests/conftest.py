"""Empty but for this line: a conftest.py lets every test import the helpers of this folder."""
