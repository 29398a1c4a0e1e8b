"""The weight cache: never stale, never half-written, never in the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.runtime.backends.cpu import weight_file
from toolkit.runtime.backends.cpu.runtime import CpuRuntime
from toolkit.runtime.backends.cpu.weight_file import (
    IN_MEMORY,
    cache_name,
    cpu_identity,
    is_complete,
    open_cached,
    prune,
)
from toolkit.runtime.backends.interface import BackendOptions, ModelFile
from toolkit.runtime.weight_cache import default_directory, parse_weight_cache

MakeModel = Callable[[int], ModelFile]
Weights = Callable[[int], NDArray[np.float32]]


def output(model_file: ModelFile, directory: Path) -> NDArray[np.float32]:
    """What the model makes of ones."""
    runtime = CpuRuntime(BackendOptions(1, directory))
    model = runtime.open(model_file, "large")
    buffers = {name: model.input_buffer("decode", name) for name in ("x", "start", "cache")}
    for buffer in buffers.values():
        buffer.write(np.ones(buffer.info.shape, buffer.info.dtype))
    y = model.output_buffer("decode", "y")
    model.bind("decode", buffers, {"y": y, "cache": buffers["cache"]})()
    result: np.ndarray = y.read()[0, 0]
    runtime.close()
    return result


def caches(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.xnnpack"))


def test_the_second_opening_reads_the_file_of_the_first(tmp_path: Path, small_model: MakeModel) -> None:
    first = output(small_model(0), tmp_path / "c")
    (cache,) = caches(tmp_path / "c")
    written = cache.stat().st_ino, cache.read_bytes()
    assert is_complete(cache)
    np.testing.assert_array_equal(output(small_model(0), tmp_path / "c"), first)
    assert (cache.stat().st_ino, cache.read_bytes()) == written
    assert sorted(os.listdir(tmp_path / "c")) == [cache.name, "lock"]


def test_who_packs_the_weights_opens_the_file_anew(tmp_path: Path) -> None:
    opened: list[str] = []

    def load(path: str) -> int:
        opened.append(path)
        if len(opened) == 1:
            Path(path).write_bytes(struct.pack("<QQQ", 1, 24, 1) + b"x")
        return len(opened)

    model = ModelFile(tmp_path / "m.tflite", "00" * 32, 1)
    assert open_cached(model, tmp_path / "c", load) == 2, "else it would hold the largest matrix in memory for good"
    (cache,) = caches(tmp_path / "c")
    assert opened[0].endswith(".partial") and opened[1] == str(cache)
    assert open_cached(model, tmp_path / "c", load) == 3


def test_each_model_has_its_own_file(tmp_path: Path, small_model: MakeModel, weights: Weights) -> None:
    for seed in (0, 1, 0, 1):
        np.testing.assert_allclose(output(small_model(seed), tmp_path / "c"), weights(seed).sum(1), atol=1e-4)
    assert len(caches(tmp_path / "c")) == 2


def test_litert_itself_does_not_notice_a_stale_file(tmp_path: Path, small_model: MakeModel, weights: Weights) -> None:
    """Why the name must hold the content's hash: should this fail one day, LiteRT has learnt to check."""
    output(small_model(0), tmp_path / "c")
    wrong_name = ModelFile(small_model(1).path, small_model(0).sha256, small_model(0).size_bytes)
    np.testing.assert_allclose(output(wrong_name, tmp_path / "c"), weights(0).sum(1), atol=1e-4)


def test_the_name_depends_on_content_runtime_and_cpu() -> None:
    names = {cache_name(*key) for key in (("a" * 64, "2.3.0", "x"), ("b" * 64, "2.3.0", "x"))}
    names |= {cache_name("a" * 64, "2.3.1", "x"), cache_name("a" * 64, "2.3.0", "y")}
    assert len(names) == 4


def test_the_cpus_identity_is_its_model_and_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    identities = set()
    for text in ("model name\t: A\nflags\t: sse\ncpu MHz\t: 1\n", "model name\t: A\nflags\t: sse\ncpu MHz\t: 2\n"):
        path.write_text(text)
        identities.add(cpu_identity(path))
    assert len(identities) == 1
    path.write_text("model name\t: A\nflags\t: sse avx\n")
    assert cpu_identity(path) not in identities
    assert cpu_identity(tmp_path / "missing")


@pytest.mark.parametrize("keep", [0, 10, 160, -1])
def test_a_file_cut_short_is_built_again(tmp_path: Path, small_model: MakeModel, weights: Weights, keep: int) -> None:
    output(small_model(0), tmp_path / "c")
    (cache,) = caches(tmp_path / "c")
    cache.write_bytes(cache.read_bytes()[:keep])
    assert not is_complete(cache)
    np.testing.assert_allclose(output(small_model(0), tmp_path / "c"), weights(0).sum(1), atol=1e-4)
    assert is_complete(cache)


def test_a_build_that_stops_half_way_leaves_no_file(tmp_path: Path, small_model: MakeModel) -> None:
    def load(path: str) -> str:
        if path != IN_MEMORY:
            # As LiteRT leaves it when the disk is full: a header whose list does not end the file.
            Path(path).write_bytes(struct.pack("<QQQ", 4, 128, 32) + bytes(4096))
        return path

    assert open_cached(small_model(0), tmp_path / "c", load) == IN_MEMORY
    assert os.listdir(tmp_path / "c") == ["lock"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path, small_model: MakeModel) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / f".{'0a' * 8}-{'1b' * 8}.xnnpack.12345678.partial").write_bytes(bytes(100))
    output(small_model(0), tmp_path / "c")
    assert not list((tmp_path / "c").glob(".*.partial"))


@pytest.mark.parametrize("obstacle", ["file", "full disk"])
def test_a_directory_that_cannot_be_used_is_a_warning(
    tmp_path: Path,
    small_model: MakeModel,
    weights: Weights,
    obstacle: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if obstacle == "file":
        (tmp_path / "c").write_text("in the way")
    else:
        monkeypatch.setattr(weight_file, "_ROOM", 1e15)
    with caplog.at_level(logging.WARNING):
        result = output(small_model(0), tmp_path / "c")
    np.testing.assert_allclose(result, weights(0).sum(1), atol=1e-4)
    assert "packing weights in memory" in caplog.text


def test_processes_that_start_together_all_compute_right(
    tmp_path: Path, small_model: MakeModel, weights: Weights
) -> None:
    model = small_model(0)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.starmap(output, [(model, tmp_path / "c")] * 4)
    for result in results:
        np.testing.assert_allclose(result, weights(0).sum(1), atol=1e-4)
    assert len(caches(tmp_path / "c")) == 1


def cache_file(name: str) -> str:
    """The name of a cache; `name`: a hexadecimal digit."""
    return f"{name * 16}-{name * 16}.xnnpack"


def test_pruning_removes_the_longest_unused_and_keeps_the_newest(tmp_path: Path) -> None:
    paths = [tmp_path / cache_file(name) for name in "abcd"]
    for age, path in enumerate(paths):
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    for name in ("other", "other.xnnpack"):
        (tmp_path / name).write_bytes(bytes(100))
    prune(tmp_path, 25, keep=paths[3])
    assert sorted(os.listdir(tmp_path)) == [cache_file("a"), cache_file("d"), "other", "other.xnnpack"]
    prune(tmp_path, 0, keep=paths[3])
    assert sorted(os.listdir(tmp_path)) == [cache_file("d"), "other", "other.xnnpack"]


def test_the_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEMMA_EDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".cache" / "gemma-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == tmp_path / ".cache" / "gemma-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_directory() == Path("/xdg/gemma-edge")
    monkeypatch.setenv("GEMMA_EDGE_CACHE", "/own")
    assert parse_weight_cache(None) == Path("/own")
    assert [parse_weight_cache(text) for text in ("off", "memory", "/d")] == ["off", "memory", Path("/d")]
