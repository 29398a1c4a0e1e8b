"""Small towers, and multimodal checkpoints that hold them, written without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from checkpoints import PROCESSOR, TINY, random_tensors, write_checkpoint
from checkpoints import Arrays as Stored
from numpy.typing import NDArray
from paths import EXAMPLE
from timm_oracle import TINY_ARCHITECTURE, random_vision_tensor

from converters.gemma3n.config.audio import audio_tensors, parse_audio_config
from converters.gemma3n.config.text import parse_config
from converters.gemma3n.config.vision import STEM_BIAS, VisionConfig, vision_tensors
from converters.gemma3n.config.vision_blocks import STAGES, Block, parse_stages

F32 = NDArray[np.float32]

HIDDEN = 32
VOCABULARY = {"vocab_size": 272, "vocab_size_per_layer_input": 256}


@dataclass(frozen=True)
class Tower:
    """One variant: `architecture` None is the real one; `model_args` are timm's; `image_size` in pixels."""

    name: str
    architecture: tuple[tuple[str, ...], ...] | None
    image_size: int
    stem: int
    model_args: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def resolution(self) -> int:
        resolution = self.model_args.get("msfa_output_resolution", 16)
        assert isinstance(resolution, int)
        return resolution

    def stages(self) -> tuple[tuple[Block, ...], ...]:
        multiplier = self.model_args.get("channel_multiplier", 1.0)
        assert isinstance(multiplier, float)
        return parse_stages(self.architecture or STAGES, self.stem, multiplier)

    def config(self) -> VisionConfig:
        return VisionConfig(
            stem_channels=self.stem,
            stem_bias=True,
            stages=self.stages(),
            output_resolution=self.resolution,
            hidden_size=2048,
            rms_norm_eps=1e-6,
            vocab_size=8,
            vocab_offset=256,
            text_hidden_size=HIDDEN,
            begin_token_id=250,
            soft_token_id=257,
            end_token_id=258,
        )


TINY_TOWER = Tower("tiny", TINY_ARCHITECTURE, 128, 8, {"stem_size": 8, "msfa_output_resolution": 4})
"""Pools its features 2 x 2 on their way to 16 soft tokens."""

TOWERS = (
    TINY_TOWER,
    Tower("without_pooling", TINY_ARCHITECTURE, 64, 8, {"stem_size": 8, "msfa_output_resolution": 4}),
    Tower("pooled_by_three", TINY_ARCHITECTURE, 96, 8, {"stem_size": 8, "msfa_output_resolution": 2}),
    Tower(
        "three_stages",
        (
            ("uir_r1_a5_k0_s2_e3_c20", "er_r2_k5_s1_e2_c24"),
            ("er_r1_k3_s2_e4_c24", "mqa_r1_k5_h1_v2_s1_d16_c24", "uir_r2_a0_k3_s1_e1_c24"),
            ("uir_r1_a0_k7_s2_e2_c40", "mqa_r1_k3_h3_s1_d24_c40", "er_r1_k1_s1_e1_c40"),
        ),
        64,
        16,
        {"stem_size": 12, "msfa_output_resolution": 8},
    ),
    Tower("an_eighth_of_the_channels", None, 256, 64, {"channel_multiplier": 0.125}),
)


def tower_tensors(config: VisionConfig, seed: int = 0) -> dict[str, F32]:
    """Random numbers for every tensor of the group, the same that `timm_oracle.random_tower` has."""
    return {
        name: random_vision_tensor(name.removeprefix("vision_tower.timm_model."), shape, seed)
        for name, shape in vision_tensors(config).items()
    }


class Arrays:
    """A TensorSource of arrays."""

    def __init__(self, arrays: Mapping[str, F32]) -> None:
        self._arrays = arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        array = self._arrays[name][slice(*(rows or (None, None)))]
        return array if columns is None else array[..., slice(*columns)]


def vision_json(**changes: object) -> dict[str, object]:
    """The values of a published config.json, as far as its vision tower goes, over the tiny text model."""
    vision = {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "label_names": ["LABEL_0", "LABEL_1"],
        "model_args": None,
        "model_type": "gemma3n_vision",
        "num_classes": 2,
        "rms_norm_eps": 1e-06,
        "torch_dtype": "bfloat16",
        "vocab_offset": 256,
        "vocab_size": 8,
    }
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "text_config": {**TINY, **VOCABULARY, "architectures": None},
        "vision_config": vision | changes,
        "audio_config": {"model_type": "gemma3n_audio"},
        "vision_soft_tokens_per_image": 16,
        "boi_token_id": 250,
        "eoi_token_id": 258,
        "image_token_id": 257,
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
    }


def block_json() -> list[list[dict[str, object]]]:
    """`block_args` of the tiny tower as timm decodes it, written down by hand."""
    common: dict[str, object] = {"act_layer": None, "noskip": False, "se_ratio": 0.0}
    pointwise = {"pw_kernel_size": 1, "force_in_chs": 0}
    edge = {"block_type": "er", "out_chs": 16, "exp_kernel_size": 3, "exp_ratio": 4.0, **pointwise}

    def inverted(channels: int, stride: int, start: int, middle: int, expansion: float) -> dict[str, object]:
        kernels = {"dw_kernel_size_start": start, "dw_kernel_size_mid": middle, "dw_kernel_size_end": 0}
        return {"block_type": "uir", "out_chs": channels, "stride": stride, "exp_ratio": expansion, **kernels, **common}

    def attention(channels: int, kv_stride: int) -> dict[str, object]:
        sizes = {"dw_kernel_size": 3, "num_heads": 4, "key_dim": 8, "value_dim": 8, "kv_stride": kv_stride}
        return {"block_type": "mqa", "out_chs": channels, "stride": 1, "act_layer": None, "noskip": False, **sizes}

    return [
        [{**edge, **common, "stride": 2}, {**edge, **common, "stride": 1}],
        [inverted(24, 2, 3, 5, 6.0), inverted(24, 1, 5, 0, 4.0)],
        [inverted(32, 2, 5, 5, 6.0), inverted(32, 1, 0, 0, 1.0), attention(32, 2), inverted(32, 1, 0, 0, 2.0)],
        [inverted(48, 2, 5, 5, 6.0), attention(48, 1), inverted(48, 1, 0, 0, 2.0)],
    ]


def write_vision_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    without: tuple[str, ...] = (STEM_BIAS,),
    extra: Mapping[str, NDArray[np.generic]] | None = None,
) -> Path:
    """The tiny text model with the tiny tower, in bf16; by default without the stem's bias, as released first."""
    config = vision_json(model_args={"block_args": block_json(), **TINY_TOWER.model_args})
    text = {**TINY, **VOCABULARY}
    tensors = random_tensors(text, prefix="model.language_model.")
    for name, values in tower_tensors(TINY_TOWER.config(), seed).items():
        if name not in without:
            tensors[f"model.{name}"] = (values.view(np.uint32) >> 16).astype(np.uint16)
    return write_checkpoint(directory, config, tensors | dict(extra or {}))


AUDIO_JSON: Mapping[str, object] = {
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_conv_kernel_size": 5,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 2,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "gradient_clipping": 1e10,
    "hidden_size": 32,
    "input_feat_size": 16,
    "model_type": "gemma3n_audio",
    "rms_norm_eps": 1e-06,
    "sscp_conv_channel_size": [8, 4],
    "sscp_conv_group_norm_eps": 0.001,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
    "vocab_offset": 3080,
    "vocab_size": 8,
}
MULTIMODAL_TEXT: Mapping[str, object] = {**TINY, "vocab_size": 3088, "vocab_size_per_layer_input": 3072}
TOKENS = {
    "boi_token_id": 6,
    "boa_token_id": 7,
    "eoi_token_id": 3072,
    "image_token_id": 3073,
    "eoa_token_id": 3080,
    "audio_token_id": 3081,
}
SPELLINGS = {
    3072: "<end_of_image>",
    3073: "<image_soft_token>",
    3080: "<end_of_audio>",
    3081: "<audio_soft_token>",
}


def write_multimodal_checkpoint(directory: Path, *, seed: int = 0) -> Path:
    """The tiny text model with both towers, in bf16, its processor's config, and the example's tokenizer.

    seed: of the towers' numbers.
    """
    vision = vision_json(model_args={"block_args": block_json(), **TINY_TOWER.model_args}, vocab_offset=3072)
    config = vision | TOKENS | {"audio_config": AUDIO_JSON, "audio_soft_tokens_per_image": 20}
    config["text_config"] = {**MULTIMODAL_TEXT, "architectures": None}
    text = parse_config(config, None, "config.json")[1]
    numbers = np.random.default_rng(seed)
    shapes = audio_tensors(parse_audio_config(config, text, "config.json"))
    towers = {name: numbers.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    towers |= tower_tensors(TINY_TOWER.config(), seed)
    tensors: Stored = {f"model.{name}": (a.view(np.uint32) >> 16).astype(np.uint16) for name, a in towers.items()}
    stored = random_tensors(MULTIMODAL_TEXT, prefix="model.language_model.")
    write_checkpoint(directory, config, {**stored, **tensors})
    size = {"height": TINY_TOWER.image_size, "width": TINY_TOWER.image_size}
    processor = {**PROCESSOR, "size": size, "feature_size": 16, "image_seq_length": 16}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    tokenizer = json.loads((EXAMPLE / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [
        *(token for token in tokenizer["added_tokens"] if token["id"] < 3072),
        *({**tokenizer["added_tokens"][0], "id": token, "content": text} for token, text in SPELLINGS.items()),
    ]
    vocabulary = {word: token for word, token in tokenizer["model"]["vocab"].items() if token < 3072}
    # An added token that the vocabulary does not have gets the next free id, whatever its own.
    tokenizer["model"]["vocab"] = vocabulary | {text: token for token, text in SPELLINGS.items()}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(EXAMPLE / "chat_template.jinja", directory)
    return directory
