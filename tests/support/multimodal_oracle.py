"""A random Gemma 3n with both towers, and what transformers makes of prompts with images and sounds in float32.

Needs torch, transformers and timm; a test that calls into this module is skipped where one is missing.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import audio_oracle
import numpy as np
import oracle
import timm_oracle
from checkpoints import PROCESSOR
from numpy.typing import NDArray
from oracle_models import import_torch, write_safetensors
from paths import EXAMPLE

F32 = NDArray[np.float32]

"""Its tokenizer and chat template are used."""

S, F = "sliding_attention", "full_attention"

TEXT: Mapping[str, object] = {
    "vocab_size": 3096,
    "vocab_size_per_layer_input": 3080,
    "hidden_size": 64,
    "intermediate_size": [96] * 4,
    "num_hidden_layers": 4,
    "layer_types": [S, F, S, F],
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 16,
    "max_position_embeddings": 512,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 2,
    "bos_token_id": 2,
    "eos_token_id": [1, 5],
}
AUDIO: Mapping[str, object] = {**audio_oracle.TINY, "input_feat_size": 128, "vocab_offset": 3088}
VISION: Mapping[str, object] = {"vocab_offset": 3080, "vocab_size": 8}
TOWER: Mapping[str, object] = {"stem_size": 8, "msfa_output_resolution": 4}
IMAGE_SIZE = 128
"""Pixels of the tower above: stride 32, so its 4 x 4 tokens are pools of no positions but their own."""

TOKENS: Mapping[str, int] = {
    "boi_token_id": 6,
    "boa_token_id": 7,
    "eoi_token_id": 3080,
    "image_token_id": 3081,
    "eoa_token_id": 3088,
    "audio_token_id": 3089,
    "vision_soft_tokens_per_image": 16,
    "audio_soft_tokens_per_image": 20,
}
SPELLINGS: Mapping[int, str] = {
    3080: "<end_of_image>",
    3081: "<image_soft_token>",
    3088: "<end_of_audio>",
    3089: "<audio_soft_token>",
}


def make_checkpoint(directory: Path, *, seed: int) -> Path:
    """Write config, weights, tokenizer and chat template; every parameter is random, in float32."""
    torch = import_torch()
    model = _empty_model()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(_random_tensor(name, tuple(tensor.shape), seed)))
    directory.mkdir(parents=True)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    write_safetensors(directory, tensors)
    _write_configs(directory)
    return directory


@functools.lru_cache(maxsize=4)
def hf_model(directory: Path) -> Any:
    """The checkpoint in transformers, in float32."""
    from safetensors.torch import load_file

    model = _empty_model()
    state = load_file(directory / "model.safetensors")
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def hf_mel(samples: F32) -> tuple[F32, NDArray[np.bool_]]:
    """transformers' features of one sound at 16 kHz: f32[frames, 128], bool[frames]."""
    import_torch()
    from transformers import Gemma3nAudioFeatureExtractor

    features = Gemma3nAudioFeatureExtractor()([samples], return_tensors="np")
    return features["input_features"][0].astype(np.float32), features["input_features_mask"][0].astype(np.bool_)


def hf_logits(directory: Path, ids: Sequence[int], *, images: Sequence[F32] = (), sounds: Sequence[F32] = ()) -> F32:
    """Logits of transformers for one sequence: f32[len(ids), vocabulary]; images and sounds as in `hf_greedy`."""
    torch = import_torch()
    with torch.inference_mode():
        inputs = _media_inputs(images, sounds)
        out = hf_model(directory)(input_ids=torch.tensor([list(ids)]), use_cache=False, **inputs)
        logits: F32 = out.logits[0].numpy()
    return logits


def hf_greedy(
    directory: Path, ids: Sequence[int], count: int, *, images: Sequence[F32] = (), sounds: Sequence[F32] = ()
) -> tuple[list[int], float]:
    """Up to `count` tokens by argmax, without the stop token that may end them; the smallest lead of one over the next.

    images: f32[size, size, 3] in 0 to 1; sounds: samples at 16 kHz. Each token comes from a full forward, uncached.
    """
    torch = import_torch()
    model, inputs = hf_model(directory), _media_inputs(images, sounds)
    tokens, answer, lead = torch.tensor([list(ids)]), list[int](), float("inf")
    with torch.inference_mode():
        while len(answer) < count:
            logits = model(input_ids=tokens, use_cache=False, **inputs).logits[0, -1]
            best, next_best = logits.topk(2).values.tolist()
            lead = min(lead, best - next_best)
            token = int(logits.argmax())
            if token in (1, 5):
                break
            answer.append(token)
            tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    return answer, lead


def _media_inputs(images: Sequence[F32], sounds: Sequence[F32]) -> dict[str, Any]:
    torch = import_torch()
    inputs = dict[str, Any]()
    if images:
        inputs["pixel_values"] = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
    if sounds:
        mels = [hf_mel(samples) for samples in sounds]
        frames = max(len(mel) for mel, _ in mels)
        padded = [
            (np.pad(mel, ((0, frames - len(mel)), (0, 0))), np.pad(mask, (0, frames - len(mask)))) for mel, mask in mels
        ]
        inputs["input_features"] = torch.from_numpy(np.stack([mel for mel, _ in padded]))
        inputs["input_features_mask"] = torch.from_numpy(np.stack([mask for _, mask in padded]))
    return inputs


def _empty_model() -> Any:
    torch = import_torch()
    timm_oracle.let_transformers_use_timm()
    from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

    config = Gemma3nConfig(**copy.deepcopy(_config(timm_oracle.decoded_blocks(timm_oracle.TINY_ARCHITECTURE))))
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = Gemma3nForConditionalGeneration(config)
    return model.train(False).requires_grad_(False)


def _config(block_args: object) -> dict[str, Any]:
    return {
        "text_config": dict(TEXT),
        "audio_config": dict(AUDIO),
        "vision_config": {**VISION, "model_args": {"block_args": block_args, **TOWER}},
        **TOKENS,
    }


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> F32:
    if name.startswith("model.vision_tower."):
        return timm_oracle.random_vision_tensor(name, shape, seed)
    if name.startswith(("model.audio_tower.", "model.embed_audio.", "model.embed_vision.")):
        return audio_oracle.random_tensor(f"{name} {seed}", shape)
    tensor = oracle.random_tensor(name, shape, seed)
    if name.endswith("embed_tokens.weight") or name == "lm_head.weight":
        tensor = oracle.random_tensor("embed_tokens", shape, seed)
        tensor[0] = tensor[3080:] = 0  # as published: ids of the towers look like padding, which is never the best
    return tensor


def _write_configs(directory: Path) -> None:
    blocks = timm_oracle.decoded_blocks(timm_oracle.TINY_ARCHITECTURE)
    from transformers import Gemma3nConfig

    written = Gemma3nConfig(**_config(None)).to_dict()
    written["vision_config"]["model_args"] = {"block_args": blocks, **TOWER}
    written["architectures"] = ["Gemma3nForConditionalGeneration"]
    (directory / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True))
    tokenizer = json.loads((EXAMPLE / "tokenizer.json").read_text())
    like = tokenizer["added_tokens"][-1]
    # The example's towers have other ids: this vocabulary ends before some of them.
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] not in SPELLINGS.values()
    ]
    tokenizer["added_tokens"] += [{**like, "id": token, "content": text} for token, text in SPELLINGS.items()]
    # As in Gemma's own, newlines are one token: those behind an image are no token of their own before others.
    tokenizer["model"]["vocab"] |= {"\n\n": 3072, "\n\n\n\n": 3073}
    tokenizer["model"]["merges"] += [["\n", "\n"], ["\n\n", "\n\n"]]
    # An added token that the vocabulary does not have gets the next free id, whatever its own.
    tokenizer["model"]["vocab"] |= {text: token for token, text in SPELLINGS.items()}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = {**PROCESSOR, "size": size, "image_seq_length": TOKENS["vision_soft_tokens_per_image"]}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, directory)
