"""Runs graphs on the CPU with LiteRT, and passes LiteRT's log to ours."""

from __future__ import annotations

from pathlib import Path

from toolkit.runtime.backends.cpu.weight_file import IN_MEMORY, open_cached
from toolkit.runtime.backends.interface import BackendOptions, ModelFile, Weights
from toolkit.runtime.backends.litert.compiled import CompiledModel, LiteRt
from toolkit.runtime.backends.litert.litert_log import quietly
from toolkit.runtime.weight_cache import WeightCache


class CpuRuntime:
    """LiteRT on the cores of this machine: models opened in one runtime can share buffers."""

    def __init__(self, options: BackendOptions) -> None:
        """Set LiteRT up; EnvironmentFault if that fails."""
        self._options = options
        self._litert: LiteRt | None = quietly("LiteRT", LiteRt)
        self._models: list[CompiledModel] = []

    def open(self, file: ModelFile, weights: Weights) -> CompiledModel:
        """Map the file and prepare its signatures; EnvironmentFault if LiteRT refuses it."""
        litert = self._litert
        assert litert is not None, "the runtime is closed"
        kept: WeightCache = {"large": self._options.weight_cache, "small": "memory", "table": "off"}[weights]
        # A lookup gains nothing from more threads.
        threads = 1 if weights == "table" else self._options.threads

        def load(cache_path: str) -> CompiledModel:
            open_model = litert.open_on_cpu
            return quietly(str(file.path), lambda: open_model(file.path, threads=threads, weight_cache=cache_path))

        in_memory = IN_MEMORY if kept == "memory" else ""
        self._models.append(open_cached(file, kept, load) if isinstance(kept, Path) else load(in_memory))
        return self._models[-1]

    def finish(self) -> None:
        """Do nothing: calls return when they are done."""

    def close(self) -> None:
        """Free all models and the environment; calling it again does nothing."""
        if self._litert is not None:
            quietly("LiteRT", self._release)
            self._litert = None

    def _release(self) -> None:
        for model in self._models:
            model.close()
        self._models.clear()
        if self._litert is not None:
            self._litert.close()
