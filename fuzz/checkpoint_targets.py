"""The targets for checkpoints: tensors, configs, slices, adapters, chat templates and tokenizers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from converters.families import open_checkpoint
from converters.family import Checkpoint
from converters.gemma3n.config.text import parse_config
from converters.gemma3n.recipes import RECIPES
from converters.gemma4.config import parse_config as parse_gemma4
from converters.gemma4.config import to_hugging_face
from converters.huggingface.adapters.choice import AdapterChoice
from converters.huggingface.gemma_quant.config import parse_gemma_quant
from converters.huggingface.gemma_quant.tensors import GemmaQuantTensors
from converters.huggingface.safetensors import SafetensorsFile
from fuzz.target import EXAMPLE, Target, beginnings, of_file, scratch
from toolkit.base.errors import CheckpointError, ToolkitError
from toolkit.base.strict_json import parse_json
from toolkit.bundle.chat import ChatTemplate, free_variables, turn_end
from toolkit.bundle.manifest import CHAT_TEMPLATE, TOKENIZER
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.bundle.tokenizer_file import tokenizer_faults
from toolkit.litertlm.chat_template import engine_template

Tensors = Mapping[str, tuple[str, Sequence[int], int]]
"""Type, shape and bytes of each tensor."""


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _safetensors_of(tensors: Tensors, metadata: object = None) -> bytes:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = _json(header)
    return len(text).to_bytes(8, "little") + text + (bytes(range(1, 17)) * (end // 16 + 1))[:end]


def _safetensors(path: Path) -> None:
    with contextlib.closing(SafetensorsFile(path)):
        pass


def _small_safetensors() -> list[bytes]:
    return [_safetensors_of({f"t{i}": ("F32", (2, 3), 24) for i in range(3)}, {"format": "pt"})]


# --- configs ---------------------------------------------------------------------------------------------------------


def _config(data: bytes) -> object:
    return parse_config(parse_json(data, "config.json", CheckpointError), None, "config.json")


def _gemma4(data: bytes) -> object:
    return parse_gemma4(parse_json(data, "config.json", CheckpointError), None, "config.json")


def _gemma4_seeds() -> list[bytes]:
    """As Gemma4ForCausalLM and, with sizes of heads by layer, as the model with towers."""
    small = {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    }
    text = to_hugging_face(parse_gemma4(small, None, "config.json")[1])
    by_layer = {**text, "per_layer_config": {str(layer): {"head_dim": 512} for layer in (1, 3, 5)}}
    whole = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "text_config": {key: value for key, value in by_layer.items() if key != "architectures"},
        "vision_config": {"model_type": "gemma4_vision"},
        "audio_config": {"model_type": "gemma4_audio"},
        "image_token_id": 258880,
    }
    return [_json(text), _json(whole)]


# --- codes of quantisation-aware training ----------------------------------------------------------------------------

_GATE, _EMBEDDING = "model.language_model.layers.0.mlp.gate_proj", "model.language_model.embed_tokens"
_QUANT = {
    "quant_method": "gemma",
    "num_bits": 4,
    "quantize_embeddings": True,
    "module_quant_configs": {r"language_model\.embed_tokens$": {"num_bits": 2}, r"\d+\.mlp\.": {"num_bits": 4}},
    "modules_to_not_convert": ["relative_k_proj"],
}


def _quant(data: bytes) -> None:
    """The first byte says whether the config follows, or the tensors."""
    stated, folder = (
        parse_json(data[1:], "config.json", CheckpointError) if data[:1] == b"c" else None,
        scratch() / "qat",
    )
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(_coded_tensors() if stated is not None else data[1:])
    config = parse_gemma_quant({"quantization_config": _QUANT if stated is None else stated}, "config.json")
    with contextlib.closing(GemmaQuantTensors(folder, None, config)) as tensors:
        for info in tensors.infos.values():
            if tensors.is_readable(info) and info.parameters < 1 << 20:
                tensors.read(info)


def _coded_tensors() -> bytes:
    return _safetensors_of(
        {
            f"{_GATE}.weight": ("U8", (8, 8), 64),
            f"{_GATE}.weight_scale": ("F32", (8, 1), 32),
            f"{_GATE}.input_activation_scale": ("F32", (), 4),
            f"{_EMBEDDING}.embedding_quantized": ("U8", (4, 4), 16),
            f"{_EMBEDDING}.embedding_scale": ("F32", (4, 2), 32),
        }
    )


# --- adapters --------------------------------------------------------------------------------------------------------

_QUERY = "model.language_model.layers.{}.self_attn.q_proj"
_PEFT = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": r".*layers\.[01]\.self_attn\.q_proj",
    "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "alpha_pattern": {"q_proj": 4}, "use_rslora": True,
    "trainable_token_indices": {"embed_tokens": [1, 2]},
}  # fmt: skip
_MLX = {"fine_tune_type": "lora", "lora_parameters": {"scale": 5.0, "rank": 2}}


def _adapter_files() -> Mapping[bytes, tuple[str, bytes]]:
    """The files of an adapter of PEFT and one of mlx-lm, by the byte that stands for them in the target's bytes."""
    names = [_QUERY.format(layer) for layer in range(2)]
    peft = {f"base_model.model.{name}.lora_{side}.weight": ("F32", shape, 2048)
            for name in names for side, shape in (("A", (2, 256)), ("B", (256, 2)))}  # fmt: skip
    mlx = {f"{name}.lora_{side}": ("F32", shape, 2048)
           for name in names for side, shape in (("a", (256, 2)), ("b", (2, 256)))}  # fmt: skip
    return {
        b"p": ("adapter_config.json", _json(_PEFT)),
        b"P": ("adapter_model.safetensors", _safetensors_of(peft)),
        b"m": ("adapter_config.json", _json(_MLX)),
        b"M": ("adapters.safetensors", _safetensors_of(mlx)),
    }


def _adapter(data: bytes) -> None:
    """Merge an adapter into the example; one of the adapter's files has these bytes, except the first."""
    files, kind = _adapter_files(), data[:1] if data[:1] in (b"p", b"P", b"m", b"M") else b"p"
    folder = scratch() / f"adapter-{kind.decode().lower()}"
    folder.mkdir(exist_ok=True)
    for other in (kind.lower(), kind.upper()):
        name, content = files[other]
        (folder / name).write_bytes(data[1:] if other == kind else content)
    with open_checkpoint(EXAMPLE, adapters=[AdapterChoice(folder)]) as checkpoint:
        checkpoint.read(_QUERY.format(0).removeprefix("model.language_model.") + ".weight")  # type: ignore[attr-defined]


# --- slices, recipes, prompts ----------------------------------------------------------------------------------------


@cache
def _example() -> Checkpoint:
    return open_checkpoint(EXAMPLE)


def _slice(path: Path) -> object:
    return _example().read_slice(path)


_SLICE = {"name": "own", "layers": [0, 1, 2, 3, 4, 5, 8, 9], "ffn_sizes": [256] * 8}
_RULES = [{"match": "layers.*.mlp.*", "layers": "sparse", "dtype": "int2"}, {"match": "*", "dtype": "int4"}]
_RECIPE = {"format": "gemma-edge-recipe/1", "name": "own", "base": "int8", "rules": _RULES}
_TOKENIZER = _json(
    {"added_tokens": [{"id": 1, "content": "<bos>"}], "model": {"type": "BPE", "vocab": {"a": 0, "<bos>": 1}}}
)


def _recipe(path: Path) -> None:
    RECIPES["text"].load(path).for_layers({"sparse": (0, 1), "kv-donors": ()})


@cache
def _prompting() -> Prompting:
    return Prompting.with_towers(Tokenizer(EXAMPLE / TOKENIZER), 2, None, None)


def _template(data: bytes) -> None:
    """What `convert`, `check` and `export` ask of a template; it is compiled and rendered in children with limits."""
    source = data.decode("utf-8", "replace")
    for ask in (
        lambda: free_variables(source),
        lambda: turn_end(ChatTemplate(source)),
        lambda: engine_template(source, _prompting(), "gemma3n"),
    ):
        with contextlib.suppress(ToolkitError):
            ask()


CHECKPOINT_TARGETS = (
    Target("safetensors", of_file("m.safetensors", _safetensors), _small_safetensors),
    Target("config", _config, lambda: beginnings(EXAMPLE / "config.json")),
    Target("gemma4", _gemma4, _gemma4_seeds),
    Target("quant", _quant, lambda: [b"c" + _json(_QUANT), b"t" + _coded_tensors()]),
    Target("adapter", _adapter, lambda: [kind + content for kind, (_, content) in _adapter_files().items()]),
    Target("slice", of_file("slice.json", _slice), lambda: [_json(_SLICE)]),
    Target("recipe", of_file("recipe.json", _recipe), lambda: [_json(_RECIPE)]),
    Target("tokenizer", lambda data: tokenizer_faults("tokenizer.json", data, 4096), lambda: [_TOKENIZER]),
    Target("template", _template, lambda: beginnings(EXAMPLE / CHAT_TEMPLATE)),
)
