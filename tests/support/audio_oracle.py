"""transformers' audio tower as the oracle: random towers with every parameter random, and what they make of a sound.

Needs torch and transformers; a test that calls into this module is skipped where they are missing.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from checkpoints import TINY as TINY_TEXT
from numpy.typing import NDArray
from oracle_models import import_torch

from converters.gemma3n.config.audio import AudioConfig, audio_tensors, parse_audio_config
from converters.gemma3n.config.text import TextConfig, parse_config

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

TEXT_VOCABULARY, TEXT_HIDDEN = 272, 24

TINY: Mapping[str, object] = {
    "hidden_size": 32,
    "input_feat_size": 16,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 2,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "sscp_conv_channel_size": [8, 4],
    "vocab_size": 8,
    "vocab_offset": 264,
}
"""A tower that runs in milliseconds; keys are those of transformers' Gemma3nAudioConfig."""

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "tiny": {},
    "odd": {
        "hidden_size": 36,
        "input_feat_size": 18,
        "conf_num_attention_heads": 3,
        "conf_num_hidden_layers": 3,
        "conf_attention_chunk_size": 5,
        "conf_attention_context_left": 8,
        "conf_attention_logit_cap": 2.0,
        "conf_conv_kernel_size": 3,
        "conf_reduction_factor": 2,
        "conf_residual_weight": 0.7,
        "sscp_conv_channel_size": [5, 7],
        "sscp_conv_group_norm_eps": 1e-2,
        "rms_norm_eps": 1e-4,
    },
    "one_layer_of_the_published_window": {
        "conf_num_hidden_layers": 1,
        "conf_attention_chunk_size": 12,
        "conf_attention_context_left": 13,
    },
    "each_step_alone": {"conf_attention_context_left": 1, "conf_reduction_factor": 1},
}

TOP: Mapping[str, object] = {
    "audio_soft_tokens_per_image": 20,
    "boa_token_id": 251,
    "audio_token_id": 265,
    "eoa_token_id": 264,
}


class Tensors:
    """A TensorSource of arrays."""

    def __init__(self, tensors: Mapping[str, F32]) -> None:
        self.tensors = tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> F32:
        values = self.tensors[name][slice(*rows) if rows else slice(None)]
        return values[..., slice(*columns)] if columns else values


@dataclass(frozen=True, slots=True, eq=False)
class Tower:
    """One random tower: config, tensors by canonical name, and transformers' modules with these tensors in them."""

    config: AudioConfig
    tensors: Mapping[str, F32]
    encoder: Any
    embedder: Any

    @property
    def source(self) -> Tensors:
        return Tensors(self.tensors)

    def encode(self, mel: F32, mask: Mask) -> tuple[F32, Mask]:
        """What transformers' encoder makes of mel: f32[frames, bins]; features: f32[tokens, hidden], their mask."""
        torch = import_torch()
        with torch.inference_mode():
            out = self.encoder(torch.from_numpy(mel[None]), torch.from_numpy(~mask[None]))
        return out.last_hidden_state[0].numpy(), ~out.audio_mel_mask[0].numpy()

    def soft_tokens(self, mel: F32, mask: Mask) -> F32:
        """The rows that transformers puts into a prompt: f32[soft_tokens, text_hidden] (Gemma3nModel.forward)."""
        torch = import_torch()
        features, valid = self.encode(mel, mask)
        rows = np.repeat(self.hard([self.config.padding_token_id]), self.config.soft_tokens, 0)
        with torch.inference_mode():
            soft = self.embedder(inputs_embeds=torch.from_numpy(features[None]))[0].numpy()
        rows[: len(soft)][valid] = soft[valid]
        return rows

    def hard(self, ids: list[int]) -> F32:
        """Embeddings of the tower's own ids: f32[n, text_hidden]."""
        torch = import_torch()
        with torch.inference_mode():
            embeddings: F32 = self.embedder(input_ids=torch.tensor([ids]))[0].numpy()
        return embeddings


@functools.cache
def tower(name: str = "tiny") -> Tower:
    """The tower of one of `VARIANTS`."""
    return make_tower(**{**TINY, **VARIANTS[name]})


def make_tower(tensors: Mapping[str, F32] | None = None, /, **overrides: object) -> Tower:
    """A tower, random unless its tensors are given; overrides: keys of Gemma3nAudioConfig that differ from defaults."""
    torch = import_torch()
    from transformers import Gemma3nTextConfig
    from transformers.initialization import no_init_weights
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder, Gemma3nMultimodalEmbedder

    hf_config, config = hf_audio_config(**overrides)
    if tensors is None:
        tensors = {name: random_tensor(name, shape) for name, shape in audio_tensors(config).items()}
    hf_text = Gemma3nTextConfig(vocab_size=TEXT_VOCABULARY, hidden_size=TEXT_HIDDEN)
    with no_init_weights():  # else a tower of the published size spends minutes on numbers that are then replaced
        encoder, embedder = Gemma3nAudioEncoder(hf_config), Gemma3nMultimodalEmbedder(hf_config, hf_text)
    for module, prefix in ((encoder, "audio_tower."), (embedder, "embed_audio.")):
        own = {n.removeprefix(prefix): torch.from_numpy(t) for n, t in tensors.items() if n.startswith(prefix)}
        module.load_state_dict(own, strict=True, assign=True)
    return Tower(config, tensors, encoder.eval(), embedder.eval())


def hf_audio_config(**overrides: object) -> tuple[Any, AudioConfig]:
    """transformers' config of a tower, its defaults those of the published one, and ours of the same."""
    import_torch()
    from transformers import Gemma3nAudioConfig

    hf_config = Gemma3nAudioConfig(**overrides)
    return hf_config, parse_audio_config({**TOP, "audio_config": hf_config.to_dict()}, text_config(), "config.json")


def text_config() -> TextConfig:
    """A language model for the towers: only its vocabulary and width matter."""
    parsed = parse_config(TINY_TEXT, None, "config.json")[1]
    return replace(parsed, vocab_size=TEXT_VOCABULARY, hidden_size=TEXT_HIDDEN)


def random_tensor(name: str, shape: tuple[int, ...]) -> F32:
    """Norms and scales about one, all else at 1 / sqrt(fan-in): activations keep their size, scores reach the cap."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        noise *= np.float32(0.3)
        return noise if name.endswith("per_dim_scale") else noise + np.float32(1)
    gain = 3.0 if name.endswith(("q_proj.weight", "pos_proj.weight")) else 1.0
    noise *= np.float32(gain * np.prod(shape[1:]) ** -0.5)
    return noise


def mel_frames(frames: int, bins: int, seed: int = 0) -> F32:
    """Log-mel-like rows: far from zero, as silence is, with slow changes."""
    rng = np.random.default_rng([seed, frames])
    slow = np.cumsum(rng.standard_normal((frames, bins)), 0) / 8
    return np.clip(slow + rng.standard_normal((frames, bins)) - 5, np.log(1e-5), None).astype(np.float32)
