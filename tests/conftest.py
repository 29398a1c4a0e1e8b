"""For all tests: the same drawn examples every time, and skips that name the extra a test lacks."""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import settings

from toolkit.runtime import weight_cache

settings.register_profile("gemma-edge", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=5000)
settings.load_profile("gemma-edge")

EXTRAS = {"reference": ("torch", "transformers", "safetensors"), "lm": ("litert_lm",)}
"""Which modules the tests with a marker need; marker and extra have the same name."""


def pytest_configure(config: pytest.Config) -> None:
    # A run in the background, or under nohup, would have every child process ignore Ctrl-C or a hangup.
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, action)
    # zig takes half a minute to build C's library for a target, and would do so again for every program of every test.
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is not None:
        os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache.mkdir("zig")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {extra: [name for name in names if find_spec(name) is None] for extra, names in EXTRAS.items()}
    for item in items:
        for extra, names in missing.items():
            if names and item.get_closest_marker(extra) is not None:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(names)}: pip install -e '.[{extra}]'"))


@pytest.fixture(scope="session", autouse=True)
def own_turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that run tests at the same time do not wait for each other's benchmarks of this computer."""
    usual, own = weight_cache.default_directory, tmp_path_factory.mktemp("turns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "device_harness.adb.turns.default_directory", lambda: usual() if "GEMMA_EDGE_CACHE" in os.environ else own
        )
        yield
