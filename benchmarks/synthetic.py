"""Writes Gemma 3n checkpoints of any size with random weights, for measurements that do not depend on their values.

Weights are normal with variance 1 / fan-in, norms near 1 or, at the end of a block, near 0.1: activations keep their
magnitude and rounding errors stay small through the layers. The same preset and seed give the same bytes. It needs a
few tens of MB of memory, whatever the size.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.synthetic_files import Noise, Shape, Stored, write_json, write_weights
from converters.gemma.config import Attention, layer_kv_sources
from converters.gemma.tensors import PER_LAYER_EMBEDDING, unused_kv_tensors
from converters.gemma3n.config.audio import audio_tensors, parse_audio_config
from converters.gemma3n.config.text import (
    CAUSAL_LM,
    CONDITIONAL_GENERATION,
    LayerConfig,
    TextConfig,
    to_hugging_face,
)
from converters.gemma3n.config.vision import parse_vision_config, vision_tensors
from converters.gemma3n.tensors import text_tensors
from toolkit.base.files import atomic_directory

TOKENIZER_SOURCE = Path(__file__).parents[1] / "examples" / "tiny_gemma3n"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHARD_BYTES = 2 * 10**9
PROCESSOR: Mapping[str, object] = {
    "image_processor_type": "SiglipImageProcessorFast",
    "size": {"height": 768, "width": 768},
    "resample": 2,
    "do_normalize": False,
    "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    "feature_size": 128,
}
"""How images and sounds are prepared (google/gemma-3n-E4B-it, preprocessor_config.json)."""
SPELLINGS = {
    "boi_token_id": "<start_of_image>",
    "image_token_id": "<image_soft_token>",
    "eoi_token_id": "<end_of_image>",
    "boa_token_id": "<start_of_audio>",
    "audio_token_id": "<audio_soft_token>",
    "eoa_token_id": "<end_of_audio>",
}
STORED_PREFIX = {CAUSAL_LM: "model.", CONDITIONAL_GENERATION: "model.language_model."}
"""The prefix of the text tensors in each class."""
BYTES_PER_WEIGHT = 2

# Norms at the end of a block are small, as in trained models: at 1 each layer would multiply every rounding error, and
# no quantised bundle could pass the quality gate.
NORM_MEANS = {False: 1.0, True: 0.1}


def text_config(
    *,
    hidden: int,
    layers: int,
    ffn: int,
    vocabulary: tuple[int, int],
    ple: int,
    heads: tuple[int, int],
    head_dim: int,
    shared: int,
    window: int = 512,
    laurel: int = 64,
) -> TextConfig:
    """A config with Gemma 3n's pattern at other widths; `vocabulary`: token ids, and those with per-layer embeddings.

    Every fifth layer is global, the first half of the layers (ten at most) is sparse, and the last `shared` layers read
    the caches of others. `heads`: of queries, and of keys and values.
    """
    attention: list[Attention] = ["full" if (index + 1) % 5 == 0 else "sliding" for index in range(layers)]
    sources = layer_kv_sources(attention, shared)
    sparse = min(10, layers // 2)
    return TextConfig(
        vocab_size=vocabulary[0],
        ple_vocab_size=vocabulary[1],
        hidden_size=hidden,
        ple_size=ple,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        sliding_window=window,
        max_positions=32768,
        rms_norm_eps=1e-6,
        rope_theta_full=1e6,
        rope_theta_sliding=1e4,
        laurel_rank=laurel,
        altup_num_inputs=4,
        altup_active_index=0,
        altup_correct_scale=True,
        final_logit_softcap=30.0,
        layers=tuple(
            LayerConfig(attention[index], ffn, sources[index], 0.95 if index < sparse else 0.0)
            for index in range(layers)
        ),
        bos_token_id=2,
        eos_token_ids=(1, 5),  # <eos> and <end_of_turn> of the tokenizer that is copied
        pad_token_id=0,
    )


def _published(layers: int, ffn: int, shared: int) -> TextConfig:
    """A published config; E4B and E2B differ only in these numbers (google/gemma-3n-E4B, config.json)."""
    return text_config(
        hidden=2048,
        layers=layers,
        ffn=ffn,
        vocabulary=(262_400, 262_144),
        ple=256,
        heads=(8, 2),
        head_dim=256,
        shared=shared,
    )


PRESETS: Mapping[str, TextConfig] = {
    "tiny": text_config(
        hidden=64,
        layers=5,
        ffn=128,
        vocabulary=(3328, 3072),
        ple=32,
        heads=(4, 2),
        head_dim=16,
        shared=0,
        window=16,
        laurel=32,
    ),
    "0.43b": text_config(
        hidden=1024,
        layers=20,
        ffn=4096,
        vocabulary=(32_896, 32_768),
        ple=128,
        heads=(4, 2),
        head_dim=256,
        shared=10,
    ),
    "e2b": _published(layers=30, ffn=8192, shared=10),
    "e4b": _published(layers=35, ffn=16_384, shared=15),
}
SHARDED = ("e2b", "e4b")  # as published: in shards, and with the K/V weights that shared layers do not use


def write_synthetic(
    output: Path,
    preset: str | TextConfig,
    *,
    seed: int = 0,
    architecture: str = CAUSAL_LM,
    vision: bool = False,
    audio: bool = False,
    sparse: bool = False,
) -> int:
    """Write the checkpoint directory `output` atomically; return the bytes of its weights.

    As Gemma3nForConditionalGeneration, it has configs of small towers, without weights. With `vision` the vision tower
    is the published one, with weights; with `audio`, the audio tower is. `sparse`: all weights are zeros that take no
    space on disk.
    """
    config = preset if isinstance(preset, TextConfig) else PRESETS[preset]
    tensors = text_tensors(config) | (unused_kv_tensors(config) if preset in SHARDED else {})
    stored = {STORED_PREFIX[architecture] + name: shape for name, shape in tensors.items()}
    written = _config_json(config, architecture)
    tower: dict[str, Shape] = {}
    assert architecture == CONDITIONAL_GENERATION or not (vision or audio), "a text model has no tower"
    if vision:
        written |= _vision_json(config)
        tower |= vision_tensors(parse_vision_config(written, config, "config.json"))
    if audio:
        written |= _audio_json(config)
        tower |= audio_tensors(parse_audio_config(written, config, "config.json"))
    stored |= {f"model.{name}": shape for name, shape in tower.items()}
    noise = Noise(seed)
    tensors_of = {name: bfloat16_tensor(noise, name, shape, config.ple_size) for name, shape in stored.items()}
    with atomic_directory(output) as directory:
        size = write_weights(directory, tensors_of, SHARD_BYTES if preset in SHARDED else None, sparse=sparse)
        write_json(directory / "config.json", written)
        for name in TOKENIZER_FILES:
            shutil.copyfile(TOKENIZER_SOURCE / name, directory / name)
        if vision or audio:
            write_json(directory / "preprocessor_config.json", PROCESSOR)
            _spell_tokens(directory / "tokenizer.json", written)
    return size


def bfloat16_tensor(noise: Noise, name: str, shape: Shape, ple_size: int) -> Stored:
    """A tensor of random weights: norms near their mean, matrices of variance 1 / fan-in."""
    # A row of the per-layer table is one vector per layer; elsewhere a row's length is the number of summed terms.
    fan_in = ple_size if name.endswith(PER_LAYER_EMBEDDING) else math.prod(shape[1:])
    mean, deviation = (NORM_MEANS[".post_" in name], 0.02) if len(shape) == 1 else (0.0, fan_in**-0.5)
    return Stored("BF16", shape, partial(noise.bfloat16, math.prod(shape), mean, deviation))


def _spell_tokens(tokenizer: Path, config: Mapping[str, object]) -> None:
    """Give the towers' tokens their spellings, whatever their ids are in this vocabulary."""
    spelled = {spelling: config[key] for key, spelling in SPELLINGS.items() if key in config}
    value = json.loads(tokenizer.read_text(encoding="utf-8"))
    like, vocabulary = value["added_tokens"][0], value["model"]["vocab"]
    value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] not in spelled]
    for spelling, token in spelled.items():
        value["added_tokens"].append({**like, "id": token, "content": spelling})
        # An added token that the vocabulary does not have gets the next free id, whatever its own.
        vocabulary[spelling] = token
    tokenizer.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _vision_json(config: TextConfig) -> dict[str, object]:
    """The published tower's config (google/gemma-3n-E4B, config.json), with its tokens after the text model's."""
    offset = config.ple_vocab_size
    tower = {"model_type": "gemma3n_vision", "architecture": "mobilenetv5_300m_enc", "rms_norm_eps": 1e-6}
    table = {"hidden_size": 2048, "vocab_offset": offset, "vocab_size": 128}
    tokens = {"boi_token_id": 6, "eoi_token_id": offset, "image_token_id": offset + 1}
    return {"vision_config": tower | table, "vision_soft_tokens_per_image": 256, **tokens}


def _audio_json(config: TextConfig) -> dict[str, object]:
    """The published tower's config (google/gemma-3n-E4B, config.json), with its tokens last in the vocabulary."""
    offset = config.vocab_size - 128
    tower = {
        "model_type": "gemma3n_audio",
        "hidden_size": 1536,
        "input_feat_size": 128,
        "rms_norm_eps": 1e-6,
        "gradient_clipping": 1e10,
        "conf_attention_chunk_size": 12,
        "conf_attention_context_left": 13,
        "conf_attention_context_right": 0,
        "conf_attention_logit_cap": 50.0,
        "conf_conv_kernel_size": 5,
        "conf_num_attention_heads": 8,
        "conf_num_hidden_layers": 12,
        "conf_reduction_factor": 4,
        "conf_residual_weight": 0.5,
        "sscp_conv_channel_size": [128, 32],
        "sscp_conv_group_norm_eps": 1e-3,
        "sscp_conv_kernel_size": [[3, 3], [3, 3]],
        "sscp_conv_stride_size": [[2, 2], [2, 2]],
        "vocab_offset": offset,
        "vocab_size": 128,
    }
    tokens = {"boa_token_id": 7, "eoa_token_id": offset, "audio_token_id": offset + 1}
    return {"audio_config": tower, "audio_soft_tokens_per_image": 188, **tokens}


def _config_json(config: TextConfig, architecture: str) -> dict[str, object]:
    text = {**to_hugging_face(config), "dtype": "bfloat16"}
    if architecture == CAUSAL_LM:
        return text
    towers = {"hidden_size": 64, "vocab_size": 64}
    offset = config.ple_vocab_size
    vision = {"model_type": "gemma3n_vision", "architecture": "mobilenetv3_small_050", "vocab_offset": offset}
    audio = {"model_type": "gemma3n_audio", "conf_num_hidden_layers": 1, "conf_num_attention_heads": 4}
    return {
        "architectures": [architecture],
        "model_type": "gemma3n",
        "dtype": "bfloat16",
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        "vision_config": {**vision, **towers},
        "audio_config": {**audio, **towers, "vocab_offset": offset + 64},
        **{key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__)
    parser.add_argument("output", type=Path, help="the directory to make")
    parser.add_argument("--preset", choices=PRESETS, default="0.43b", help="dimensions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    parser.add_argument(
        "--architecture", choices=STORED_PREFIX, default=CAUSAL_LM, help="class that it loads as (default: %(default)s)"
    )
    parser.add_argument("--vision", action="store_true", help="with the published tower for images")
    parser.add_argument("--audio", action="store_true", help="with the published tower for sound")
    parser.add_argument("--sparse", action="store_true", help="all weights 0, in files that take no space: for inspect")
    options = parser.parse_args(arguments)
    if (options.vision or options.audio) and options.architecture == CAUSAL_LM:
        parser.error(f"--vision and --audio need --architecture {CONDITIONAL_GENERATION}")
    size = write_synthetic(
        options.output,
        options.preset,
        seed=options.seed,
        architecture=options.architecture,
        vision=options.vision,
        audio=options.audio,
        sparse=options.sparse,
    )
    print(f"{options.output}: {options.preset}, {size // BYTES_PER_WEIGHT:,} weights, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
