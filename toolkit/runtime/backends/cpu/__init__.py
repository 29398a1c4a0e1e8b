"""The CPU: LiteRT's CompiledModel with XNNPACK, whose weights are packed into a file of the weight cache once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.runtime.backends.cpu.weight_file import cache_path
from toolkit.runtime.backends.interface import BackendOptions, ModelFile

if TYPE_CHECKING:
    from toolkit.runtime.backends.cpu.compiled import CompiledRuntime


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """LiteRT on the cores of this machine."""

    name: str = "cpu"

    def start(self, options: BackendOptions) -> CompiledRuntime:
        """EnvironmentFault where LiteRT cannot be set up."""
        # LiteRT takes a tenth of a second to import, and the list of backends must not.
        from toolkit.runtime.backends.cpu.compiled import CompiledRuntime

        return CompiledRuntime(options)

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        """The file of packed weights, where the weight cache is a directory."""
        cache = options.weight_cache
        return cache_path(file, cache) if isinstance(cache, Path) else None
