"""LiteRT's CompiledModel behind types; the only file that imports it."""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ai_edge_litert import compiled_model as litert  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.weight_cache import IN_MEMORY, ModelFile, WeightCache, open_cached

T = TypeVar("T")

_log = logging.getLogger(__name__)


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


class Buffer:
    """Memory that LiteRT reads or writes in place; it may be bound to several models."""

    def __init__(self, raw: object, info: TensorInfo) -> None:
        self._raw: Any = raw
        self.info = info

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array of the buffer's type and size in."""
        assert array.dtype == self.info.dtype and array.size == self.info.size, (array.dtype, array.shape, self.info)
        self._raw.write(array)

    def read(self) -> NDArray[Any]:
        """A copy, in the buffer's shape."""
        return np.asarray(self._raw.read(self.info.size, self.info.dtype)).reshape(self.info.shape)

    @property
    def raw(self) -> object:
        """LiteRT's own object."""
        return self._raw

    def close(self) -> None:
        """Let go of the memory."""
        self._raw = None


class Call:
    """One signature with a buffer bound to every input and output."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._name = name
        self._run = run

    def __call__(self) -> None:
        """Run it; EnvironmentFault when LiteRT fails."""
        try:
            self._run()
        except RuntimeError as error:
            raise EnvironmentFault(f"signature {self._name}", found=error, wanted="LiteRT to run it") from error

    def close(self) -> None:
        """Let go of the model and its buffers."""
        self._run = _closed


Part = TypeVar("Part", Buffer, Call)


class Model:
    """A .tflite file, ready to run on the CPU."""

    def __init__(self, path: Path, raw: object) -> None:
        self._raw: Any = raw
        self.path = path
        self._parts: list[Buffer | Call] = []
        self._order = self._signature_names()
        self._signatures: dict[str, SignatureInfo] = {}

    def signature(self, name: str) -> SignatureInfo:
        """Asked when it is first used: LiteRT prepares the signature's memory to answer."""
        if name not in self._signatures:
            self._signatures[name] = self._read_signature(name)
        return self._signatures[name]

    def input_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an input; its content is undefined."""
        raw = self._raw.create_input_buffer_by_name(signature, name)
        return self._own(Buffer(raw, self.signature(signature).inputs[name]))

    def output_buffer(self, signature: str, name: str) -> Buffer:
        """A new buffer that fits an output."""
        raw = self._raw.create_output_buffer_by_name(signature, name)
        return self._own(Buffer(raw, self.signature(signature).outputs[name]))

    def bind(self, signature: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Call:
        """A call with these buffers, one for every name; shapes and types must be the signature's own."""
        info = self.signature(signature)
        index = self._order.index(signature)
        ins = self._ordered(f"{signature} input", info.inputs, inputs)
        outs = self._ordered(f"{signature} output", info.outputs, outputs)
        run = self._raw.run_by_index
        return self._own(Call(f"{self.path.name}:{signature}", lambda: run(index, ins, outs)))

    def close(self) -> None:
        """Let go of the model, its calls and its buffers: none of them works any more."""
        for part in self._parts:
            part.close()
        self._parts.clear()
        self._raw = None

    def _own(self, part: Part) -> Part:
        self._parts.append(part)
        return part

    def _ordered(self, what: str, infos: Mapping[str, TensorInfo], buffers: Mapping[str, Buffer]) -> list[object]:
        assert infos.keys() == buffers.keys(), (what, list(infos), list(buffers))
        for name, info in infos.items():
            if buffers[name].info != info:
                raise EnvironmentFault(f"{self.path} {what} {name}", found=info, wanted=buffers[name].info)
        return [buffers[name].raw for name in infos]

    def _signature_names(self) -> list[str]:
        return [str(self._raw.get_signature_by_index(i)["key"]) for i in range(self._raw.get_num_signatures())]

    def _read_signature(self, name: str) -> SignatureInfo:
        names = self._raw.get_signature_list()[name]
        inputs, outputs = self._raw.get_input_tensor_details(name), self._raw.get_output_tensor_details(name)
        return SignatureInfo(
            {key: _tensor_info(inputs[key]) for key in names["inputs"]},
            {key: _tensor_info(outputs[key]) for key in names["outputs"]},
        )


class Runtime:
    """LiteRT's environment: models opened in one runtime can share buffers."""

    def __init__(self) -> None:
        self._environment: Any = _quietly("LiteRT", _make_environment)
        self._models: list[Model] = []

    def open(self, model: ModelFile, *, threads: int, cache: WeightCache) -> Model:
        """Map the file and prepare every signature; EnvironmentFault when LiteRT refuses it."""

        def load(cache_path: str) -> Model:
            cpu = litert.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache_path)
            options = litert.Options(cpu_options=cpu)
            path = str(model.path)
            from_file = litert.CompiledModel.from_file
            raw = _quietly(path, lambda: from_file(path, environment=self._environment, options=options))
            return Model(model.path, raw)

        if isinstance(cache, Path):
            opened = open_cached(model, cache, load)
        else:
            opened = load(IN_MEMORY if cache == "memory" else "")
        self._models.append(opened)
        return opened

    def close(self) -> None:
        """Let go of every model and of the environment."""
        _quietly("LiteRT", self._release)

    def _release(self) -> None:
        for model in self._models:
            model.close()
        self._models.clear()
        self._environment = None


def _make_environment() -> Any:
    options = litert.EnvironmentOptions(runtime_path=str(Path(litert.__file__).parent))
    # The first write makes LiteRT set up another environment of its own, as talkative as the first.
    litert.TensorBuffer.create_from_host_memory(np.zeros(16, np.float32)).write(np.zeros(16, np.float32))
    return litert.Environment.create(options=options)


def _closed() -> None:
    raise ValueError("this model is closed")


def _tensor_info(details: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(tuple(int(n) for n in details["shape"]), np.dtype(details["dtype"]))


def _quietly(what: str, work: Callable[[], T]) -> T:
    """Run ``work`` with what LiteRT says going to our log: it writes to file descriptor 2 and cannot be told not to."""
    lines: list[str] = []
    level = logging.WARNING
    try:
        with _captured_stderr(lines):
            return work()
    except RuntimeError as error:
        level = logging.DEBUG
        faults = [line for line in lines if line.startswith("ERROR")]
        # The traceback's frames would keep LiteRT's environment alive beyond its quiet end.
        raise EnvironmentFault(
            what, found="; ".join([str(error), *faults]), wanted="LiteRT to open it"
        ) from error.with_traceback(None)
    finally:
        for line in lines:
            _log.log(level if line.startswith("ERROR") else logging.DEBUG, "LiteRT: %s", line)


@contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Collect the lines written to file descriptor 2, by this process's other threads too."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            lines += sink.read().decode(errors="replace").splitlines()
