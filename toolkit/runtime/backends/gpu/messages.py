"""The messages between a session's process and the process with the GPU: one reply for each request.

Models, buffers and calls are represented by numbers, in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

Processor = Literal["gpu-float32", "gpu-float16", "cpu"]


@dataclass(frozen=True, slots=True)
class Open:
    """Open a .tflite file; the reply is the model's number."""

    path: str
    processor: Processor


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask for the `SignatureInfo` of a signature."""

    model: int
    signature: str


@dataclass(frozen=True, slots=True)
class Allocate:
    """Make a buffer that fits an input or an output; the reply is its number."""

    model: int
    signature: str
    kind: Literal["input", "output"]
    name: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Make a call of a signature with these buffers; the reply is its number."""

    model: int
    signature: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Write:
    """Copy an array into a buffer."""

    buffer: int
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Read:
    """Ask for the content of a buffer as an array."""

    buffer: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run a call."""

    call: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait until the GPU is done with all calls; Run does not wait."""


Request = Open | Describe | Allocate | Bind | Write | Read | Run | Finish


@dataclass(frozen=True, slots=True)
class Failure:
    """The reply to a request that could not be fulfilled: the fields of an EnvironmentFault."""

    place: str | None
    file: str | None
    found: str
    wanted: str | None
