"""Writes a Gemma 3n or Gemma 4 checkpoint as GGUF for llama.cpp as a peer: float16, then quantised by llama.cpp.

Runs in an environment with llama-cpp-python and gguf, from the repository's root:

  PEER/bin/python -m benchmarks.gguf_peer CHECKPOINT -o DIRECTORY --types Q8_0 Q4_0

The file has no tokenizer: only rates are measured, with token ids. llama.cpp has most of Gemma 3n's numbers built in
(llama-hparams.h and models/gemma3n.cpp); a checkpoint with other numbers is refused. Those of Gemma 4 are in the file
(models/gemma4.cpp).
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

from converters.families import open_checkpoint
from converters.gemma.config import DecoderConfig
from converters.gemma.tensors import PER_LAYER_EMBEDDING, unused_kv_tensors
from converters.gemma3n.config.text import TextConfig as Gemma3nConfig
from converters.gemma3n.family import Gemma3nCheckpoint
from converters.gemma3n.tensors import text_tensors as gemma3n_tensors
from converters.gemma4.config import TextConfig as Gemma4Config
from converters.gemma4.family import Gemma4Checkpoint
from converters.gemma4.tensors import text_tensors as gemma4_tensors
from toolkit.base.layout import align_up

KV_LAYERS, SPARSE_LAYERS, SPARSITY = 20, 10, 0.95
PLE_SIZE, LAUREL_RANK, STREAMS = 256, 64, 4
NOT_ROTATED = 1e30
"""The divisor of an angle that must stay 0 (llama.cpp, conversion/gemma.py, generate_extra_tensors)."""
ALIGNMENT = 32
CHUNK_ELEMENTS = 1 << 23

Checkpoint = Gemma3nCheckpoint | Gemma4Checkpoint


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file: tensors of the checkpoint, one after the other, then rows of zeros up to its shape."""

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    values: tuple[float, ...] = ()
    """Of a tensor that no checkpoint has."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 for vectors and AltUp's small matrices, as llama.cpp wants; otherwise float16."""
        return np.dtype("<f4" if math.prod(self.shape) <= STREAMS**3 or len(self.shape) == 1 else "<f2")

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def refusals(config: Gemma3nConfig) -> list[str]:
    """What llama.cpp would compute differently for this checkpoint of Gemma 3n."""
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


def tensors_3n(config: Gemma3nConfig) -> list[Tensor]:
    """Every tensor, with llama.cpp's name. It wants the K and V weights of all layers, even those it never uses."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3N, config.num_layers)
    shapes = gemma3n_tensors(config) | unused_kv_tensors(config)
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


def tensors_4(config: Gemma4Config) -> list[Tensor]:
    """Every tensor, with llama.cpp's name, and the divisors of the angles of full layers, of which few rotate."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA4, config.num_layers)
    rotated, pairs = config.full_heads.rotated, config.full_heads.dim // 2
    divisors = (1.0,) * rotated + (NOT_ROTATED,) * (pairs - rotated)
    found = [Tensor(names.get_name("rope_freqs") + ".weight", (), (pairs,), divisors)]
    for name, shape in gemma4_tensors(config).items():
        found.append(Tensor(names.get_name("model." + name.removesuffix(".weight")) + ".weight", (name,), shape))
    return found


def _chunks(checkpoint: Checkpoint, tensor: Tensor) -> Iterator[NDArray[np.floating]]:
    if tensor.values:
        yield np.array(tensor.values, tensor.dtype)
        return
    for name in tensor.sources:
        shape = checkpoint.shape(name)
        step = max(1, CHUNK_ELEMENTS // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            yield checkpoint.read(name, (start, min(start + step, shape[0]))).astype(tensor.dtype)
    missing = tensor.shape[0] - checkpoint.shape(tensor.sources[0])[0] if len(tensor.sources) == 1 else 0
    yield np.zeros((missing, *tensor.shape[1:]), tensor.dtype)


def _write_settings(writer: gguf.GGUFWriter, config: DecoderConfig) -> None:
    """Of both families; heads and widths are each family's own."""
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    full, sliding = config.heads("full"), config.heads("sliding")
    writer.add_key_length(full.dim)
    writer.add_value_length(full.dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(full.rope_theta)
    writer.add_rope_freq_base_swa(sliding.rope_theta)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([layer.attention == "sliding" for layer in config.layers])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _write_settings_3n(writer: gguf.GGUFWriter, config: Gemma3nConfig) -> None:
    writer.add_feed_forward_length(config.layers[0].ffn_size)


def _write_settings_4(writer: gguf.GGUFWriter, config: Gemma4Config) -> None:
    sliding = config.sliding_heads.dim
    writer.add_feed_forward_length([layer.ffn_size for layer in config.layers])
    writer.add_shared_kv_layers(config.num_layers - len(config.kv_layers))
    writer.add_embedding_length_per_layer_input(config.ple_size)
    writer.add_key_length_swa(sliding)
    writer.add_value_length_swa(sliding)
    writer.add_rope_dimension_count(config.full_heads.dim)
    writer.add_rope_dimension_count_swa(sliding)
    if config.final_logit_softcap is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcap)


def write_gguf(checkpoint: Checkpoint, path: Path) -> None:
    """Write the whole text model, some MB at a time."""
    is_3n = isinstance(checkpoint, Gemma3nCheckpoint)
    architecture = gguf.MODEL_ARCH.GEMMA3N if is_3n else gguf.MODEL_ARCH.GEMMA4
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _write_settings(writer, checkpoint.config)
    if isinstance(checkpoint, Gemma3nCheckpoint):
        _write_settings_3n(writer, checkpoint.config)
        members = tensors_3n(checkpoint.config)
    else:
        _write_settings_4(writer, checkpoint.config)
        members = tensors_4(checkpoint.config)
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
    with open_checkpoint(options.checkpoint) as checkpoint:
        if not isinstance(checkpoint, (Gemma3nCheckpoint, Gemma4Checkpoint)):
            sys.exit(f"error: {options.checkpoint}: only Gemma 3n and Gemma 4 are written")
        if isinstance(checkpoint, Gemma3nCheckpoint) and (refused := refusals(checkpoint.config)):
            sys.exit(f"error: {options.checkpoint}: llama.cpp fixes these: {'; '.join(refused)}")
        options.output.mkdir(parents=True, exist_ok=True)
        whole = options.output / "F16.gguf"
        write_gguf(checkpoint, whole)
    for name in options.types:
        quantise(whole, options.output / f"{name}.gguf", name)


if __name__ == "__main__":
    main()
