"""The process with the GPU, as far as it can be tested without one: what it refuses, and how its end is reported."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from paths import EXAMPLE
from waiting import when

from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge.cli import main
from toolkit.base.errors import BundleError, EnvironmentFault, UsageError
from toolkit.runtime.backends.gpu.remote import GpuRuntime
from toolkit.runtime.backends.interface import BackendOptions, Model, ModelFile
from toolkit.runtime.session import SessionSettings
from toolkit.tflite import ops
from toolkit.tflite.graph import Graph, Signature
from toolkit.tflite.writer import layout_tflite, write_tflite

pytestmark = pytest.mark.slow

MakeModel = Callable[[int], ModelFile]
Matrix = Callable[[int], NDArray[np.float32]]


class NoWeights:
    """A source for graphs without weights."""

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(self, name: str, rows: object = None, columns: object = None) -> np.ndarray:
        raise KeyError(name)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vulkan finds no driver."""
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(name, "/nonexistent.json")


@pytest.fixture
def runtime(no_gpu: None) -> Iterator[GpuRuntime]:
    runtime = GpuRuntime(BackendOptions(1, "off"))
    yield runtime
    runtime.close()


def worker_of(runtime: GpuRuntime) -> int:
    return runtime._process._process.pid


def product(model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output of `small_model` for x: f32[1, 1, 64]."""
    buffers = {name: model.input_buffer("decode", name) for name in ("x", "start", "cache")}
    buffers["x"].write(x)
    buffers["start"].write(np.zeros(3, np.int32))
    y = model.output_buffer("decode", "y")
    model.bind("decode", buffers, {"y": y, "cache": buffers["cache"]})()
    return y.read()


def test_a_table_is_looked_up_by_the_cpu_of_the_other_process(
    runtime: GpuRuntime, small_model: MakeModel, weights: Matrix
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 64)).astype(np.float32)
    found = product(runtime.open(small_model(0), "table"), x)
    runtime.finish()
    np.testing.assert_allclose(found, x @ weights(0).T, atol=1e-4)


def test_a_machine_without_a_gpu_gets_one_error(
    no_gpu: None, random_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(random_bundle), "-p", "cat", "--raw", "--backend", "gpu"]) == 3
    told = "error: --backend gpu: no GPU that LiteRT can use on this machine; "
    assert capsys.readouterr().err == f"{told}install the Vulkan driver of the GPU, or use --backend cpu\n"


def test_int4_in_blocks_is_refused_before_the_gpu_is_asked(runtime: GpuRuntime, tmp_path: Path) -> None:
    roles = {"text": "int4", "ple": "int4"}
    convert(ConvertRequest(EXAMPLE, tmp_path / "bundle", roles, groups=("text",), context=128), gate=None)
    path = tmp_path / "bundle" / "text_decoder.tflite"
    with pytest.raises(BundleError, match=r"int4 in blocks.*--quant int8 or int4-channel"):
        runtime.open(ModelFile(path, "", 0), "large")
    assert runtime.adapter is None


def test_an_op_that_a_gpu_refuses_is_named_before_the_gpu_is_asked(runtime: GpuRuntime, tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 3, 8))
    graph.output("y", ops.sub(x, x))
    path = tmp_path / "graph.tflite"
    write_tflite(path, layout_tflite([Signature("run", graph)], {}), NoWeights())
    with pytest.raises(
        EnvironmentFault, match=r"run, op 0 \(SUB\): a GPU refuses it: both of its inputs are the same value"
    ):
        runtime.open(ModelFile(path, "", 0), "large")
    assert runtime.adapter is None


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_the_end_of_the_other_process_is_reported(
    runtime: GpuRuntime, small_model: MakeModel, number: signal.Signals
) -> None:
    model = runtime.open(small_model(0), "table")
    os.kill(worker_of(runtime), number)
    for _ in range(2):  # every request after it, too
        with pytest.raises(EnvironmentFault, match=rf"--backend gpu: its process ended with signal {number.name}"):
            model.input_buffer("decode", "x")
    runtime.close()
    runtime.close()


def test_an_interrupted_request_does_not_confuse_the_next(
    runtime: GpuRuntime, small_model: MakeModel, weights: Matrix
) -> None:
    model = runtime.open(small_model(0), "table")
    model.signature("decode")
    worker = worker_of(runtime)
    os.kill(worker, signal.SIGSTOP)
    pending = runtime._process._thread._work_queue
    before = runtime._process._last
    interrupt = when(
        lambda: runtime._process._last is not before and pending.empty(), lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        model.input_buffer("decode", "x")
    interrupt.join()
    os.kill(worker, signal.SIGCONT)
    x = np.ones((1, 1, 64), np.float32)
    np.testing.assert_allclose(product(model, x), x @ weights(0).T, atol=1e-4)


def test_closing_ends_the_other_process_even_in_the_middle_of_a_request(
    runtime: GpuRuntime, small_model: MakeModel
) -> None:
    model = runtime.open(small_model(0), "table")
    worker = worker_of(runtime)
    os.kill(worker, signal.SIGSTOP)
    before = runtime._process._last
    interrupt = when(lambda: runtime._process._last is not before, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        model.signature("decode")
    interrupt.join()
    runtime.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_the_other_process_ends_with_this_one(runtime: GpuRuntime) -> None:
    """Ctrl-C at the terminal does not reach it; it ends when its socket is closed, as when this process is killed."""
    worker = worker_of(runtime)
    assert os.getsid(worker) == worker
    runtime._process._socket.shutdown(2)
    assert runtime._process._process.wait(60) == 0


def test_unknown_activations_are_wrong_use() -> None:
    with pytest.raises(UsageError, match="activations: found bf16, wanted fp16 or fp32"):
        SessionSettings(activations="bf16")  # type: ignore[arg-type]
