"""The tiny Gemma 3n's towers: their shapes, their first weights, and the files of the whole checkpoint.

The modules are transformers' own (Gemma3nForConditionalGeneration, with timm's MobileNet-V5 for vision); `train.py`
makes the language model between them.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import data
import model
import torch
import train
from model import SIZES, Weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nForConditionalGeneration, Gemma3nVisionConfig

IMAGE_SIZE, IMAGE_TOKENS, AUDIO_TOKENS, TOWER_VOCAB = 64, 4, 10, 128
VISION_OFFSET, AUDIO_OFFSET = model.PLE_VOCAB, model.PLE_VOCAB + TOWER_VOCAB
IMAGE_BEGIN, AUDIO_BEGIN = data.SPECIAL.index("<start_of_image>"), data.SPECIAL.index("<start_of_audio>")
IMAGE_END, IMAGE_SOFT, AUDIO_END, AUDIO_SOFT = VISION_OFFSET, VISION_OFFSET + 1, AUDIO_OFFSET, AUDIO_OFFSET + 1
AUDIO_PADDING = model.VOCAB - 1
TOWER_TOKENS = {
    "<end_of_image>": IMAGE_END,
    "<image_soft_token>": IMAGE_SOFT,
    "<end_of_audio>": AUDIO_END,
    "<audio_soft_token>": AUDIO_SOFT,
}
"""Ids after those of text, laid out as in Gemma 3n: each tower has a table of its own for 128 of them."""

# Every kind of block that the real tower has. Letters as in timm: r repeats, a and k kernels, s stride, e expansion,
# c channels, h heads, d head size, v stride of keys and values.
VISION_BLOCKS = (
    ("er_r1_k3_s2_e4_c16",),
    ("uir_r1_a3_k5_s2_e4_c24", "uir_r1_a5_k0_s1_e2_c24"),
    ("uir_r1_a5_k5_s2_e4_c48", "mqa_r1_k3_h4_v2_s1_d16_c48", "uir_r1_a0_k0_s1_e2_c48"),
    ("uir_r1_a5_k5_s2_e4_c64", "mqa_r1_k3_h4_s1_d16_c64", "uir_r1_a0_k0_s1_e2_c64"),
)
STEM = 8
LAYER_SCALE = 0.3
AUDIO = {
    "hidden_size": 64,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 2,
    "sscp_conv_channel_size": [16, 8],
}


def vision_arguments() -> dict[str, Any]:
    """The vision tower's `model_args`: arguments of timm.create_model that differ from those of the published tower."""
    from timm.models._efficientnet_builder import decode_arch_def

    blocks = decode_arch_def([list(stage) for stage in VISION_BLOCKS], group_size=None)
    return {"block_args": blocks, "stem_size": STEM, "msfa_output_resolution": int(IMAGE_TOKENS**0.5)}


def config() -> Gemma3nConfig:
    text = train.text_config(SIZES[-1])
    text.architectures = None
    return Gemma3nConfig(
        architectures=["Gemma3nForConditionalGeneration"], dtype="bfloat16", tie_word_embeddings=True,
        text_config=text,
        vision_config=Gemma3nVisionConfig(
            model_args=vision_arguments(), vocab_size=TOWER_VOCAB, vocab_offset=VISION_OFFSET,
        ),
        audio_config=Gemma3nAudioConfig(**AUDIO, vocab_size=TOWER_VOCAB, vocab_offset=AUDIO_OFFSET),
        vision_soft_tokens_per_image=IMAGE_TOKENS, audio_soft_tokens_per_image=AUDIO_TOKENS,
        boi_token_id=IMAGE_BEGIN, eoi_token_id=IMAGE_END, image_token_id=IMAGE_SOFT,
        boa_token_id=AUDIO_BEGIN, eoa_token_id=AUDIO_END, audio_token_id=AUDIO_SOFT,
        pad_token_id=data.PAD, bos_token_id=data.BOS, eos_token_id=list(text.eos_token_id),
    )  # fmt: skip


def new_towers(seed: int) -> nn.ModuleDict:
    """Towers and projectors as transformers builds them, at weights to train from, in float32."""
    torch.manual_seed(seed)
    made = Gemma3nForConditionalGeneration(copy.deepcopy(config()))
    names = ("vision_tower", "embed_vision", "audio_tower", "embed_audio")
    towers = nn.ModuleDict({name: getattr(made.model, name) for name in names})
    with torch.no_grad():
        for name, tensor in towers.named_parameters():
            kind = name.rpartition(".")[2]
            if kind == "gamma":
                tensor.fill_(LAYER_SCALE)
            elif kind in ("per_dim_scale", "bias"):
                tensor.zero_()
            elif tensor.ndim == 1:
                tensor.fill_(0.5 if "post" in name else 1.0)  # what is added to a residual starts small
            else:
                gain = 2.0**0.5 if tensor.ndim == 4 else 1.0
                tensor.normal_(std=gain * tensor[0].numel() ** -0.5)
    return towers.float()


# --- files -----------------------------------------------------------------------------------------------------------


def multimodal_name(name: str) -> str:
    """The name of a language model's tensor in a checkpoint with towers, which has `model.language_model.` in it."""
    return name.replace("model.", "model.language_model.", 1)


def tokenizer_document(text_tokenizer: str) -> str:
    """tokenizer.json with the towers' tokens at their ids; the ids between them have no tokens."""
    document = json.loads(text_tokenizer)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    known = {item["content"] for item in document["added_tokens"]}
    added = [{"id": i, "content": content, **flags} for content, i in TOWER_TOKENS.items() if content not in known]
    document["added_tokens"] += added
    document["model"]["vocab"] |= TOWER_TOKENS
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def write_checkpoint(folder: Path, text: Weights, towers: dict[str, Tensor]) -> None:
    """Write config.json, and model.safetensors in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    made = config()
    made.save_pretrained(folder)
    tensors = {multimodal_name(name): tensor for name, tensor in text.items()}
    tensors |= {f"model.{name}": tensor for name, tensor in towers.items()}
    half = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(tensors.items())}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def write_processor(folder: Path) -> None:
    """Write what transformers' Gemma3nProcessor reads, in the same files as the published checkpoints."""
    text_tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_document(text_tokenizer), encoding="utf-8")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>",
    }  # fmt: skip
    tokenizer |= {"processor_class": "Gemma3nProcessor", **names, "extra_special_tokens": names}
    train.write_json(folder / "tokenizer_config.json", tokenizer)
    train.write_json(folder / "processor_config.json", {
        "audio_seq_length": AUDIO_TOKENS, "image_seq_length": IMAGE_TOKENS, "processor_class": "Gemma3nProcessor",
    })  # fmt: skip
    train.write_json(folder / "preprocessor_config.json", {
        "processor_class": "Gemma3nProcessor",
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 2,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": False, "do_convert_rgb": True,
        "feature_extractor_type": "Gemma3nAudioFeatureExtractor", "feature_size": 128, "sampling_rate": 16000,
        "frame_length": 512, "hop_length": 160, "fft_length": 1024, "fft_overdrive": True,
        "min_frequency": 125.0, "max_frequency": 7600.0, "preemphasis": 0.97, "preemphasis_htk_flavor": True,
        "mel_floor": 1e-5, "input_scale_factor": 1.0, "dither": 0.0, "per_bin_mean": None, "per_bin_stddev": None,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True,
    })  # fmt: skip
