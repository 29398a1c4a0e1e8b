"""One class per kind of fault that a user can fix; each carries the exit code of the command line."""

from __future__ import annotations


class ToolkitError(Exception):
    """A fault in the user's input or surroundings: names the thing, what was found and what was wanted.

    ``str(error)`` is one line: ``WHAT: found X, wanted Y; REMEDY``.
    """

    exit_code = 2

    def __init__(self, what: str, *, found: object, wanted: object, remedy: str | None = None) -> None:
        self.what = what
        self.found = str(found)
        self.wanted = str(wanted)
        self.remedy = remedy
        line = f"{what}: found {self.found}, wanted {self.wanted}"
        super().__init__(" ".join((f"{line}; {remedy}" if remedy else line).split()))


class UsageError(ToolkitError):
    """A command line or an API call that asks for something impossible."""


class CheckpointError(ToolkitError):
    """A checkpoint that is missing, malformed or not Gemma 3n."""


class ConfigError(CheckpointError):
    """A config.json that this version cannot read exactly."""


class SliceError(ToolkitError):
    """A MatFormer slice that the checkpoint cannot give."""


class RecipeError(ToolkitError):
    """A quantisation recipe that does not fit the model."""


class GraphError(ToolkitError):
    """A .tflite file that breaks the format."""


class BundleError(ToolkitError):
    """A bundle or .litertlm that is missing parts or breaks its manifest."""


class ResultsError(ToolkitError):
    """A results file that breaks its format."""


class QualityError(ToolkitError):
    """The work ran and its result is bad: a gate failed or a check found faults."""

    exit_code = 1


class EnvironmentFault(ToolkitError):
    """A device, disk or runtime that cannot do the work."""

    exit_code = 3
