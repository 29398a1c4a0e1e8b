"""Reads the config of Gemma 3n's audio tower from config.json, strictly, and lists the tensors that it implies.

Source: transformers 5.23 models/gemma3n/configuration_gemma3n.py (Gemma3nAudioConfig, Gemma3nConfig).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from converters.gemma.config_json import finish_section, section, with_defaults
from converters.gemma.tensors import require_group_tensors
from converters.gemma3n.config import defaults
from converters.gemma3n.config.text import TextConfig
from converters.huggingface.safetensors import TensorInfo
from toolkit.base.errors import CheckpointError
from toolkit.base.layout import ceil_div
from toolkit.base.strict_json import JsonObject

SUBSAMPLING = 4
"""Mel frames per conformer frame: two convolutions of stride 2."""

_MAX_WIDTH = 1 << 16
_MAX_TOKENS = 1 << 24

# The only values that the graphs support; others would need other math. Gradient clipping has no effect in float32.
_ONLY_VALUES: dict[str, tuple[object, ...]] = {
    "conf_attention_context_right": (0,),
    "gradient_clipping": (1e10, 10**10),
    "sscp_conv_kernel_size": ([[3, 3], [3, 3]],),
    "sscp_conv_stride_size": ([[2, 2], [2, 2]],),
}
# The chunks into which transformers splits attention do not change results; no release reads the other keys.
_WITHOUT_EFFECT = """
    model_type conf_attention_chunk_size conf_attention_invalid_logits_value conf_positional_bias_size sscp_conv_eps
"""


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The config of the conformer (`conf_` in config.json), its subsampling (`sscp_`) and its adapter."""

    mel_bins: int
    hidden_size: int
    num_layers: int
    num_heads: int
    attention_window: int
    """The number of frames that a frame attends to, which are itself and earlier ones: conf_attention_context_left."""
    logit_cap: float
    conv_kernel: int
    reduction: int
    """Conformer frames per soft token."""
    residual_weight: float
    subsample_channels: tuple[int, int]
    group_norm_eps: float
    rms_norm_eps: float
    vocab_size: int
    vocab_offset: int
    """The id of the first row of the tower's own embedding table."""
    text_hidden_size: int
    soft_tokens: int
    """The number of positions of every sound in a prompt: audio_soft_tokens_per_image."""
    padding_token_id: int
    """Fills the remaining positions of a short sound: the last id of the language model (Gemma3nModel.forward)."""
    begin_token_id: int
    soft_token_id: int
    end_token_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def subsampled_bins(self) -> int:
        """Frequency bins after the two convolutions."""
        return ceil_div(ceil_div(self.mel_bins, 2), 2)

    @property
    def frames_per_token(self) -> int:
        """Mel frames per soft token."""
        return SUBSAMPLING * self.reduction

    @property
    def max_frames(self) -> int:
        """Mel frames of the longest sound."""
        return self.soft_tokens * self.frames_per_token

    def tokens(self, frames: int) -> int:
        """The number of soft tokens for a sound of `frames` mel frames."""
        return ceil_div(frames, self.frames_per_token)


def parse_audio_config(config: object, text: TextConfig, what: str) -> AudioConfig:
    """Parse the audio tower's config from a multimodal config.json; one CheckpointError lists all faults."""
    top = JsonObject(with_defaults(config, defaults.MULTIMODAL), what, CheckpointError)
    audio = section(top, "audio_config", defaults.AUDIO)
    if audio.string("model_type") != "gemma3n_audio":
        audio.refuse("model_type", audio.value("model_type"), "'gemma3n_audio'")
    for key, values in _ONLY_VALUES.items():
        audio.expect(key, *values)
    parsed = _audio_config(audio, top, text)
    audio.ignore(_WITHOUT_EFFECT.split())
    finish_section(audio)
    return parsed


def audio_tensors(config: AudioConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of each tensor of the audio group."""
    hidden, (first, second) = config.hidden_size, config.subsample_channels
    tensors: dict[str, tuple[int, ...]] = {
        "audio_tower.subsample_conv_projection.conv_0.conv.weight": (first, 1, 3, 3),
        "audio_tower.subsample_conv_projection.conv_0.norm.weight": (first,),
        "audio_tower.subsample_conv_projection.conv_1.conv.weight": (second, first, 3, 3),
        "audio_tower.subsample_conv_projection.conv_1.norm.weight": (second,),
        "audio_tower.subsample_conv_projection.input_proj_linear.weight": (hidden, second * config.subsampled_bins),
        "embed_audio.embedding.weight": (config.vocab_size, hidden),
        "embed_audio.hard_embedding_norm.weight": (hidden,),
        "embed_audio.soft_embedding_norm.weight": (hidden,),
        "embed_audio.embedding_projection.weight": (config.text_hidden_size, hidden),
    }
    for index in range(config.num_layers):
        block = _block_tensors(config)
        tensors |= {f"audio_tower.conformer.{index}.{name}": shape for name, shape in block.items()}
    return tensors


def require_audio_tensors(config: AudioConfig, tensors: Mapping[str, TensorInfo], what: str) -> None:
    """Raise CheckpointError, listing tensors of the group that are missing, unknown or not as the config implies."""
    require_group_tensors("audio", audio_tensors(config), tensors, what, implied_by="config.json implies")


def _audio_config(audio: JsonObject, top: JsonObject, text: TextConfig) -> AudioConfig:
    hidden = audio.integer("hidden_size", 2, _MAX_WIDTH)
    heads = audio.integer("conf_num_attention_heads", 1, _MAX_WIDTH)
    if hidden % 2 or hidden % heads:
        audio.refuse("hidden_size", hidden, f"an even multiple of conf_num_attention_heads, {heads}")
    channels = audio.integers("sscp_conv_channel_size", 1, _MAX_WIDTH)
    if len(channels) != 2:
        audio.refuse("sscp_conv_channel_size", list(channels), "two numbers of channels")
    vocab_size = audio.integer("vocab_size", 1, _MAX_TOKENS)
    # All ids from the offset on are looked up in the tower's table, so the table must include the model's last id.
    offset = audio.integer("vocab_offset", max(0, text.vocab_size - vocab_size), text.vocab_size - 1)
    return AudioConfig(
        mel_bins=audio.integer("input_feat_size", 1, _MAX_WIDTH),
        hidden_size=hidden,
        num_layers=audio.integer("conf_num_hidden_layers", 1, 1 << 10),
        num_heads=heads,
        attention_window=audio.integer("conf_attention_context_left", 1, 1 << 10),
        logit_cap=audio.number("conf_attention_logit_cap", 1e-3, 1e6),
        conv_kernel=audio.integer("conf_conv_kernel_size", 1, 1 << 10),
        reduction=audio.integer("conf_reduction_factor", 1, 1 << 10),
        residual_weight=audio.number("conf_residual_weight", 0.0, 1e3),
        subsample_channels=(channels[0], channels[1]),
        group_norm_eps=audio.number("sscp_conv_group_norm_eps", 1e-12, 1e-1),
        rms_norm_eps=audio.number("rms_norm_eps", 1e-12, 1e-1),
        vocab_size=vocab_size,
        vocab_offset=offset,
        text_hidden_size=text.hidden_size,
        soft_tokens=top.integer("audio_soft_tokens_per_image", 1, _MAX_TOKENS),
        padding_token_id=text.vocab_size - 1,
        begin_token_id=top.integer("boa_token_id", 0, text.vocab_size - 1),
        soft_token_id=top.integer("audio_token_id", 0, text.vocab_size - 1),
        end_token_id=top.integer("eoa_token_id", offset, text.vocab_size - 1),
    )


def _block_tensors(config: AudioConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    tensors: dict[str, tuple[int, ...]] = {
        "attention.pre_attn_norm.weight": (hidden,),
        "attention.attn.per_dim_scale": (config.head_dim,),
        "attention.attn.relative_position_embedding.pos_proj.weight": (hidden, hidden),
        "attention.post.weight": (hidden, hidden),
        "attention.post_norm.weight": (hidden,),
        "lconv1d.pre_layer_norm.weight": (hidden,),
        "lconv1d.linear_start.weight": (2 * hidden, hidden),
        "lconv1d.depthwise_conv1d.weight": (hidden, 1, config.conv_kernel),
        "lconv1d.conv_norm.weight": (hidden,),
        "lconv1d.linear_end.weight": (hidden, hidden),
        "norm.weight": (hidden,),
    }
    for kind in "qkv":
        tensors[f"attention.attn.{kind}_proj.weight"] = (hidden, hidden)
    for part in ("ffw_layer_start", "ffw_layer_end"):
        tensors[f"{part}.pre_layer_norm.weight"] = (hidden,)
        tensors[f"{part}.ffw_layer_1.weight"] = (4 * hidden, hidden)
        tensors[f"{part}.ffw_layer_2.weight"] = (hidden, 4 * hidden)
        tensors[f"{part}.post_layer_norm.weight"] = (hidden,)
    return tensors
