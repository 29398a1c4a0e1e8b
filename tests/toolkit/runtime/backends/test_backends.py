"""A backend is one entry of `BACKENDS`: the session asks nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from gemma_edge.cli import main
from toolkit.base.errors import UsageError
from toolkit.runtime import backends
from toolkit.runtime.backends.cpu import CpuBackend
from toolkit.runtime.backends.interface import BackendOptions, Model, ModelFile, Runtime, Weights
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings


@dataclass
class SecondBackend:
    """Has the first one do the work, keeps nothing, and remembers what it was asked for."""

    name: str = "second"
    opened: list[tuple[str, Weights]] = field(default_factory=list)
    closed: int = 0

    def start(self, options: BackendOptions) -> Runtime:
        return SecondRuntime(self, CpuBackend().start(options))

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        return None


@dataclass
class SecondRuntime:
    backend: SecondBackend
    inner: Runtime

    def open(self, file: ModelFile, weights: Weights) -> Model:
        self.backend.opened.append((file.path.name, weights))
        return self.inner.open(file, weights)

    def finish(self) -> None:
        self.inner.finish()

    def close(self) -> None:
        self.backend.closed += 1
        self.inner.close()


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> SecondBackend:
    backend = SecondBackend()
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, backend))
    return backend


def test_a_bundle_runs_on_a_backend_that_was_added(random_bundle: Path, second: SecondBackend) -> None:
    bundle = Bundle(random_bundle)
    with Session(bundle, SessionSettings(weight_cache="memory")) as session:
        wanted = session.feed([2, 3, 4, 5])
    with Session(bundle, SessionSettings(weight_cache="memory", backend="second")) as session:
        np.testing.assert_array_equal(session.feed([2, 3, 4, 5]), wanted)
        assert session.memory().groups["text"].mapped_bytes > 0
    assert second.opened == [("text_decoder.tflite", "large"), ("embedder.tflite", "table")]
    assert second.closed == 1


def test_the_command_line_offers_a_backend_that_was_added(
    random_bundle: Path, second: SecondBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(random_bundle), "-p", "cat", "--raw", "-n", "2", "-q", "--weight-cache", "memory"]
    assert main([*words, "--backend", "second"]) == 0
    assert second.opened
    assert main([*words, "--backend", "third"]) == 2
    assert "cpu" in (err := capsys.readouterr().err) and "second" in err


def test_an_unknown_backend_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="backend: found npu, wanted cpu or gpu"):
        SessionSettings(backend="npu")
