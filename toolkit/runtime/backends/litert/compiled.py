"""A typed wrapper of LiteRT's CompiledModel; the only module that imports it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ai_edge_litert import compiled_model as litert  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit.base.errors import EnvironmentFault
from toolkit.runtime.backends.interface import Buffer, SignatureInfo, TensorInfo
from toolkit.runtime.backends.litert.litert_log import quiet_at_exit


class CompiledBuffer:
    """Memory that LiteRT reads or writes in place; it may be bound to several models."""

    def __init__(self, raw: object, info: TensorInfo) -> None:
        self._raw: Any = raw
        self.info = info

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy an array into the buffer; it must have the buffer's element type and number of elements."""
        assert array.dtype == self.info.dtype and array.size == self.info.size, (array.dtype, array.shape, self.info)
        self._raw.write(array)

    def read(self) -> NDArray[Any]:
        """A copy of the content, in the buffer's shape."""
        return np.asarray(self._raw.read(self.info.size, self.info.dtype)).reshape(self.info.shape)

    @property
    def raw(self) -> object:
        """The LiteRT object."""
        return self._raw

    def close(self) -> None:
        """Free the memory, even if something still refers to LiteRT's object, such as the frames of an exception."""
        if self._raw is not None:
            self._raw.destroy()
            self._raw = None


class CompiledCall:
    """One signature with a buffer bound to every input and output."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._name = name
        self._run = run

    def __call__(self) -> None:
        """Run the signature; EnvironmentFault if LiteRT fails."""
        try:
            self._run()
        except RuntimeError as error:
            raise EnvironmentFault(f"signature {self._name}", found=f"LiteRT cannot run it ({error})") from error

    def close(self) -> None:
        """Drop the references to the model and its buffers."""
        self._run = _closed


Part = TypeVar("Part", CompiledBuffer, CompiledCall)
T = TypeVar("T")


class CompiledModel:
    """A .tflite file, ready to run."""

    def __init__(self, path: Path, raw: object) -> None:
        self._raw: Any = raw
        self.path = path
        self._parts: list[CompiledBuffer | CompiledCall] = []
        self._order = self._signature_names()
        self._signatures: dict[str, SignatureInfo] = {}

    def signature(self, name: str) -> SignatureInfo:
        """The inputs and outputs of a signature; read only on first use, because LiteRT then allocates its memory."""
        if name not in self._signatures:
            self._signatures[name] = self._prepared(name, lambda: self._read_signature(name))
        return self._signatures[name]

    def input_buffer(self, signature: str, name: str) -> CompiledBuffer:
        """A new buffer that fits an input; its content is undefined."""
        raw = self._prepared(signature, lambda: self._raw.create_input_buffer_by_name(signature, name))
        return self._own(CompiledBuffer(raw, self.signature(signature).inputs[name]))

    def output_buffer(self, signature: str, name: str) -> CompiledBuffer:
        """A new buffer that fits an output."""
        raw = self._prepared(signature, lambda: self._raw.create_output_buffer_by_name(signature, name))
        return self._own(CompiledBuffer(raw, self.signature(signature).outputs[name]))

    def bind(self, signature: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> CompiledCall:
        """A call with these buffers, one for each name; EnvironmentFault if one has another shape or type."""
        info = self.signature(signature)
        index = self._order.index(signature)
        ins = self._ordered(f"{signature} input", info.inputs, inputs)
        outs = self._ordered(f"{signature} output", info.outputs, outputs)
        run = self._raw.run_by_index
        return self._own(CompiledCall(f"{self.path.name}:{signature}", lambda: run(index, ins, outs)))

    @property
    def is_whole(self) -> bool:
        """Whether the processor that was asked for runs every operator."""
        return bool(self._raw.is_fully_accelerated())

    def close(self) -> None:
        """Free the model, its calls and its buffers; none of them can be used afterwards."""
        for part in self._parts:
            part.close()
        self._parts.clear()
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def _prepared(self, signature: str, work: Callable[[], T]) -> T:
        """The result of `work`, for which LiteRT prepares a signature; EnvironmentFault if it cannot."""
        try:
            return work()
        except RuntimeError as error:
            found = f"LiteRT cannot prepare it ({error})"
            raise EnvironmentFault(f"signature {signature}", file=self.path, found=found) from error

    def _own(self, part: Part) -> Part:
        self._parts.append(part)
        return part

    def _ordered(self, what: str, infos: Mapping[str, TensorInfo], buffers: Mapping[str, Buffer]) -> list[object]:
        assert infos.keys() == buffers.keys(), (what, list(infos), list(buffers))
        for name, info in infos.items():
            if buffers[name].info != info:
                raise EnvironmentFault(f"{what} {name}", file=self.path, found=info, wanted=buffers[name].info)
        return [_raw(buffers[name]) for name in infos]

    def _signature_names(self) -> list[str]:
        return [str(self._raw.get_signature_by_index(i)["key"]) for i in range(self._raw.get_num_signatures())]

    def _read_signature(self, name: str) -> SignatureInfo:
        names = self._raw.get_signature_list()[name]
        inputs, outputs = self._raw.get_input_tensor_details(name), self._raw.get_output_tensor_details(name)
        return SignatureInfo(
            {key: _tensor_info(inputs[key]) for key in names["inputs"]},
            {key: _tensor_info(outputs[key]) for key in names["outputs"]},
        )


class LiteRt:
    """LiteRT's environment: models opened in the same environment can share buffers, whichever processors they use."""

    def __init__(self) -> None:
        """Create the environment; RuntimeError if LiteRT cannot be set up."""
        options = litert.EnvironmentOptions(runtime_path=str(Path(litert.__file__).parent))
        _make_default_environment()
        self._raw: Any = litert.Environment.create(options=options)

    def open_on_cpu(self, path: Path, *, threads: int, weight_cache: str) -> CompiledModel:
        """Map the file and prepare its signatures; RuntimeError if LiteRT refuses it.

        `weight_cache`: the path of the cache, or LiteRT's name for one in memory.
        """
        cpu = litert.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=weight_cache)
        return self._open(path, litert.Options(cpu_options=cpu))

    def open_on_gpu(self, path: Path, *, float16: bool) -> CompiledModel:
        """Move the weights to the GPU; RuntimeError if there is no GPU, or if it does not take every operator."""
        # As in LiteRT-LM: numbers beyond the range of float16 become the largest one instead of infinity.
        gpu = litert.GpuOptions(enforce_f32=not float16, infinite_float_capping=float16)
        # Without the CPU, on which LiteRT would run what the GPU refuses, and count it as accelerated.
        accelerators = litert.HardwareAccelerator.GPU
        return self._open(path, litert.Options(hardware_accelerators=accelerators, gpu_options=gpu))

    def close(self) -> None:
        """Free the environment, after all of its models are closed."""
        self._raw.close()

    def _open(self, path: Path, options: object) -> CompiledModel:
        return CompiledModel(path, litert.CompiledModel.from_file(str(path), environment=self._raw, options=options))


@cache
def _make_default_environment() -> None:
    """Have LiteRT create its default environment, once per process: the first write does it, and it lives until
    exit(3)."""
    with quiet_at_exit():
        litert.TensorBuffer.create_from_host_memory(np.zeros(16, np.float32)).write(np.zeros(16, np.float32))


def _closed() -> None:
    raise ValueError("this model is closed")


def _raw(buffer: Buffer) -> object:
    assert isinstance(buffer, CompiledBuffer), "a buffer of another backend"
    return buffer.raw


def _tensor_info(details: Mapping[str, Any]) -> TensorInfo:
    return TensorInfo(tuple(int(n) for n in details["shape"]), np.dtype(details["dtype"]))
