"""benchmark_model as recorded, mangled and cut; what logs say of delegates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mangling import MANGLINGS, NAMES
from paths import FIXTURES

from device_harness.parsers.delegates import delegation, parse_delegates
from device_harness.runners.benchmark_model.parser import ModelTimes, parse_benchmark_model
from toolkit.base.errors import EnvironmentFault
from toolkit.results.record import Backend, Delegation

TEXT = (FIXTURES / "device" / "litert_benchmark_model_pixel.txt").read_text()
MEBIBYTE = 2**20
EXPECTED = ModelTimes(
    signature="prefill_1024",
    init_s=23.74473,
    warmup_first_s=7.44104,
    warmup_average_s=7.44104,
    inference_s=7.4302,
    inference_min_s=7.4164,
    inference_max_s=7.44886,
    inference_stddev_s=0.00992,
    runs=10,
    init_bytes=int(6391.74 * MEBIBYTE),
    overall_bytes=int(6391.74 * MEBIBYTE),
    peak_bytes=None,
)
LOG = (
    "INFO: Replacing 1873 out of 1901 node(s) with delegate (LITERT_CL) node, yielding 3 partitions for subgraph 0.\n"
    "INFO: Replacing 20 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions for the "
    "whole graph.\n"
)


@pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as recorded", *NAMES])
def test_results_are_read_however_they_come(mangle: Callable[[str], str]) -> None:
    assert parse_benchmark_model(mangle(TEXT)) == EXPECTED


def test_a_cut_at_any_byte_is_an_error_or_only_what_was_whole() -> None:
    for end in range(len(TEXT)):
        try:
            found = parse_benchmark_model(TEXT[:end])
        except EnvironmentFault:
            continue
        assert (found.init_s, found.inference_s, found.inference_max_s) == (23.74473, 7.4302, 7.44886)
        assert found.inference_stddev_s in (None, 0.00992)
        assert found.overall_bytes in (None, EXPECTED.overall_bytes)


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("gpu", Delegation(1873, 1901, "the log")),
        ("npu", Delegation(1873, 1901, "the log")),
        ("cpu", Delegation(20, 31, "the log")),
    ],
)
@pytest.mark.parametrize("mangle", [lambda text: text, *MANGLINGS], ids=["as written", *NAMES])
def test_delegated_nodes_are_those_of_the_backend(
    backend: Backend, expected: Delegation, mangle: Callable[[str], str]
) -> None:
    assert delegation(parse_delegates(mangle(LOG)), backend) == expected


def test_a_silent_fallback_to_the_cpu_shows_as_no_delegated_node() -> None:
    assert delegation(parse_delegates(LOG.splitlines(keepends=True)[1]), "gpu") == Delegation(0, 31, "the log")


def test_a_log_that_says_nothing_gives_no_delegation() -> None:
    assert delegation(parse_delegates(TEXT), "gpu") is None
