"""A conftest.py lets every test import the helpers of this folder."""

# Programs that need torch, which the tests do not.
collect_ignore = ["gallery/regenerate.py", "random_models.py"]
