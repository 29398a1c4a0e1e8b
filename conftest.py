"""Fixtures that tests and examples in docstrings share, and what the names in examples stand for."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from paths import FIXTURES

pytest_plugins = ["small_models"]

# Scripts of peers, which run in environments of their own; examples in all others' docstrings are run.
_PEERS = {"benchmarks/gguf_peer.py": "gguf", "benchmarks/llama_run.py": "llama_cpp"}
collect_ignore = [path for path, package in _PEERS.items() if find_spec(package) is None]


@pytest.fixture(autouse=True)
def _names_in_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, object]) -> Iterator[None]:
    """`checkpoint`, `bundle` and `model` (loaded), of random weights, recorded `results` and an empty `folder`."""
    if not (isinstance(request.node, pytest.DoctestItem) and request.node.name.startswith("gemma_edge.api.")):
        yield
        return
    import gemma_edge

    bundle = request.getfixturevalue("random_bundle")
    checkpoint = request.getfixturevalue("random_checkpoint")
    with gemma_edge.load(bundle, weight_cache="memory") as model:
        doctest_namespace |= {"checkpoint": checkpoint, "bundle": bundle, "model": model}
        doctest_namespace |= {"results": FIXTURES / "results.jsonl", "folder": request.getfixturevalue("tmp_path")}
        yield
