"""JSON files beside an output, for facts that differ between machines and so must not be in the output's own bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.base.errors import BundleError
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.strict_json import read_json_file

_MAX_BYTES = 1 << 20


def beside(output: Path, ending: str) -> Path:
    """The path beside `output` that has its name and this ending; `.` and `..` are named as the directories they are.

    >>> beside(Path("out/e2b"), ".quality.json")
    PosixPath('out/e2b.quality.json')
    """
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / (named.name + ending)


@dataclass(frozen=True, slots=True)
class FileBeside:
    """A kind of such files: the ending that follows the output's name, the format's name, and what the file tells."""

    ending: str
    format: str
    tells: str

    def path(self, output: Path) -> Path:
        """The file beside `output`."""
        return beside(output, self.ending)

    def require(self, output: Output) -> None:
        """Raise UsageError if the file beside `output` may not be written, by the same rules as `output` itself."""
        kind = OutputKind(self.tells, lambda path: None if self._read(path) else f"something other than {self.tells}")
        replace(output, path=self.path(output.path), kind=kind).require()

    def write(self, output: Output, value: Mapping[str, object]) -> None:
        """Write `value` and the format's name to the file beside `output`, in place of an older file of this kind."""
        self.require(output)
        text = json.dumps({"format": self.format, **value}, indent=1, sort_keys=True)
        write_bytes(self.path(output.path), f"{text}\n".encode())

    def read(self, output: Path) -> Mapping[str, object]:
        """The content of the file beside `output`; empty if there is none of this kind."""
        return self._read(self.path(output))

    def _read(self, path: Path) -> Mapping[str, object]:
        try:
            value = read_json_file(path, BundleError, max_bytes=_MAX_BYTES)
        except BundleError:
            return {}
        return value if isinstance(value, dict) and value.get("format") == self.format else {}
