"""The other verbs as functions: what they return, what they refuse, and that they print nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from result_records import record_of
from tflite_mutants import Attack, bundle_with, copy_of

import gemma_edge
from device_harness.emulator.device import Emulator, EmulatorSettings
from toolkit.base.errors import BundleError, EnvironmentFault, QualityError, UsageError
from toolkit.bundle.manifest import EMBEDDER, MANIFEST_NAME
from toolkit.results.json_lines import dump_record, read_results


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is printed; this computer's own keys and caches are not used."""
    for name in ("HOME", "XDG_CONFIG_HOME", "GEMMA_EDGE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("ADB_VENDOR_KEYS", "ANDROID_SERIAL"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(isolation="folder")) as device:
        yield device


@pytest.mark.slow
def test_a_conversion_is_judged_unless_told_not_to_be(random_checkpoint: Path, tmp_path: Path) -> None:
    # Random weights are chaotic: int8 moves them by more than a fault would.
    with pytest.raises(QualityError, match="KL divergence"):
        gemma_edge.convert(random_checkpoint, tmp_path / "b", context=64)
    assert not (tmp_path / "b").exists()
    told: list[object] = []
    result = gemma_edge.convert(random_checkpoint, tmp_path / "b", quant="f32", context=64, on_report=told.append)
    assert result.report is not None and result.report.passed and told == [result.report]
    assert gemma_edge.convert(random_checkpoint, tmp_path / "c", context=64, verify=False).report is None


def test_a_conversion_takes_sizes_in_one_way(random_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sizes"):
        gemma_edge.convert(random_checkpoint, tmp_path / "b", sizes=["full"], budget="3GB")


def test_a_checkpoint_is_inspected_as_a_bundle_is(random_checkpoint: Path, random_bundle: Path) -> None:
    checkpoint, bundle = gemma_edge.inspect(random_checkpoint), gemma_edge.inspect(random_bundle)
    assert (checkpoint.kind, bundle.kind) == ("checkpoint", "bundle")
    assert checkpoint.sizes["small"].layers == bundle.sizes["small"].layers == 7


def test_a_check_names_every_fault(random_bundle: Path, tmp_path: Path) -> None:
    shard = tmp_path / "ple_00000.bin"
    shard.write_bytes((random_bundle / "ple_00000.bin").read_bytes()[:-5])
    assert gemma_edge.check(shard)


def test_a_bundle_is_pushed_once_and_then_is_there(random_bundle: Path, emulator: Emulator) -> None:
    first = gemma_edge.push(random_bundle, emulator.serial)
    second = gemma_edge.push(random_bundle, emulator.serial)
    assert first.bytes_sent == second.bytes_skipped > 0 == second.bytes_sent
    with pytest.raises(EnvironmentFault):
        gemma_edge.push(random_bundle, "127.0.0.1:1")


def test_a_bundle_with_a_strangers_graph_does_not_get_its_name_on_a_device(
    random_bundle: Path, emulator: Emulator, tmp_path: Path
) -> None:
    bundle = copy_of(random_bundle, tmp_path)
    graph = Attack(bundle, EMBEDDER).mutant(3)
    assert graph is not None
    target = "/data/local/tmp/strange"
    with bundle_with(bundle, EMBEDDER, graph) as strange:
        with pytest.raises(BundleError, match=EMBEDDER):
            gemma_edge.push(strange, emulator.serial, target=target)
        assert not {MANIFEST_NAME, EMBEDDER} & {path.name for path in emulator.path(target).iterdir()}
        gemma_edge.push(strange, emulator.serial, target=target, groups=["per_layer_embedding"])


def test_a_device_that_is_named_is_found(emulator: Emulator) -> None:
    assert emulator.serial in [device.serial for device in gemma_edge.devices([emulator.serial])]


@pytest.mark.slow
def test_a_model_is_measured_here_and_kept(random_bundle: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    (record,) = gemma_edge.bench(
        random_bundle, host=True, prompt_tokens=8, generated_tokens=4, repetitions=1, results=results
    )
    assert len(record.iterations) == 1
    assert read_results(results).records == (record,)


def test_results_are_shown_and_compared(tmp_path: Path) -> None:
    base, new = tmp_path / "base.jsonl", tmp_path / "new.jsonl"
    base.write_bytes(dump_record(record_of([10.0, 10.2, 9.9, 10.1, 10.0])))
    new.write_bytes(dump_record(record_of([12.0, 12.1, 11.8, 12.2, 12.0])))
    page = gemma_edge.report([base, new], tmp_path / "page.html")
    assert page.records == 2 and page.bytes == (tmp_path / "page.html").stat().st_size
    assert [test.verdict for test in gemma_edge.compare(base, new).tests] == ["faster"]
    with pytest.raises(UsageError, match="twice"):
        gemma_edge.report([base, base], tmp_path / "page.html")


@pytest.mark.parametrize("verb", [gemma_edge.export, gemma_edge.convert])
def test_tokens_for_a_drafter_that_is_not_fitted_are_wrong_use(verb: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens for a drafter: 700, and no drafter to fit; add --drafter fit"):
        verb(tmp_path / "from", tmp_path / "to", drafter_tokens=700)
