"""LiteRT behind types: calls, buffers used in place, errors, and nothing printed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.cpu.runtime import CpuRuntime
from toolkit.runtime.backends.interface import BackendOptions, Buffer, Model, ModelFile, Runtime
from toolkit.runtime.weight_cache import WeightCache

MakeModel = Callable[[int], ModelFile]
Weights = Callable[[int], NDArray[np.float32]]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = make_runtime()
    yield runtime
    runtime.close()


def make_runtime(threads: int = 1, cache: WeightCache = "off") -> CpuRuntime:
    return CpuRuntime(BackendOptions(threads, cache))


def run(model: Model, signature: str, x: NDArray[np.float32], start: int, cache: Buffer) -> NDArray[np.float32]:
    ins = {name: model.input_buffer(signature, name) for name in ("x", "start")}
    out = model.output_buffer(signature, "y")
    ins["x"].write(x)
    ins["start"].write(np.array([0, start, 0], np.int32))
    model.bind(signature, {**ins, "cache": cache}, {"y": out, "cache": cache})()
    return out.read()


def zero_cache(model: Model) -> Buffer:
    cache = model.input_buffer("decode", "cache")
    cache.write(np.zeros(cache.info.shape, np.float32))
    return cache


@pytest.mark.parametrize("cache", ["off", "memory", "file"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_signature_computes_with_the_same_weights(
    small_model: MakeModel, weights: Weights, tmp_path: Path, cache: str, threads: int
) -> None:
    where: WeightCache = tmp_path / "cache" if cache == "file" else cache  # type: ignore[assignment]
    runtime = make_runtime(threads, where)
    model = runtime.open(small_model(0), "large")
    for signature, tokens in (("prefill_4", 4), ("decode", 1)):
        x = np.random.default_rng(1).standard_normal((1, tokens, 64)).astype(np.float32)
        y = run(model, signature, x, 0, zero_cache(model))
        np.testing.assert_allclose(y, x @ weights(0).T, atol=1e-4)
    runtime.close()


def test_a_buffer_bound_as_input_and_output_keeps_what_signatures_write(
    runtime: Runtime, small_model: MakeModel
) -> None:
    model = runtime.open(small_model(0), "large")
    cache = zero_cache(model)
    run(model, "prefill_4", np.full((1, 4, 64), 2, np.float32), 3, cache)
    run(model, "decode", np.full((1, 1, 64), 5, np.float32), 7, cache)
    assert cache.read()[0, :, 0].tolist() == [0] * 3 + [2] * 4 + [5] + [0] * 24


def test_models_of_one_runtime_share_buffers(runtime: Runtime, small_model: MakeModel) -> None:
    first = runtime.open(small_model(0), "large")
    second = runtime.open(small_model(1), "large")
    cache = zero_cache(first)
    run(first, "decode", np.full((1, 1, 64), 1, np.float32), 0, cache)
    run(second, "decode", np.full((1, 1, 64), 2, np.float32), 1, cache)
    assert cache.read()[0, :3, 0].tolist() == [1, 2, 0]


def test_a_buffer_of_another_shape_is_refused(runtime: Runtime, small_model: MakeModel) -> None:
    model = runtime.open(small_model(0), "large")
    wrong = {name: model.input_buffer("prefill_4", name) for name in ("x", "start", "cache")}
    with pytest.raises(EnvironmentFault, match="decode input x"):
        model.bind("decode", wrong, {"y": model.output_buffer("decode", "y"), "cache": wrong["cache"]})


def test_a_file_that_is_no_model_is_an_error_that_names_it(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "junk.tflite"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(EnvironmentFault, match=r"junk\.tflite"):
        runtime.open(ModelFile(path, "0" * 64, 1100), "large")


def test_litert_says_nothing_on_stderr(
    small_model: MakeModel, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    runtime = make_runtime()
    model = runtime.open(small_model(0), "large")
    run(model, "decode", np.ones((1, 1, 64), np.float32), 0, zero_cache(model))
    runtime.close()
    assert capfd.readouterr().err == ""
    assert "XNNPACK" in caplog.text


def test_a_closed_model_does_not_run(small_model: MakeModel) -> None:
    runtime = make_runtime()
    model = runtime.open(small_model(0), "large")
    cache = zero_cache(model)
    ins = {name: model.input_buffer("decode", name) for name in ("x", "start")}
    call = model.bind("decode", {**ins, "cache": cache}, {"y": model.output_buffer("decode", "y"), "cache": cache})
    runtime.close()
    with pytest.raises(ValueError, match="closed"):
        call()
