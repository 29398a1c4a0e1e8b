"""The interface of a backend, which opens .tflite files and runs their signatures on buffers in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.base.activations import Activations
from toolkit.runtime.weight_cache import WeightCache

Weights = Literal["large", "small", "table"]
"""The kind of weights in a file. `large`: the matrices that take most of the time, worth rearranging for the hardware
and keeping in the weight cache; `small`: a few matrices, rearranged each time; `table`: rows that are looked up."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A .tflite file, with its hash and size in the manifest."""

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """The user's settings; a backend ignores those that do not apply to it."""

    threads: int
    """The number of CPU threads."""
    weight_cache: WeightCache
    """Where to keep weights that the backend has rearranged for its hardware."""
    activations: Activations = "fp32"
    """The precision in which a GPU computes; graphs that are wrong in float16 are always computed in float32."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The shape and element type of one input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def size(self) -> int:
        """The number of elements."""
        # np.prod would take longer than copying a small buffer, and this runs at every write and read of a decode step.
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SignatureInfo:
    """The inputs and outputs of one signature by name, in the model's order."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


class Buffer(Protocol):
    """Memory that signatures read or write in place; it may be bound to several models of one runtime."""

    info: TensorInfo

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array into the buffer; it must have the buffer's element type and number of elements."""

    def read(self) -> NDArray[Any]:
        """A copy of the content, in the buffer's shape."""


class Call(Protocol):
    """One signature with a buffer bound to every input and output."""

    def __call__(self) -> None:
        """Run the signature; EnvironmentFault if the backend fails."""


class Model(Protocol):
    """An opened .tflite file."""

    def signature(self, name: str) -> SignatureInfo:
        """The inputs and outputs of a signature that the file has."""

    def input_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an input; its content is undefined."""

    def output_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an output."""

    def bind(self, signature: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Call:
        """A call with these buffers, one for each name; EnvironmentFault if one has another shape or type."""


class Runtime(Protocol):
    """A started backend; models opened in one runtime can share buffers."""

    def open(self, file: ModelFile, weights: Weights) -> Model:
        """Open a file and prepare its signatures; EnvironmentFault if the backend refuses it."""

    def finish(self) -> None:
        """Wait for calls that run in the background. Reading a buffer waits for the calls that write it in any case."""

    def close(self) -> None:
        """Free all models and the hardware; calling it again does nothing."""


class Backend(Protocol):
    """One kind of hardware, and the library that runs models on it."""

    @property
    def name(self) -> str:
        """The name for `--backend`."""

    def start(self, options: BackendOptions) -> Runtime:
        """Start the backend; EnvironmentFault if the hardware or its library is missing."""

    def kept_file(self, file: ModelFile, options: BackendOptions) -> Path | None:
        """The path where a file's `large` weights are cached, whether it exists or not; None if they are not cached."""
