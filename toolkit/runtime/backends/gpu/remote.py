"""The session's side of the GPU: models, buffers and calls that exist in another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import FLOAT32_FILES
from toolkit.runtime.backends.gpu.fit import require_fit
from toolkit.runtime.backends.gpu.messages import (
    Allocate,
    Bind,
    Describe,
    Finish,
    Open,
    Processor,
    Read,
    Run,
    Write,
)
from toolkit.runtime.backends.gpu.process import GpuProcess
from toolkit.runtime.backends.interface import (
    BackendOptions,
    Buffer,
    ModelFile,
    SignatureInfo,
    TensorInfo,
    Weights,
)


@dataclass(slots=True)
class RemoteBuffer:
    """A buffer in the other process, in the GPU's memory if only graphs there use it."""

    process: GpuProcess
    number: int
    info: TensorInfo

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array into the buffer; it must have the buffer's element type and number of elements."""
        assert array.dtype == self.info.dtype and array.size == self.info.size, (array.dtype, array.shape, self.info)
        self.process.ask(Write(self.number, array))

    def read(self) -> NDArray[Any]:
        """A copy of the content, in the buffer's shape."""
        return cast(NDArray[Any], self.process.ask(Read(self.number)))


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A signature in the other process, with a buffer bound to every input and output."""

    process: GpuProcess
    number: int

    def __call__(self) -> None:
        """Run the signature; EnvironmentFault if LiteRT fails, or the process ends."""
        self.process.ask(Run(self.number))


class RemoteModel:
    """A .tflite file that the other process has opened."""

    def __init__(self, process: GpuProcess, number: int) -> None:
        self._process, self._number = process, number
        self._signatures: dict[str, SignatureInfo] = {}

    def signature(self, name: str) -> SignatureInfo:
        """The inputs and outputs of a signature that the file has."""
        if name not in self._signatures:
            found = self._process.ask(Describe(self._number, name))
            assert isinstance(found, SignatureInfo)
            self._signatures[name] = found
        return self._signatures[name]

    def input_buffer(self, signature: str, name: str) -> RemoteBuffer:
        """A new buffer that fits an input; its content is undefined."""
        return self._buffer(signature, "input", name)

    def output_buffer(self, signature: str, name: str) -> RemoteBuffer:
        """A new buffer that fits an output."""
        return self._buffer(signature, "output", name)

    def bind(self, signature: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> RemoteCall:
        """A call with these buffers, one for each name; EnvironmentFault if one has another shape or type."""
        return RemoteCall(
            self._process,
            _number(self._process.ask(Bind(self._number, signature, _numbers(inputs), _numbers(outputs)))),
        )

    def _buffer(self, signature: str, kind: Literal["input", "output"], name: str) -> RemoteBuffer:
        info = self.signature(signature)
        number = self._process.ask(Allocate(self._number, signature, kind, name))
        return RemoteBuffer(
            self._process, _number(number), info.inputs[name] if kind == "input" else info.outputs[name]
        )


class GpuRuntime:
    """A process with the GPU; it looks up tables on the CPU, so that they take none of the GPU's memory."""

    def __init__(self, options: BackendOptions) -> None:
        self._activations = options.activations
        self._process = GpuProcess()

    @property
    def adapter(self) -> str | None:
        """The GPU's name, once a graph was opened on it."""
        return self._process.adapter

    def open(self, file: ModelFile, weights: Weights) -> RemoteModel:
        """Open a file. BundleError for weights, EnvironmentFault for operators that a GPU refuses, or without a GPU."""
        if weights == "table":
            return RemoteModel(self._process, _number(self._process.ask(Open(str(file.path), "cpu"))))
        require_fit(file.path)
        wide = self._activations == "fp32" or file.path.name in FLOAT32_FILES
        processor: Processor = "gpu-float32" if wide else "gpu-float16"
        return RemoteModel(self._process, _number(self._process.ask(Open(str(file.path), processor))))

    def finish(self) -> None:
        """Wait until the GPU is done with all calls."""
        self._process.ask(Finish())

    def close(self) -> None:
        """End the process, and with it free all models; calling it again does nothing."""
        self._process.close()


def _number(reply: object) -> int:
    assert isinstance(reply, int), reply
    return reply


def _numbers(buffers: Mapping[str, Buffer]) -> dict[str, int]:
    numbers = {}
    for name, buffer in buffers.items():
        assert isinstance(buffer, RemoteBuffer), "a buffer of another backend"
        numbers[name] = buffer.number
    return numbers
