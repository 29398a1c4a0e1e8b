"""Reads checkpoints with `quant_method: gemma`: their codes as they are, or the numbers that the codes stand for.

A quantised Linear `X` has `X.weight` (codes), `X.weight_scale` f32[out, 1], and scales of its activations; an Embedding
has `X.embedding_quantized` and `X.embedding_scale` f32[rows, blocks]. Codes of 2 and 4 bits are packed into bytes, the
first in the lowest bits, as in LiteRT, but in offset binary: LiteRT's two's complement differs in each code's highest
bit. Source: transformers 5.24, `integrations/gemma_quant.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from converters.huggingface.gemma_quant.config import GemmaQuantConfig
from converters.huggingface.safetensors import SafetensorsFile, TensorInfo
from converters.huggingface.stored_tensors import StoredTensors
from converters.huggingface.tensor_reader import FLOAT_DTYPES, Range, read_tensor
from toolkit.base.activations import ActivationScales
from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import shorten
from toolkit.quant.packing import unpack_codes
from toolkit.quant.scheme import Scheme
from toolkit.quant.source import PackedRows
from toolkit.quant.uniform import ROW_SCALE_MIN

F32 = NDArray[np.float32]

_STORED = {2: "U8", 4: "U8", 8: "I8"}
_HIGHEST_BITS = {2: 0xAA, 4: 0x88, 8: 0}

_CODES, _WEIGHT = ".embedding_quantized", ".weight"
_SCALES = {_CODES: ".embedding_scale", _WEIGHT: ".weight_scale"}
_INPUT, _OUTPUT = ".input_activation_scale", ".output_activation_scale"
_UNUSED = (".k_cache_scale", ".v_cache_scale")
"""The scales of an int8 KV cache, which transformers ignores as well."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A tensor that is stored as codes: its entry in `infos`, and the stored tensors."""

    info: TensorInfo
    codes: TensorInfo
    scales: TensorInfo
    bits: int

    @property
    def block(self) -> int:
        """The number of columns that share a scale."""
        return self.info.shape[1] // self.scales.shape[1]


class GemmaQuantTensors(StoredTensors):
    """`StoredTensors` whose `infos` has each quantised weight as one tensor `X.weight` of type I2, I4 or I8.

    The scales are not tensors of their own there. Safe to read from several threads.
    """

    def __init__(self, path: Path, files: Sequence[SafetensorsFile] | None, config: GemmaQuantConfig) -> None:
        """Read only headers; CheckpointError lists the tensors that are not as `config` says."""
        super().__init__(path, files)
        try:
            self._path = path
            self._raw = self.infos
            self._packed = _packed_tensors(self._raw, config, path)
        except BaseException:
            self.close()
            raise
        for file in self._files.values():
            file.expect(info for info in file.tensors.values() if info.name.endswith((_INPUT, _OUTPUT)))
        self._activations: dict[str, float | None] = {}
        """The scales of activations that were read, by the names of their tensors."""
        plain = {name: info for name, info in self._raw.items() if not _is_part(name, self._packed)}
        self.infos = MappingProxyType(plain | {name: packed.info for name, packed in self._packed.items()})

    def is_readable(self, info: TensorInfo) -> bool:
        """Whether `read` supports the tensor's type."""
        return info.name in self._packed or super().is_readable(info)

    def read(self, info: TensorInfo, rows: Range | None = None, columns: Range | None = None) -> F32:
        """Like `StoredTensors.read`; codes are multiplied by their scales, in float32."""
        found = self._packed.get(info.name)
        if found is None:
            return super().read(info, rows, columns)
        first, stop = columns or (0, info.shape[1])
        per_byte = 8 // found.bits
        left = first // per_byte
        payload = self._payload(found, rows or (0, info.shape[0]))[:, left : -(-stop // per_byte)]
        codes = unpack_codes(np.ascontiguousarray(payload), found.bits).reshape(len(payload), -1)
        codes = codes[:, first - left * per_byte : stop - left * per_byte]
        scales = self._scales(found, rows or (0, info.shape[0]))
        if scales.shape[1] > 1:
            scales = np.repeat(scales, found.block, axis=1)[:, first:stop]
        return codes * scales

    def packed(self, info: TensorInfo, scheme: Scheme, rows: Range, columns: Range | None = None) -> PackedRows | None:
        """Codes and scales in the form of `PackedSource`; None unless the tensor is stored in this scheme."""
        found = self._packed.get(info.name)
        if found is None or scheme.element.bits != found.bits or not scheme.quantised:
            return None
        per_byte = 8 // found.bits
        first, stop = columns or (0, info.shape[1])
        per_row = found.block == info.shape[1]
        if (scheme.block_size or stop - first) != (stop - first if per_row else found.block):
            return None
        if first % per_byte or stop % per_byte or (columns is not None and not per_row):
            return None
        payload = self._payload(found, rows)[:, first // per_byte : stop // per_byte]
        scales = self._scales(found, rows)
        return PackedRows(np.ascontiguousarray(payload), scales[:, 0] if scheme.block_size is None else scales)

    def scheme(self, info: TensorInfo) -> Scheme | None:
        """See `StoredTensors.scheme`."""
        found = self._packed.get(info.name)
        if found is None:
            return None
        dtype = {2: "int2", 4: "int4", 8: "int8"}[found.bits]
        return Scheme(dtype, None if found.block == info.shape[1] else found.block)  # type: ignore[arg-type]

    def activation_scales(self, info: TensorInfo) -> ActivationScales:
        """See `StoredTensors.activation_scales`."""
        module = info.name.removesuffix(_WEIGHT)
        return ActivationScales(self._activation_scale(module + _INPUT), self._activation_scale(module + _OUTPUT))

    def equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        """Whether two tensors have the same type, shape and bytes, and, if they are codes, the same scales."""
        packed = [self._packed.get(info.name) for info in (one, other)]
        if packed[0] is None or packed[1] is None:
            return packed == [None, None] and super().equal(one, other)
        same = packed[0].bits == packed[1].bits
        pairs = ((packed[0].codes, packed[1].codes), (packed[0].scales, packed[1].scales))
        return same and all(super(GemmaQuantTensors, self).equal(*pair) for pair in pairs)

    def fingerprint(self, config: object, stop_tokens: Iterable[int], names: Mapping[str, TensorInfo]) -> str:
        """Like `StoredTensors.fingerprint`, including the scales."""
        scales = {
            f"{name} {part.name}": part
            for name, info in names.items()
            if info.name in self._packed
            for part in self._companions(info.name)
        }
        return super().fingerprint(config, stop_tokens, {**names, **scales})

    def _companions(self, name: str) -> list[TensorInfo]:
        module = name.removesuffix(_WEIGHT)
        others = (self._raw.get(module + suffix) for suffix in (_INPUT, _OUTPUT))
        return [self._packed[name].scales, *(info for info in others if info is not None)]

    def _payload(self, found: _Packed, rows: Range) -> NDArray[np.uint8]:
        """The packed codes in two's complement: uint8[rows, bytes of a row]."""
        width = found.codes.shape[1]
        payload = np.empty((rows[1] - rows[0], width), np.uint8)
        self._files[found.codes.file].read_into(payload, found.codes.begin + rows[0] * width)
        if _HIGHEST_BITS[found.bits]:
            payload ^= np.uint8(_HIGHEST_BITS[found.bits])
        return payload

    def _scales(self, found: _Packed, rows: Range) -> F32:
        """The scales f32[rows, blocks]; CheckpointError for one that is not a positive finite number."""
        scales = read_tensor(self._files[found.scales.file], found.scales, rows, None)
        wrong = scales < ROW_SCALE_MIN
        if wrong.any():
            row, block = np.unravel_index(int(wrong.argmax()), wrong.shape)
            raise CheckpointError(
                f"{found.scales.name}, row {rows[0] + int(row)}",
                file=self._path,
                found=f"the scale {scales[row, block]}",
                wanted="a positive number",
                remedy="download it again",
            )
        return scales

    def _activation_scale(self, name: str) -> float | None:
        info = self._raw.get(name)
        if info is None:
            return None
        if name not in self._activations:
            scale = float(read_tensor(self._files[info.file], info, None, None).reshape(()))
            if scale < 0:
                raise CheckpointError(name, file=self._path, found=scale, wanted="a positive number, or 0 for none")
            self._activations[name] = scale or None
        return self._activations[name]


def _packed_tensors(stored: Mapping[str, TensorInfo], config: GemmaQuantConfig, path: Path) -> Mapping[str, _Packed]:
    """The quantised weights by the name `X.weight`; one CheckpointError lists everything that does not fit."""
    codes = {name: suffix for name in stored for suffix in (_CODES, _WEIGHT) if name.endswith(suffix)}
    modules = {name: name.removesuffix(suffix) for name, suffix in codes.items()}
    bits = config.bits_of(sorted(set(modules.values())))
    found: dict[str, _Packed] = {}
    faults: list[str] = []
    for name, suffix in codes.items():
        info, module = stored[name], modules[name]
        scales = stored.get(module + _SCALES[suffix])
        if suffix == _WEIGHT and info.dtype in FLOAT_DTYPES and scales is None:
            is_converted = len(info.shape) == 2 and bits[module] is not None and module + _CODES not in stored
            if is_converted and (
                config.quantize_embeddings or not module.rpartition(".")[2].startswith("embed_tokens")
            ):
                faults.append(f"{shorten(name)} is {info.dtype}, not codes of {bits[module]} bits")
            continue
        fault = _fault(info, scales, bits[module])
        if fault is not None:
            faults.append(f"{shorten(name)} {fault}")
        else:
            width = info.shape[1] * 8 // (bits[module] or 8)
            shown = replace(info, name=module + _WEIGHT, dtype=f"I{bits[module]}", shape=(info.shape[0], width))
            assert scales is not None
            if shown.name in found:
                faults.append(f"{shorten(shown.name)} is stored twice, as a Linear's and as an Embedding's")
            found[shown.name] = _Packed(shown, info, scales, bits[module] or 8)
    faults += _stray_scales(stored, found)
    if faults:
        more = f"; {len(faults) - 3} more" if len(faults) > 3 else ""
        wanted = f"weights as {config.file} describes them in quantization_config"
        raise CheckpointError(file=path, found="; ".join(faults[:3]) + more, wanted=wanted)
    return found


def _fault(codes: TensorInfo, scales: TensorInfo | None, bits: int | None) -> str | None:
    """What is wrong with a quantised weight; None if nothing is."""
    if bits is None:
        return f"is {codes.dtype}, but the module is not to be converted"
    if codes.dtype != _STORED[bits] or len(codes.shape) != 2:
        return f"is {codes.dtype} {list(codes.shape)}, not {_STORED[bits]} in two axes, for codes of {bits} bits"
    if scales is None:
        return "has no scales"
    if scales.dtype not in FLOAT_DTYPES or len(scales.shape) != 2 or scales.shape[0] != codes.shape[0]:
        return f"has scales {scales.dtype} {list(scales.shape)}, not numbers [{codes.shape[0]}, blocks]"
    blocks = scales.shape[1]
    if codes.name.endswith(_WEIGHT) and blocks != 1:
        return f"has {blocks} scales a row, not one"
    if not blocks or codes.shape[1] % blocks:
        return f"has {blocks} scales for rows of {codes.shape[1]} bytes"
    return None


def _stray_scales(stored: Mapping[str, TensorInfo], found: Mapping[str, _Packed]) -> list[str]:
    """Faults for scales that belong to no quantised weight, or have a wrong shape."""
    faults = []
    for name, info in stored.items():
        suffix = next((s for s in (*_SCALES.values(), _INPUT, _OUTPUT) if name.endswith(s)), None)
        if suffix is None:
            continue
        if name.removesuffix(suffix) + _WEIGHT not in found:
            faults.append(f"{shorten(name)} belongs to no quantised weight")
        elif suffix in (_INPUT, _OUTPUT) and (info.dtype not in FLOAT_DTYPES or math.prod(info.shape) != 1):
            faults.append(f"{shorten(name)} is {info.dtype} {list(info.shape)}, not one number")
    return faults


def _is_part(name: str, packed: Mapping[str, _Packed]) -> bool:
    """Whether a stored tensor is part of a quantised tensor, or unused."""
    if name.endswith(_UNUSED):
        return True
    suffixes = (_CODES, _WEIGHT, *_SCALES.values(), _INPUT, _OUTPUT)
    return any(name.endswith(suffix) and name.removesuffix(suffix) + _WEIGHT in packed for suffix in suffixes)
