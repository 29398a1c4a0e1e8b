"""What a backend offers: it opens .tflite files, and runs their signatures over buffers that stay where they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.runtime.weight_cache import WeightCache

Weights = Literal["large", "small", "table"]
"""What a file holds: `large`: the matrices that most time is spent on, worth arranging for the hardware and keeping so;
`small`: few of them, arranged anew at each opening; `table`: rows that are looked up, and nothing is computed with."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A .tflite file and what its manifest says of its content."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What the user may choose; a backend takes of it what means something to it."""

    threads: int
    """CPU threads."""
    weight_cache: WeightCache
    """Where to keep weights that the backend has rearranged for its hardware."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and element type of one input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """Number of elements."""
        # NumPy's would take longer than the copy of a small buffer, at every write and read of a decode step.
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SignatureInfo:
    """Inputs and outputs of one signature by name, in the model's order."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


class Buffer(Protocol):
    """Memory that signatures read or write in place; it may be bound to several models of one runtime."""

    info: TensorInfo

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array of the buffer's element type and number of elements in."""

    def read(self) -> NDArray[Any]:
        """A copy, in the buffer's shape."""


class Call(Protocol):
    """One signature with a buffer bound to every input and output."""

    def __call__(self) -> None:
        """Run it; EnvironmentFault when the backend fails."""


class Model(Protocol):
    """An opened .tflite file."""

    def signature(self, name: str) -> SignatureInfo:
        """Inputs and outputs of a signature that the file has."""

    def input_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an input; its content is undefined."""

    def output_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an output."""

    def bind(self, signature: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Call:
        """A call with these buffers, one for every name; EnvironmentFault where one has another shape or type."""


class Runtime(Protocol):
    """A backend at work: models opened in one runtime can share buffers."""

    def open(self, file: ModelFile, weights: Weights) -> Model:
        """Make every signature ready to run; EnvironmentFault when the backend refuses the file."""

    def close(self) -> None:
        """Let go of every model and of the hardware; twice is once."""


class Backend(Protocol):
    """One kind of hardware, and the library that runs models on it."""

    @property
    def name(self) -> str:
        """The name for `--backend`."""

    def start(self, options: BackendOptions) -> Runtime:
        """EnvironmentFault where the hardware or its library is not there."""

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        """Where a file's `large` weights stay once they are arranged, whether they do already or not; None: nowhere."""
