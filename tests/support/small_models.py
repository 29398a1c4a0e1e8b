"""Small stand-ins: a byte-fallback tokenizer of the same make as Gemma's, and a model with a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from checkpoints import TINY, random_tensors, write_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from towers import write_multimodal_checkpoint

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.runtime.backends.interface import ModelFile

WIDTH, OUTPUTS, ROWS = 64, 128, 32
PIECES = [
    "▁",
    "▁the",
    "▁cat",
    "▁s",
    "at",
    "a",
    "b",
    "c",
    "t",
    "h",
    "e",
    "s",
    "th",
    "the",
    "ca",
    "cat",
    "▁c",
    "▁t",
    "▁th",
]
MERGES = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("▁", "the"), ("▁", "cat"), ("▁", "s"), ("a", "t")]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json: control tokens 0..5, 256 bytes, then pieces; everything else falls back to bytes."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    words = control + [f"<0x{byte:02X}>" for byte in range(256)] + PIECES
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in control])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def matrix(seed: int) -> np.ndarray:
    """The weights of the small model."""
    return np.random.default_rng(seed).standard_normal((OUTPUTS, WIDTH)).astype(np.float32)


@pytest.fixture
def small_model(tmp_path: Path) -> Callable[[int], ModelFile]:
    """Makes a model with signatures `prefill_4` and `decode` over one matrix, which depends on the seed.

    x f32[1, N, WIDTH], start i32[3], cache f32[1, ROWS, WIDTH] -> y = x @ matrix.T, cache with x written at start.
    """

    def make(seed: int = 0) -> ModelFile:
        data = model_bytes(seed)
        path = tmp_path / f"small_{seed}.tflite"
        path.write_bytes(data)
        return ModelFile(path, hashlib.sha256(data).hexdigest(), len(data))

    return make


def model_bytes(seed: int) -> bytes:
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(matrix(seed).tobytes(), np.uint8)
    model.operatorCodes = []
    for builtin in (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE):
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        model.operatorCodes.append(code)
    model.subgraphs = [subgraph(4), subgraph(1)]
    model.signatureDefs = [signature("prefill_4", 0), signature("decode", 1)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def subgraph(tokens: int) -> schema.SubGraphT:
    shapes = [(1, tokens, WIDTH), (3,), (1, ROWS, WIDTH), (OUTPUTS, WIDTH), (1, tokens, OUTPUTS), (1, ROWS, WIDTH)]
    graph = schema.SubGraphT()
    graph.tensors = []
    for index, shape in enumerate(shapes):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = f"t{index}".encode(), np.array(shape, np.int32)
        tensor.type = schema.TensorType.INT32 if index == 1 else schema.TensorType.FLOAT32
        tensor.buffer = 1 if index == 3 else 0
        graph.tensors.append(tensor)
    dense, update = schema.OperatorT(), schema.OperatorT()
    dense.opcodeIndex, dense.inputs, dense.outputs = 0, [0, 3, -1], [4]
    dense.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    dense.builtinOptions = schema.FullyConnectedOptionsT()
    dense.builtinOptions.keepNumDims = True
    update.opcodeIndex, update.inputs, update.outputs = 1, [2, 0, 1], [5]
    graph.operators, graph.inputs, graph.outputs = [dense, update], [0, 1, 2], [4, 5]
    return graph


def signature(name: str, index: int) -> schema.SignatureDefT:
    definition = schema.SignatureDefT()
    definition.signatureKey, definition.subgraphIndex = name.encode(), index
    definition.inputs = [tensor_map("x", 0), tensor_map("start", 1), tensor_map("cache", 2)]
    definition.outputs = [tensor_map("y", 4), tensor_map("cache", 5)]
    return definition


def tensor_map(name: str, index: int) -> schema.TensorMapT:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), index
    return entry


@pytest.fixture
def weights() -> Callable[[int], np.ndarray]:
    """The matrix of `small_model` for a seed."""
    return matrix


TEMPLATE = """{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A checkpoint of random weights with a tokenizer, and with a size `small` beside the whole, `full`."""
    # Unscaled, a random model is chaotic: rounding alone would move its logits by more than a fault.
    config = {**TINY, "vocab_size_per_layer_input": 288}
    tensors = {
        name: tensor / np.float32(tensor.shape[-1] ** 0.5) if tensor.ndim == 2 else tensor
        for name, tensor in random_tensors(config, dtype="float32").items()
    }
    path = write_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint", config, tensors)
    small = {"name": "small", "layers": [0, 1, 2, 3, 4, 5, 6], "ffn_sizes": [48, 24, 16, 24, 24, 48, 24]}
    matformer = {"format": "gemma-edge-matformer/1", "slices": [small]}
    (path / "matformer.json").write_text(json.dumps(matformer))
    (path / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (path / "chat_template.jinja").write_text(TEMPLATE)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    return path


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """Its float bundle in both sizes: context 40, prefills of 4 and 16."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    request = ConvertRequest(
        random_checkpoint, path, {"text": "f32"}, sizes=("full", "small"), context=40, prefill_sizes=(4, 16)
    )
    convert(request, gate=None)
    return path


@pytest.fixture(scope="session")
def drafting_bundle(tmp_path_factory: pytest.TempPathFactory, random_checkpoint: Path) -> Path:
    """Its int8 bundle in both sizes, which checks three drafts a step: context 120, rings of 20 rows."""
    path = tmp_path_factory.mktemp("drafting") / "bundle"
    request = ConvertRequest(
        random_checkpoint, path, sizes=("full", "small"), context=120, prefill_sizes=(4, 16), draft_tokens=3
    )
    convert(request, gate=None)
    return path


@pytest.fixture(scope="session")
def multimodal_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bundle with both towers, in int8: context 160, prefills of 4, 16 and 64; the example's tokenizer."""
    path = tmp_path_factory.mktemp("multimodal")
    checkpoint = write_multimodal_checkpoint(path / "checkpoint")
    convert(ConvertRequest(checkpoint, path / "bundle", context=160, prefill_sizes=(4, 16, 64)), gate=None)
    return path / "bundle"
