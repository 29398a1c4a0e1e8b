"""A second model family, of no use but this: two dense layers without rotary embeddings, norms' weights or towers.

    x = embed[ids]
    for each layer: x += sqrt(ple_size) * ple @ P.T; x += attention(rms(x)); x += tanh(rms(x) @ up.T) @ down.T
    logits = rms(x) @ head.T

The factor of the per-layer embeddings is the bundle format's. It is here to show what a family takes: this file, and
one entry in a tuple.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from checkpoints import write_checkpoint
from numpy.typing import NDArray

from converters.family import CalibrationPass, Family, HeadRows, LayersDone, MatrixProduct, ParameterGroup, RecipeChoice
from converters.huggingface.adapters.adapter import Adapter
from converters.huggingface.configs import CheckpointConfigs
from converters.huggingface.stored_tensors import StoredTensors
from converters.plan import GraphFiles, Plan, PlannedTower, PlanRequest, ShardFiles, StepRequest
from converters.slices import Budget, Slice, SliceFacts
from toolkit.base.errors import CheckpointError, SliceError, ToolkitError
from toolkit.base.strict_json import JsonObject
from toolkit.bundle.manifest import (
    EMBEDDER,
    TEXT_DECODER,
    AudioRecord,
    KvCache,
    SizeRecord,
    TextRecord,
    VisionRecord,
)
from toolkit.bundle.ple_shards import PleLayout
from toolkit.bundle.write import GroupDraft
from toolkit.quant.recipe import Recipe, Rule
from toolkit.quant.scheme import Scheme
from toolkit.tflite import ops
from toolkit.tflite.graph import DType, Graph, Signature, Value, Weight
from toolkit.tflite.writer import layout_files

F32 = NDArray[np.float32]

CONFIG: Mapping[str, object] = {
    "architectures": ["ToyForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_size": 64,
    "ple_size": 8,
    "max_positions": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
EPSILON = 1e-6
RECIPES = {name: Recipe(name, (Rule("*", Scheme(name)),)) for name in ("f32", "int8")}


@dataclass(frozen=True, slots=True)
class ToyConfig:
    """The numbers of config.json."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    ple_size: int
    max_positions: int
    bos_token_id: int
    eos_token_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each."""
        hidden, ffn, ple = self.hidden_size, self.ffn_size, self.ple_size
        shapes = {"embed": (self.vocab_size, hidden), "ple": (self.vocab_size, self.num_layers * ple)}
        for i in range(self.num_layers):
            layer = {**dict.fromkeys("qkvo", (hidden, hidden)), "up": (ffn, hidden), "down": (hidden, ffn)}
            shapes |= {f"layers.{i}.{name}": shape for name, shape in {**layer, "ple": (hidden, ple)}.items()}
        return {**shapes, "head": (self.vocab_size, hidden)}


# --- checkpoint ------------------------------------------------------------------------------------------------------


class ToyCheckpoint:
    """An open checkpoint: `converters.family.Checkpoint`, and a TensorSource."""

    def __init__(self, configs: CheckpointConfigs) -> None:
        fields = JsonObject(configs.config, str(configs.config_path), CheckpointError)
        (self.architecture,) = map(str, fields.array("architectures"))
        self.config = ToyConfig(**{key: fields.integer(key, 1, 4096) for key in ToyConfig.__slots__})
        fields.finish()
        self.path, self.name, self._raw = configs.path, configs.name, configs.config
        self._stored = StoredTensors(configs.path, configs.remote_files)
        if {name: info.shape for name, info in self._stored.infos.items()} != self.config.tensors():
            raise CheckpointError(file=self.path, found="other tensors", wanted="those of the toy")

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        return ()

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        names = {"token_embedding": ("embed",), "per_layer_embedding": ("ple",)}
        rest = tuple(sorted(self._stored.infos.keys() - {"embed", "ple"}))
        return tuple(self._group(group, members) for group, members in {"text": rest, **names}.items())

    def _group(self, name: str, members: tuple[str, ...]) -> ParameterGroup:
        infos = [self._stored.infos[member] for member in members]
        return ParameterGroup(name, members, sum(i.parameters for i in infos), sum(i.stored_bytes for i in infos))

    @property
    def slices(self) -> Mapping[str, Slice]:
        return {"full": self.default_slice}

    @property
    def default_slice(self) -> Slice:
        layers = range(self.config.num_layers)
        return Slice("full", tuple(layers), tuple(self.config.ffn_size for _ in layers))

    def find_slice(self, name: str) -> Slice:
        if name != "full":
            raise SliceError("size", found=name, wanted="full")
        return self.default_slice

    def read_slice(self, path: Path) -> Slice:
        raise SliceError(file=path, found="a slice", wanted="none: the toy has one size")

    def choose_slice(self, budget: Budget, text: Recipe) -> Slice:
        return self.default_slice

    def facts(self, slice_: Slice, *, bits_per_weight: float) -> SliceFacts:
        parameters = {group.name: group.parameters for group in self.groups}
        return SliceFacts(len(slice_.layers), parameters, math.ceil(parameters["text"] * bits_per_weight / 8))

    def recipes(self, wanted: Mapping[str, RecipeChoice], towers: Collection[str]) -> Mapping[str, Recipe]:
        text = wanted.get("text", "int8")
        text = text if isinstance(text, Recipe) else RECIPES[str(text)]
        ple = wanted.get("ple")
        scheme = Scheme("int8", self.config.ple_size) if text.name == "int8" else Scheme("f32")
        return {"text": text, "ple": ple if isinstance(ple, Recipe) else Recipe(text.name, (Rule("ple", scheme),))}

    def layer_kinds(self, slices: Sequence[Slice]) -> Mapping[str, Sequence[int]]:
        return {}

    def plan(self, request: PlanRequest) -> Plan:
        return plan(self, request)

    def reference(self, slice_: Slice) -> ToyReference:
        return ToyReference(self)

    def calibration_passes(self, slices: Sequence[Slice]) -> Sequence[CalibrationPass]:
        return (CalibrationPass(self.reference(slices[0]), lambda tensor: tensor),)

    def float_tower(
        self, record: VisionRecord | AudioRecord, frame_lengths: Sequence[int]
    ) -> PlannedTower[VisionRecord] | PlannedTower[AudioRecord]:
        raise CheckpointError(file=self.path, found="no towers", wanted="a tower")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored.infos[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        return self._stored.read(self._stored.infos[name], rows, columns)

    def text_vocab_size(self, tokens: Mapping[int, str]) -> int | None:
        return None

    @property
    def supported_towers(self) -> Collection[str]:
        return ()

    def tower_faults(self) -> Mapping[str, ToolkitError]:
        return {}

    def fingerprint(self) -> str:
        return self._stored.fingerprint(self._raw, [self.config.eos_token_id], self._stored.infos)

    def require_unchanged(self) -> None:
        self._stored.require_unchanged()

    def close(self) -> None:
        self._stored.close()

    def __enter__(self) -> ToyCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- graphs ----------------------------------------------------------------------------------------------------------


def plan(checkpoint: ToyCheckpoint, request: PlanRequest) -> Plan:
    config = checkpoint.config
    decoder = [Signature(step.name(""), decoder_graph(config, request, step)) for step in request.steps()]
    counts = sorted({step.tokens for step in request.steps()})
    embedder = [Signature(f"embed_{n}", embedder_graph(config, n)) for n in counts]
    graphs = GraphFiles(layout_files({EMBEDDER: embedder, TEXT_DECODER: decoder}, request.recipes["text"]), checkpoint)
    scheme = request.recipes["ple"].plan([Weight.whole("ple", checkpoint.shape("ple"))])["ple"]
    layout = PleLayout(config.vocab_size, config.num_layers, config.ple_size, scheme.element.bits)
    shards = ShardFiles("ple", checkpoint, layout, scheme.search, request.shard_bytes)
    parameters = {group.name: group.parameters for group in checkpoint.groups}
    (slice_,) = request.slices
    return Plan(
        files=(graphs, shards),
        groups={
            "text": GroupDraft("text", (TEXT_DECODER,), parameters["text"], text_record(config, request)),
            "token_embedding": GroupDraft("token_embedding", (EMBEDDER,), parameters["token_embedding"]),
            "per_layer_embedding": GroupDraft("per_layer_embedding", shards.names, parameters["per_layer_embedding"]),
        },
        sizes={slice_.name: SizeRecord(slice_.layers, slice_.ffn_sizes, "")},
        recipes=request.recipes,
    )


def text_record(config: ToyConfig, request: PlanRequest) -> TextRecord:
    shape = (1, config.num_heads, request.context, config.head_dim)
    return TextRecord(
        vocab_size=config.vocab_size,
        ple_vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        ple_size=config.ple_size,
        num_layers=config.num_layers,
        context=request.context,
        prefill_sizes=request.prefill_sizes,
        context_buckets=request.context_buckets,
        prefill_buckets=request.prefill_buckets,
        final_logit_softcap=None,
        bos_token_id=config.bos_token_id,
        pad_token_id=0,
        stop_token_ids=(config.eos_token_id,),
        kv_caches=tuple(KvCache(f"kv_cache_k_{i}", f"kv_cache_v_{i}", shape) for i in range(config.num_layers)),
        draft_tokens=request.draft_tokens,
    )


def embedder_graph(config: ToyConfig, tokens: int) -> Graph:
    graph = Graph()
    ids = ops.reshape(graph.input("ids", (1, tokens), DType.INT32), (tokens,))
    table = graph.weight(Weight.whole("embed", (config.vocab_size, config.hidden_size)))
    graph.output("embeddings", ops.reshape(ops.embedding_lookup(ids, table), (1, tokens, config.hidden_size)))
    return graph


def decoder_graph(config: ToyConfig, request: PlanRequest, step: StepRequest) -> Graph:
    """One signature of the decoder."""
    context, tokens = request.context, step.tokens
    graph, seen, shapes = Graph(), step.bucket or context, config.tensors()

    def linear(x: Value, name: str) -> Value:
        return ops.fully_connected(x, graph.weight(Weight.whole(name, shapes[name])))

    def heads(x: Value) -> Value:
        return ops.transpose(ops.reshape(x, (1, tokens, config.num_heads, config.head_dim)), (0, 2, 1, 3))

    x = graph.input("embeddings", (1, tokens, config.hidden_size))
    ple = graph.input("per_layer_embeddings", (1, tokens, config.num_layers, config.ple_size))
    first = ops.take(graph.input("input_pos", (tokens,), DType.INT32), 0, 0, 1)
    mask = graph.input("mask", (1, 1, tokens, seen))
    zero = graph.ints([0])
    for i in range(config.num_layers):
        own = ops.reshape(ops.take(ple, 2, i, i + 1), (1, tokens, config.ple_size))
        x = ops.add(x, linear(own, f"layers.{i}.ple"))
        normed = unit_rms(x)
        query, key, value = (heads(linear(normed, f"layers.{i}.{kind}")) for kind in "qkv")
        keys = graph.input(f"kv_cache_k_{i}", (1, config.num_heads, context, config.head_dim))
        values = graph.input(f"kv_cache_v_{i}", (1, config.num_heads, config.head_dim, context))
        keys = ops.dynamic_update_slice(keys, key, ops.concatenation([zero, zero, first, zero], 0))
        columns = ops.transpose(value, (0, 1, 3, 2))
        values = ops.dynamic_update_slice(values, columns, ops.concatenation([zero, zero, zero, first], 0))
        graph.output(f"kv_cache_k_{i}", keys)
        graph.output(f"kv_cache_v_{i}", values)
        scores = ops.batch_matmul(query, ops.take(keys, 2, 0, seen), transpose_b=True)
        weights = ops.softmax(ops.add(scores, mask))
        mixed = ops.batch_matmul(weights, ops.take(values, 3, 0, seen), transpose_b=True)
        mixed = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (1, tokens, config.hidden_size))
        x = ops.add(x, linear(mixed, f"layers.{i}.o"))
        x = ops.add(x, linear(ops.tanh(linear(unit_rms(x), f"layers.{i}.up")), f"layers.{i}.down"))
    if step.kind != "prefill":
        normed = unit_rms(x)
        graph.output("logits", linear(normed, "head"))
        if request.draft_tokens is not None:
            graph.output("activations", normed)
    return graph


def unit_rms(x: Value) -> Value:
    return ops.mul(x, ops.rsqrt(ops.add(ops.mean(ops.mul(x, x)), x.graph.scalar(EPSILON))))


# --- reference -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToyReference:
    """The same in NumPy: `converters.family.ReferenceModel`."""

    checkpoint: ToyCheckpoint

    @property
    def vocab_size(self) -> int:
        return self.checkpoint.vocab_size

    @property
    def text_vocab_size(self) -> int:
        return self.checkpoint.vocab_size

    @property
    def head(self) -> str:
        return "head"

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> F32:
        return self.checkpoint.read(name, rows)

    def hidden_states(
        self,
        sequences: Sequence[NDArray[np.int32]],
        *,
        progress: LayersDone | None = None,
        product: MatrixProduct | None = None,
    ) -> list[F32]:
        multiply = product or (lambda x, name: x @ self.checkpoint.read(name).T)
        hidden = self._hidden(np.concatenate(sequences), [len(ids) for ids in sequences], multiply)
        return np.split(hidden, np.cumsum([len(ids) for ids in sequences])[:-1])

    def logits(self, hidden: F32, *, head: HeadRows | None = None) -> F32:
        matrix = self.checkpoint.read("head") if head is None else head(0, self.vocab_size)
        return hidden @ matrix.T

    def _hidden(self, ids: NDArray[np.int32], lengths: Sequence[int], multiply: MatrixProduct) -> F32:
        config, read = self.checkpoint.config, self.checkpoint.read
        x, table = read("embed")[ids], read("ple")[ids].reshape(len(ids), config.num_layers, config.ple_size)
        table = table * np.float32(config.ple_size**0.5)
        ends = np.cumsum(lengths)[:-1]
        for i in range(config.num_layers):
            x = x + multiply(table[:, i], f"layers.{i}.ple")
            split = [multiply(rms(x), f"layers.{i}.{kind}") for kind in "qkv"]
            sequences = zip(*(np.split(part, ends) for part in split), strict=True)
            mixed = np.concatenate([attend(q, k, v, config.num_heads) for q, k, v in sequences])
            x = x + multiply(mixed, f"layers.{i}.o")
            x = x + multiply(np.tanh(multiply(rms(x), f"layers.{i}.up")), f"layers.{i}.down")
        return rms(x)


def attend(query: F32, key: F32, value: F32, heads: int) -> F32:
    """Causal attention within one sequence, f32[T, heads * dim] each."""
    q, k, v = (part.reshape(len(part), heads, -1).swapaxes(0, 1) for part in (query, key, value))
    scores = np.where(np.triu(np.ones((len(query), len(query)), bool), 1), -np.inf, q @ k.swapaxes(1, 2))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: F32 = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.swapaxes(0, 1).reshape(len(query), -1)


def rms(x: F32) -> F32:
    normed: F32 = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(EPSILON))
    return normed


TOY = Family("toy", ("ToyForCausalLM",), ToyCheckpoint, {"text": tuple(RECIPES)})


def write_toy_checkpoint(directory: Path, tokenizer_json: Path) -> Path:
    """A random one, with a tokenizer whose ids it has."""
    random = np.random.default_rng(0)
    config = ToyConfig(**{key: value for key, value in CONFIG.items() if isinstance(value, int)})
    tensors = {
        name: (random.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32)
        for name, shape in config.tensors().items()
    }
    write_checkpoint(directory, CONFIG, tensors)
    assert len(json.loads(tokenizer_json.read_text())["model"]["vocab"]) <= config.vocab_size
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    return directory
