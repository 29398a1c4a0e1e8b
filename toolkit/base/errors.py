"""The errors that a user can fix, one class for each kind; each has the command line's exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

_MOST_SHOWN = 2000
"""The most characters of a field in an error's line; the error's JSON has all of them."""


class ToolkitError(Exception):
    """An error in the user's input or environment, described by fields.

    `file`: the file or directory concerned, if any. `place`: the part of it, or the option, setting or device.
    `found` and `wanted`: two values that differ; without `wanted`, `found` says what is wrong. `remedy`: what to do.

    `str(error)` is one line, made from the fields; no code parses it.

    >>> print(ToolkitError("tensor a", file="m.safetensors", found="2 bytes", wanted="4", remedy="download it again"))
    m.safetensors, tensor a: found 2 bytes, wanted 4; download it again
    >>> print(ToolkitError(file="config.json", found="no such file"))
    config.json: no such file
    """

    exit_code = 2

    def __init__(
        self,
        place: str | None = None,
        *,
        file: str | PathLike[str] | None = None,
        found: object,
        wanted: object | None = None,
        remedy: str | None = None,
    ) -> None:
        self.file = None if file is None else str(file)
        self.place = place
        self.found = str(found)
        self.wanted = None if wanted is None else str(wanted)
        self.remedy = remedy
        super().__init__(self.file, place, self.found, self.wanted, remedy)

    def __reduce__(self) -> tuple[object, ...]:
        """For pickling: a child process hands errors to its parent."""
        return _restored, (type(self), self.place, self.file, self.found, self.wanted, self.remedy)

    def __str__(self) -> str:
        found, wanted = (_cut(text) for text in (self.found, self.wanted or ""))
        line = found if self.wanted is None else f"found {found}, wanted {wanted}"
        where = ", ".join(part for part in (self.file, self.place) if part)
        line = f"{where}: {line}" if where else line
        return " ".join((f"{line}; {self.remedy}" if self.remedy else line).split())

    def to_json(self) -> dict[str, str | None]:
        """The JSON object that `--json` prints under `error`."""
        return {
            "file": self.file,
            "place": self.place,
            "found": self.found,
            "wanted": self.wanted,
            "remedy": self.remedy,
        }


def _restored(
    kind: type[ToolkitError], place: str | None, file: str | None, found: str, wanted: str | None, remedy: str | None
) -> ToolkitError:
    return kind(place, file=file, found=found, wanted=wanted, remedy=remedy)


class UsageError(ToolkitError):
    """A command line or an API call that asks for something impossible."""


class CheckpointError(ToolkitError):
    """A checkpoint that is missing, malformed or of an unknown model, or a config.json with something unsupported."""


class SliceError(ToolkitError):
    """A MatFormer slice that the checkpoint does not contain."""


class RecipeError(ToolkitError):
    """A quantisation recipe that does not fit the model."""


class GraphError(ToolkitError):
    """A .tflite file that breaks the format."""


class BundleError(ToolkitError):
    """A bundle or .litertlm that lacks parts or contradicts its manifest."""


class ResultsError(ToolkitError):
    """A results file that breaks its format."""


class QualityError(ToolkitError):
    """The work was done and its result is bad: the quality gate failed, or a check found faults."""

    exit_code = 1


class EnvironmentFault(ToolkitError):
    """A device, disk or runtime that cannot do the work."""

    exit_code = 3


@contextmanager
def errors_about(place: str | None = None, *, file: str | PathLike[str] | None = None) -> Iterator[None]:
    """Add this file or place to errors raised inside that name none: code that reads bytes need not know their file."""
    try:
        yield
    except ToolkitError as error:
        error.file = str(file) if error.file is None and file is not None else error.file
        error.place = place if error.place is None else error.place
        raise


def _cut(text: str) -> str:
    """Cut a text to the length of a field: untrusted text may be very long, and an error is one line."""
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def system_reason(error: OSError | ValueError) -> str:
    """The reason why the system refused a path, in words that fit in a sentence.

    >>> system_reason(OSError(13, "Permission denied"))
    'permission denied'
    """
    if isinstance(error, FileNotFoundError):
        return "no such file"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return reason[:1].lower() + reason[1:]
