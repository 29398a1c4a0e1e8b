"""The GPU backend: LiteRT's CompiledModel with its GPU delegate, in its own process (docs/gpu.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.runtime.backends.interface import BackendOptions, ModelFile, Runtime


@dataclass(frozen=True, slots=True)
class GpuBackend:
    """LiteRT on this machine's GPU; it keeps nothing between runs."""

    name: str = "gpu"

    def start(self, options: BackendOptions) -> Runtime:
        """Start the process that will use the GPU; only when it opens a graph is it known whether there is a GPU."""
        from toolkit.runtime.backends.gpu.remote import GpuRuntime

        return GpuRuntime(options)

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        """None, because the weights are copied to the GPU's memory as they are in the file."""
        return None
