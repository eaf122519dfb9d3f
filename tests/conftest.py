"""A conftest.py lets every test import the helpers of this folder."""

from hypothesis import settings

# No deadlines: the machine may be busy. `pytest --hypothesis-profile=thorough` searches longer.
settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")

# Programs that need torch, which the tests do not.
collect_ignore = ["gallery/regenerate.py", "random_models.py"]
