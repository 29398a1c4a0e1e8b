"""What LiteRT's profiler reports about nodes that no delegate took."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mangling import crlf
from paths import FIXTURES

from device_harness.parsers.delegates import undelegated_nodes
from toolkit.base.errors import EnvironmentFault

RECORDED = (FIXTURES / "device/litert_profile_embedder.txt").read_text()
"""A RESHAPE and an EMBEDDING_LOOKUP as plain kernels, two nodes in the delegate; LiteRT 2.3.0."""


@pytest.mark.parametrize(
    "mangle", [lambda text: text, crlf, lambda text: f"INFO: something else\n\n{text}\nfarewell\n"]
)
def test_nodes_that_ran_without_a_delegate_are_counted_once(mangle: Callable[[str], str]) -> None:
    assert undelegated_nodes(mangle(RECORDED)) == 2


def test_a_row_that_stands_for_several_nodes_counts_as_often() -> None:
    row = next(line for line in RECORDED.splitlines() if "EMBEDDING_LOOKUP" in line)
    assert undelegated_nodes(RECORDED.replace(row, row.replace("    1   [", "    3   ["))) == 4


@pytest.mark.parametrize("end", ["Run Order", "Top by Computation Time", "Number of nodes executed"])
def test_a_summary_that_is_cut_short_counts_nothing(end: str) -> None:
    with pytest.raises(EnvironmentFault, match="wanted every one, and their number"):
        undelegated_nodes(RECORDED.partition(end)[0])


def test_a_row_that_cannot_be_read_is_no_delegated_node() -> None:
    with pytest.raises(EnvironmentFault, match="found 3 rows, wanted 4"):
        undelegated_nodes(RECORDED.replace("RESHAPE      0.000", "RESHAPE      -nan ", 1))
