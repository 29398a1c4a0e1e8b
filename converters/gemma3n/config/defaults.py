"""The defaults of transformers' classes for keys that a config.json of Gemma 3n may omit.

Google's own configs of other models state only what differs from the defaults, and those of fine-tunes may do the same.
The shapes of all tensors are compared with these numbers later. Where the default is `None` (layer_types,
activation_sparsity_pattern, rope_parameters), the classes apply rules, which are in text.py, as are the token ids.
Source: transformers 5.24 models/gemma3n/configuration_gemma3n.py.
"""

from __future__ import annotations

from collections.abc import Mapping

# Gemma3nTextConfig
TEXT: Mapping[str, object] = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "final_logit_softcapping": 30.0,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
}
# Gemma3nTextConfig.default_theta
ROPE_THETA_FULL, ROPE_THETA_SLIDING = 1_000_000.0, 10_000.0

# Gemma3nAudioConfig
AUDIO: Mapping[str, object] = {
    "model_type": "gemma3n_audio",
    "vocab_size": 128,
    "vocab_offset": 262_272,
    "input_feat_size": 128,
    "hidden_size": 1536,
    "rms_norm_eps": 1e-6,
    "conf_attention_context_left": 13,
    "conf_attention_logit_cap": 50.0,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_group_norm_eps": 1e-3,
}

# Gemma3nVisionConfig
VISION: Mapping[str, object] = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": 2048,
    "vocab_size": 128,
    "vocab_offset": 262_144,
    "rms_norm_eps": 1e-6,
}

# Gemma3nConfig
MULTIMODAL: Mapping[str, object] = {
    "audio_soft_tokens_per_image": 188,
    "vision_soft_tokens_per_image": 256,
    "boi_token_id": 255_999,
    "eoi_token_id": 262_144,
    "image_token_id": 262_145,
    "boa_token_id": 256_000,
    "eoa_token_id": 262_272,
    "audio_token_id": 262_273,
}
