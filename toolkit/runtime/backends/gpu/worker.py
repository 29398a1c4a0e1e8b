"""The process with the GPU: `python -m` this module with the number of a socket, from which it takes requests.

It ends when the other side closes the socket. LiteRT's log goes to its stderr, which the other side reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.gpu.messages import (
    Allocate,
    Bind,
    Describe,
    Failure,
    Finish,
    Open,
    Read,
    Request,
    Run,
    Write,
)
from toolkit.runtime.backends.litert.compiled import CompiledBuffer, CompiledCall, CompiledModel, LiteRt


class Worker:
    """LiteRT, and the models, buffers and calls that requests have made."""

    def __init__(self) -> None:
        self._litert = LiteRt()
        self._models: list[CompiledModel] = []
        self._buffers: list[CompiledBuffer] = []
        self._calls: list[CompiledCall] = []
        self._smallest_outputs: list[CompiledBuffer] = []
        self._last: CompiledBuffer | None = None

    def answer(self, request: Request) -> object:
        """The reply to a request."""
        try:
            return self._perform(request)
        except EnvironmentFault as error:
            return Failure(error.place, error.file, error.found, error.wanted)

    def _perform(self, request: Request) -> object:
        match request:
            case Open():
                return _added(self._models, self._open(request))
            case Describe(model, signature):
                return self._models[model].signature(signature)
            case Allocate(model, signature, kind, name):
                make = self._models[model].input_buffer if kind == "input" else self._models[model].output_buffer
                return _added(self._buffers, make(signature, name))
            case Bind(model, signature):
                inputs = {name: self._buffers[buffer] for name, buffer in request.inputs.items()}
                outputs = {name: self._buffers[buffer] for name, buffer in request.outputs.items()}
                self._smallest_outputs.append(min(outputs.values(), key=lambda buffer: buffer.info.size))
                return _added(self._calls, self._models[model].bind(signature, inputs, outputs))
            case Read(buffer):
                return self._buffers[buffer].read()
            case Write(buffer, array):
                self._buffers[buffer].write(array)
            case Run(call):
                self._calls[call]()
                self._last = self._smallest_outputs[call]
            case Finish():
                # LiteRT's option hint_waiting_for_completion does not make a call wait; reading its output does.
                if self._last is not None:
                    self._last.read()
        return None

    def _open(self, request: Open) -> CompiledModel:
        path = Path(request.path)
        open_model: Callable[[Path], CompiledModel]
        if request.processor == "cpu":
            open_model = partial(self._litert.open_on_cpu, threads=1, weight_cache="")
        else:
            open_model = partial(self._litert.open_on_gpu, float16=request.processor == "gpu-float16")
        try:
            model = open_model(path)
        except RuntimeError as error:
            raise EnvironmentFault(file=path, found=" ".join(str(error).split())) from error
        if request.processor != "cpu" and not model.is_whole:
            raise EnvironmentFault(file=path, found="ops that the GPU does not take", wanted="all of them on the GPU")
        return model


def _added(items: list[CompiledModel] | list[CompiledBuffer] | list[CompiledCall], item: object) -> int:
    """Append to a list; return the new item's index."""
    items.append(item)  # type: ignore[arg-type]
    return len(items) - 1


def main(socket: int) -> None:
    """Answer requests until the socket is closed."""
    connection = Connection(socket)
    worker = Worker()
    try:
        while True:
            connection.send(worker.answer(connection.recv()))
    except (EOFError, ConnectionError):
        # Without LiteRT's destructors, in which some drivers crash.
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
