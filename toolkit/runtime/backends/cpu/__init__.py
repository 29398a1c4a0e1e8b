"""The CPU backend: LiteRT's CompiledModel with XNNPACK, whose packed weights are kept in the weight cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.runtime.backends.cpu.weight_file import cache_path
from toolkit.runtime.backends.interface import BackendOptions, ModelFile

if TYPE_CHECKING:
    from toolkit.runtime.backends.cpu.runtime import CpuRuntime


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """LiteRT on the cores of this machine."""

    name: str = "cpu"

    def start(self, options: BackendOptions) -> CpuRuntime:
        """Start LiteRT; EnvironmentFault if that fails."""
        # Imported here because it takes a tenth of a second, which is too long for listing the backends.
        from toolkit.runtime.backends.cpu.runtime import CpuRuntime

        return CpuRuntime(options)

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        """The file of packed weights, if the weight cache is a directory."""
        cache = options.weight_cache
        return cache_path(file, cache) if isinstance(cache, Path) else None
