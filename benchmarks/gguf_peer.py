"""Writes a Gemma 3n checkpoint as GGUF for llama.cpp as a peer: in float16, then quantised by llama.cpp itself.

Runs in an environment with llama-cpp-python and gguf, from the repository's root:

  PEER/bin/python -m benchmarks.gguf_peer CHECKPOINT -o DIRECTORY --types Q8_0 Q4_0

The file has no tokenizer: only rates are measured, with token ids. llama.cpp has most of the architecture's numbers
built in (llama-hparams.h and models/gemma3n.cpp); a checkpoint with other numbers is refused.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf  # type: ignore[import-not-found]
import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from converters.gemma.tensors import PER_LAYER_EMBEDDING, unused_kv_tensors
from converters.gemma3n.config.text import TextConfig
from converters.gemma3n.family import Gemma3nCheckpoint, open_gemma3n
from converters.gemma3n.tensors import text_tensors
from toolkit.base.layout import align_up

KV_LAYERS, SPARSE_LAYERS, SPARSITY = 20, 10, 0.95
PLE_SIZE, LAUREL_RANK, STREAMS = 256, 64, 4
ALIGNMENT = 32
CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file: tensors of the checkpoint, one after the other, then rows of zeros up to its shape."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 for vectors and AltUp's small matrices, as llama.cpp wants; otherwise float16."""
        return np.dtype("<f4" if math.prod(self.shape) <= STREAMS**3 or len(self.shape) == 1 else "<f2")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def refusals(config: TextConfig) -> list[str]:
    """What llama.cpp would compute differently for this checkpoint."""
    sparse = [layer.sparsity for layer in config.layers]
    wanted = {
        "layers with a KV cache of their own": (config.kv_layers, tuple(range(KV_LAYERS))),
        "sparsity": (sparse, [SPARSITY] * SPARSE_LAYERS + [0.0] * (config.num_layers - SPARSE_LAYERS)),
        "width of per-layer embeddings": (config.ple_size, PLE_SIZE),
        "LAuReL rank": (config.laurel_rank, LAUREL_RANK),
        "AltUp streams": (config.altup_num_inputs, STREAMS),
        "FFN widths": (len({layer.ffn_size for layer in config.layers}), 1),
    }
    return [f"{what}: found {found}, wanted {want}" for what, (found, want) in wanted.items() if found != want]


def tensors(config: TextConfig) -> list[Tensor]:
    """Every tensor, with llama.cpp's name. It wants the K and V weights of all layers, even those it never uses."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3N, config.num_layers)
    shapes = text_tensors(config) | unused_kv_tensors(config)
    found = []
    for kind in ("altup_projections", "altup_unembed_projections"):
        parts = tuple(f"{kind}.{index}.weight" for index in range(STREAMS - 1))
        stacked = (len(parts), *shapes[parts[0]])
        for part in parts:
            del shapes[part]
        found.append(Tensor(names.get_name(f"model.{kind}") + ".weight", parts, stacked))
    for name, shape in shapes.items():
        stem = names.get_name("model." + name.removesuffix(".weight"))
        rows = config.vocab_size if name == PER_LAYER_EMBEDDING else shape[0]
        found.append(Tensor(f"{stem}.weight", (name,), (rows, *shape[1:])))
    return found


def _chunks(checkpoint: Gemma3nCheckpoint, tensor: Tensor) -> Iterator[NDArray[np.floating]]:
    for name in tensor.sources:
        shape = checkpoint.shape(name)
        step = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            yield checkpoint.read(name, (start, min(start + step, shape[0]))).astype(tensor.dtype)
    missing = tensor.shape[0] - checkpoint.shape(tensor.sources[0])[0] if len(tensor.sources) == 1 else 0
    yield np.zeros((missing, *tensor.shape[1:]), tensor.dtype)


def _write_settings(writer: gguf.GGUFWriter, config: TextConfig) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.layers[0].ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta_full)
    writer.add_rope_freq_base_swa(config.rope_theta_sliding)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([layer.attention == "sliding" for layer in config.layers])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def write_gguf(checkpoint: Gemma3nCheckpoint, path: Path) -> None:
    """Write the whole text model, some MB at a time."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GEMMA3N])
    _write_settings(writer, checkpoint.config)
    members = tensors(checkpoint.config)
    for tensor in members:
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.dtype, tensor.size_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    for tensor in members:
        _pad(file)
        for chunk in _chunks(checkpoint, tensor):
            file.write(chunk.data)
    _pad(file)
    writer.close()


def _pad(file: BinaryIO) -> None:
    position = file.tell()
    file.write(bytes(align_up(position, ALIGNMENT) - position))


def quantise(source: Path, target: Path, type_name: str) -> None:
    """Quantise as llama.cpp's own tool does, with its choice of types for the embedding and for small matrices."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if code:
        sys.exit(f"error: {target}: llama.cpp's quantiser ended with {code}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gguf_peer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory for F16.gguf, Q8_0.gguf, ...")
    parser.add_argument("--types", nargs="*", default=["Q8_0", "Q4_0"], help="default: Q8_0 Q4_0")
    options = parser.parse_args(arguments)
    with open_gemma3n(options.checkpoint) as checkpoint:
        if refused := refusals(checkpoint.config):
            sys.exit(f"error: {options.checkpoint}: llama.cpp fixes these: {'; '.join(refused)}")
        options.output.mkdir(parents=True, exist_ok=True)
        whole = options.output / "F16.gguf"
        write_gguf(checkpoint, whole)
    for name in options.types:
        quantise(whole, options.output / f"{name}.gguf", name)


if __name__ == "__main__":
    main()
