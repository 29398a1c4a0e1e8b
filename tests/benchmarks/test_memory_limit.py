"""A PLE table larger than a run's memory limit: reading rows from flash completes, a table in memory does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import bench_memory, synthetic
from benchmarks.bench_memory import Contender
from benchmarks.session_run import SessionRequest, run_child
from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.emulator.memory import MemoryLimit
from toolkit.base.errors import EnvironmentFault

MB = 10**6
LIMIT = 256 * MB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tiny core with 300 MB of per-layer embeddings, as E2B's are to a phone's memory."""
    directory = tmp_path_factory.mktemp("limit")
    tiny = replace(synthetic.PRESETS["tiny"], ple_size=256)
    vocabulary = 300 * MB // (4 * tiny.num_layers * tiny.ple_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.PRESETS, "wide", replace(tiny, vocab_size=vocabulary, ple_vocab_size=vocabulary))
        synthetic.write_synthetic(directory / "checkpoint", "wide")
    recipes = {"text": "int8", "ple": "f32"}
    convert(ConvertRequest(directory / "checkpoint", directory / "bundle", recipes, context=512), gate=None)
    return directory / "bundle"


@pytest.fixture(autouse=True)
def may_limit() -> None:
    try:
        MemoryLimit(LIMIT).close()
    except EnvironmentFault as error:
        pytest.skip(str(error))


@pytest.mark.full
def test_a_bundle_runs_in_less_memory_than_its_ple_table_takes(bundle: Path, tmp_path: Path) -> None:
    request = SessionRequest(bundle, prompt=100, decode=50, cache=tmp_path, threads=1)
    run_child(replace(request, prompt=1, decode=1))
    flash = bench_memory.measure(Contender("flash", request, LIMIT))
    ram = bench_memory.measure(Contender("ram", replace(request, ple="ram"), LIMIT))
    assert flash.run is not None and ram.run is None
    assert flash.group_peak_bytes is not None and flash.group_peak_bytes <= LIMIT
    end = flash.run.memory["decode"]
    assert end["groups"]["per_layer_embedding"]["resident_bytes"] == 0  # type: ignore[index]
    assert 0 < end["effective_bytes"] < LIMIT  # type: ignore[operator]
