"""Reads from a .litertlm file the context for the engine, and the file ranges of its parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from device_harness.runners.interface import FileRange, Workload
from toolkit.base.errors import UsageError
from toolkit.litertlm.reader import LitertlmContent, read_litertlm


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A file's sections, and the number of positions that the engine is to allocate; None: the file does not say."""

    content: LitertlmContent
    context: int | None

    def groups(self, path: str) -> dict[str, tuple[FileRange, ...]]:
        """The file ranges of each group, and the whole file for the rest; the engine maps each section separately."""
        groups = {
            name: tuple(FileRange(path, section.begin, section.end) for section in sections)
            for name, sections in self.content.groups().items()
        }
        return {**groups, "model": (FileRange(path),)}


def read_engine_model(local: Path, workload: Workload) -> EngineModel:
    """Read a file, with the requested context, else its own.

    UsageError for a longer context than the file's, with which the engine would end answers early.
    """
    content = read_litertlm(local)
    context = workload.context or content.context
    if workload.context is not None and content.context is not None and workload.context > content.context:
        wanted = f"at most {content.context}, the model's own"
        raise UsageError("--context", found=workload.context, wanted=wanted)
    tokens = workload.prompt_tokens + workload.generated_tokens
    if context is not None and tokens > context:
        wanted = f"at most {context}, the context"
        raise UsageError("-p and -n", found=f"{tokens} tokens", wanted=wanted, remedy="ask for fewer")
    return EngineModel(content, context)
