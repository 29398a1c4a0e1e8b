"""One way to draw examples for all tests: the same ones every time, however busy the machine."""

from hypothesis import settings

settings.register_profile("gemma-edge", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("gemma-edge")
