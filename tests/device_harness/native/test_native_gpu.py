"""The program in C on the GPU: its numbers, a benchmark's record, and the one error where there is no GPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from gpu_process import driver
from native_runner import NativeRunner, library_path, litert_path, runner_path
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from device_harness.bench.run import BenchRequest, BenchSettings, bench
from device_harness.machines.host import Host
from device_harness.native.answer import DeviceConversation, DeviceSettings
from device_harness.native.client import NativeClient, Processor
from device_harness.native.library import LibraryChoice
from device_harness.native.place import place_runner
from device_harness.runners.interface import Workload
from toolkit.base.errors import BundleError, EnvironmentFault
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import Medium, read_image, read_sound
from toolkit.runtime.session import Session, SessionSettings
from toolkit.tflite.reader import read_tflite

SAMPLES = EXAMPLE / "samples"
GPU = Processor("gpu")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in driver().environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VK_ICD_FILENAMES", "VK_DRIVER_FILES"):
        monkeypatch.setenv(name, "/nowhere.json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float32, two sizes, both towers."""
    path = tmp_path_factory.mktemp("native_gpu") / "bundle"
    roles = dict.fromkeys(("text", "ple", "vision", "audio"), "f32")
    request = ConvertRequest(EXAMPLE, path, roles, sizes=("large", "small"), context=512, prefill_sizes=(16,))
    convert(request, gate=None)
    return path


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """A random float model with one prefill, of few ops."""
    path = tmp_path_factory.mktemp("native_gpu_small") / "bundle"
    request = ConvertRequest(random_checkpoint, path, {"text": "f32", "ple": "f32"}, context=64, prefill_sizes=(16,))
    convert(request, gate=None)
    return path


@pytest.fixture(params=["libLiteRt", pytest.param("liblitert-lm", marks=pytest.mark.lm)])
def library(request: pytest.FixtureRequest) -> Path:
    """LiteRT's own library, with its delegate beside it, and the one of Google's engine, which has it inside."""
    return litert_path() if request.param == "libLiteRt" else library_path("litert_lm", "liblitert-lm.so")


@pytest.mark.full
@pytest.mark.gpu
@pytest.mark.usefixtures("on_gpu")
def test_a_benchmark_names_the_adapter_and_counts_the_nodes(small_bundle: Path) -> None:
    workload = Workload(prompt_tokens=9, generated_tokens=2, backend="gpu")
    (record,) = bench(Host(), BenchRequest(small_bundle, "native", workload=workload), BenchSettings(repetitions=1))
    graphs = read_tflite(small_bundle / "text_decoder.tflite")
    nodes = sum(len(graphs.graph(name).operators) for name in ("decode", "prefill_16"))
    assert record.delegation is not None
    assert (record.delegation.delegated_nodes, record.delegation.nodes) == (nodes, nodes)
    assert "with the GPU alone, adapter " in record.delegation.source and "adapter None" not in record.delegation.source
    assert [binary.name.split("-")[0] for binary in record.binaries] == [
        "bundle_runner", "libLiteRt.so", "libLiteRtWebGpuAccelerator.so",
    ]  # fmt: skip
    assert all(value > 0 for test in record.tests for value in record.values(test))


@pytest.mark.gpu
@pytest.mark.full
@pytest.mark.usefixtures("on_gpu")
def test_logits_are_those_of_the_cpu_over_sizes_and_truncations(bundle: Path, library: Path) -> None:
    ids = [2, *(int(token) for token in np.random.default_rng(0).integers(0, 3000, 30))]
    with (
        Session(Bundle(bundle), SessionSettings(threads=1, weight_cache="memory")) as session,
        NativeRunner([runner_path(), library]) as native,
    ):
        for activations, bound in (("fp32", 2e-4), ("fp16", 2e-2)):
            assert native.ok("open", bundle=str(bundle), backend="gpu", activations=activations)["backend"] == "gpu"
            for size, position, tokens in (("large", 0, ids[:20]), ("small", 20, ids[20:]), ("large", 7, ids[7:9])):
                session.use(size)
                native.ok("size", name=size)
                session.truncate(position)
                native.ok("truncate", position=position)
                expected, found = session.feed(tokens), native.logits(tokens)
                assert abs(found - expected).max() < bound * abs(expected).max() and (found != expected).any()
            native.ok("close")
            session.truncate(0)


@pytest.mark.gpu
@pytest.mark.full
@pytest.mark.usefixtures("on_gpu")
def test_images_and_sounds_are_embedded_as_on_the_cpu(bundle: Path) -> None:
    manifest = Bundle(bundle).manifest
    assert manifest.vision is not None and manifest.audio is not None
    media = [read_image(SAMPLES / "red-circle.png", manifest.vision), *read_sound(SAMPLES / "yes.wav", manifest.audio)]
    found = []
    for backend in ("cpu", "gpu"):
        with NativeRunner([runner_path(), litert_path()]) as native:
            native.ok("open", bundle=str(bundle), backend=backend)
            found.append([embeddings(native, medium) for medium in media])
    for expected, others in zip(*found, strict=True):
        assert 0 < abs(others - expected).max() < 2e-4 * abs(expected).max()


def embeddings(native: NativeRunner, medium: Medium) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if medium.group == "vision":
        data = medium.values.astype(np.uint8).tobytes()
        return native.floats(native.ok("image", data, key=medium.key, bytes=len(data), rows=True))
    assert medium.mask is not None
    data = medium.values.astype("<f4").tobytes() + medium.mask.astype(np.uint8).tobytes()
    counts = {"bytes": len(data), "frames": len(medium.values)}
    return native.floats(native.ok("sound", data, key=medium.key, rows=True, **counts))


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_there_is_one_error(small_bundle: Path) -> None:
    request = BenchRequest(small_bundle, "native", workload=Workload(4, 2, backend="gpu"))
    with pytest.raises(EnvironmentFault, match=r"^--backend gpu: no GPU that LiteRT can use on this machine; install"):
        list(bench(Host(), request, BenchSettings(repetitions=1)))
    with NativeClient(Host(), place_runner(Host(), with_gpu=True)) as client:
        with pytest.raises(EnvironmentFault, match=r"^--backend gpu: no GPU that LiteRT can use on this machine"):
            client.open(str(small_bundle), processor=GPU)
        assert client.open(str(small_bundle)).weight_cache == "memory", "the program goes on"


@pytest.fixture
def bare_library(tmp_path: Path) -> Iterator[LibraryChoice]:
    """LiteRT's library without the one for GPUs beside it."""
    yield LibraryChoice(Path(shutil.copy(litert_path(), tmp_path)))


@pytest.mark.slow
def test_a_library_without_a_delegate_is_named(small_bundle: Path, bare_library: LibraryChoice) -> None:
    assert bare_library.path is not None
    options = {"library": (str(bare_library.path),)}
    request = BenchRequest(small_bundle, "native", options, workload=Workload(4, 2, backend="gpu"))
    with pytest.raises(
        EnvironmentFault, match=r"^--backend gpu: LiteRT's library has no delegate for GPUs, and none is"
    ):
        list(bench(Host(), request, BenchSettings(repetitions=1)))


@pytest.mark.slow
def test_a_driver_that_aborts_is_reported(small_bundle: Path, bare_library: LibraryChoice, tmp_path: Path) -> None:
    assert bare_library.path is not None
    source = tmp_path / "driver.c"
    source.write_text(
        "#include <stdlib.h>\n#include <unistd.h>\n"
        '__attribute__((constructor)) static void fail(void) { write(2, "lost device\\n", 12); abort(); }\n'
    )
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    target = tmp_path / "libLiteRtGpuAccelerator.so"
    subprocess.run([gcc, "-shared", "-fPIC", "-w", "-o", target, source], check=True)
    options = {"library": (str(bare_library.path),)}
    request = BenchRequest(small_bundle, "native", options, workload=Workload(4, 2, backend="gpu"))
    with pytest.raises(EnvironmentFault, match=r"^--backend gpu: its process ended with signal SIGABRT.* lost device"):
        list(bench(Host(), request, BenchSettings(repetitions=1)))
    with (
        NativeClient(Host(), place_runner(Host(), bare_library, with_gpu=True)) as client,
        pytest.raises(EnvironmentFault, match=r"^--backend gpu: its process ended without an answer.*lost device"),
    ):
        client.open(str(small_bundle), processor=GPU)


@pytest.mark.slow
def test_int4_in_blocks_is_refused_before_the_delegate_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    convert(ConvertRequest(EXAMPLE, path, {"text": "int4"}, groups=("text",), context=64), gate=None)
    request = BenchRequest(path, "native", workload=Workload(4, 2, backend="gpu"))
    with pytest.raises(BundleError, match="int4 in blocks, which LiteRT's GPU delegate cannot open here"):
        list(bench(Host(), request, BenchSettings(repetitions=1)))
    with pytest.raises(BundleError, match="int4 in blocks, which LiteRT's GPU delegate cannot open here"):
        DeviceConversation(Bundle(path), nullcontext(Host()), DeviceSettings(processor=GPU))
