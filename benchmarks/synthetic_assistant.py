"""Writes drafters for the models of `benchmarks.synthetic_gemma4`: Google's dimensions, random weights in bfloat16.

Such a drafter is right by chance alone; what a draft costs is that of a published one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.synthetic_files import Noise, write_json, write_weights
from benchmarks.synthetic_gemma4 import PRESETS, stored_float
from converters.gemma.config import Attention, DecoderLayer, Heads
from converters.gemma4.assistant.config import ARCHITECTURE, MODEL_TYPE, AssistantConfig
from converters.gemma4.assistant.tensors import assistant_tensors
from converters.gemma4.config import to_hugging_face
from toolkit.base.files import atomic_directory

PREFIX = "model."
OWN = ("pre_projection.weight", "post_projection.weight")
"""The tensors that are not the decoder's."""
ATTENTION: tuple[Attention, ...] = ("sliding", "sliding", "sliding", "full")


def assistant_config(preset: str) -> AssistantConfig:
    """The config of a drafter for a model of `synthetic_gemma4`: four layers; for real sizes as wide as Google's."""
    target = PRESETS[preset]
    hidden, ffn = (32, 64) if preset == "tiny" else (256, 2048)
    decoder = replace(
        target,
        hidden_size=hidden,
        ple_vocab_size=0,
        ple_size=0,
        num_heads=4,
        sliding_heads=Heads(target.sliding_heads.dim, 1e4, target.sliding_heads.dim // 2),
        final_logit_softcap=None,
        layers=tuple(DecoderLayer(kind, ffn, index) for index, kind in enumerate(ATTENTION)),
    )
    return AssistantConfig(decoder, target.hidden_size, None)


def write_assistant(output: Path, preset: str, *, seed: int = 0) -> int:
    """Write the checkpoint directory `output` atomically; return the bytes of its weights."""
    config, noise = assistant_config(preset), Noise(seed)
    tensors = {
        name if name in OWN else PREFIX + name: stored_float(noise, name, shape, 1)
        for name, shape in assistant_tensors(config).items()
    }
    text = {key: value for key, value in to_hugging_face(config.decoder).items() if key != "architectures"}
    written = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": "bfloat16",
        "backbone_hidden_size": config.target_hidden_size,
        "text_config": {
            **text,
            "num_kv_shared_layers": len(ATTENTION),
            "use_double_wide_mlp": False,
            "final_logit_softcapping": None,
        },
        "tie_word_embeddings": True,
    }
    with atomic_directory(output) as directory:
        size = write_weights(directory, tensors, None)
        write_json(directory / "config.json", written)
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic_assistant", description=__doc__)
    parser.add_argument("output", type=Path, help="the directory to make")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    options = parser.parse_args(arguments)
    size = write_assistant(options.output, options.preset, seed=options.seed)
    print(f"{options.output}: drafter for {options.preset}, {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
