"""Fixtures that tests and examples in docstrings share, and what the names in examples stand for."""

from collections.abc import Iterator

import pytest
from paths import FIXTURES

pytest_plugins = ["small_models"]


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
