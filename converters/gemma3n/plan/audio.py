"""Plans the audio group as two files: encoders of several lengths, and the adapter to the language model.

audio_encoder.tflite has `encode_N` for each length N in mel frames: src_inputs f32[1, N, bins] and mask bool[1, N] ->
features f32[1, T, hidden] and mask bool[1, T].
audio_adapter.tflite has `adapt_N`: this mask and these features -> embeddings f32[1, soft_tokens, text_hidden];
`embed_1`: ids i32[1, 1] of the tower's own tokens -> embeddings f32[1, 1, text_hidden]; and `end_of_audio`: no input ->
the embedding of the token that ends a sound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from converters.gemma3n.checkpoint import Gemma3nTensors
from converters.gemma3n.config.audio import AudioConfig, audio_tensors, parse_audio_config, require_audio_tensors
from converters.gemma3n.config.processor import require_sound_features
from converters.gemma3n.graphs.audio.adapter import adapter_graph, end_of_audio_graph, hard_embedder_graph
from converters.gemma3n.graphs.audio.encoder import encoder_graph
from converters.gemma3n.plan.audio_source import AudioSource
from converters.gemma3n.plan.tower import tower_config
from converters.plan import GraphFiles, PlannedTower
from toolkit.base.errors import UsageError
from toolkit.base.layout import align_up
from toolkit.bundle.manifest import AUDIO_ADAPTER, AUDIO_ENCODER, AudioRecord
from toolkit.quant.recipe import Recipe
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import TfliteLayout, layout_files

FRAMES_PER_SECOND = 100
_USUAL_FRAMES = (112, 512, 1008)  # 1, 5 and 10 seconds at a frame every 10 ms, rounded up to whole tokens of 16 frames


def read_audio_config(checkpoint: Gemma3nTensors) -> AudioConfig:
    """The config of a checkpoint's tower, with its tensors checked; CheckpointError if it has no such tower."""
    values, path = tower_config(checkpoint, "audio")
    config = parse_audio_config(values, checkpoint.config, path)
    require_audio_tensors(config, checkpoint.tensors, str(checkpoint.path))
    return config


def require_sounds(checkpoint: Gemma3nTensors) -> AudioConfig:
    """Like `read_audio_config`, but the checkpoint's processor is checked too."""
    config = read_audio_config(checkpoint)
    require_sound_features(checkpoint.path, config.mel_bins, config.soft_tokens)
    return config


def default_lengths(config: AudioConfig) -> tuple[int, ...]:
    """The default lengths in mel frames of the encoders; the longest fills all soft tokens of a sound.

    All are multiples of the frames per token, as LiteRT-LM requires.
    """
    usual = (n for n in _USUAL_FRAMES if n < config.max_frames and n % config.frames_per_token == 0)
    return (*usual, config.max_frames)


def audio_signatures(config: AudioConfig, lengths: Sequence[int]) -> Mapping[str, tuple[Signature, ...]]:
    """The signatures of each file; `lengths` in mel frames."""
    if not lengths or list(lengths) != sorted(set(lengths)) or not 1 <= lengths[0] <= lengths[-1] <= config.max_frames:
        wanted = f"increasing numbers of mel frames, from 1 to {config.max_frames}"
        raise UsageError("audio lengths", found=list(lengths), wanted=wanted)
    encoder = tuple(Signature(f"encode_{n}", encoder_graph(config, n)) for n in lengths)
    adapter = (
        *(Signature(f"adapt_{n}", adapter_graph(config, n)) for n in lengths),
        Signature("embed_1", hard_embedder_graph(config, 1)),
        Signature("end_of_audio", end_of_audio_graph(config)),
    )
    return {AUDIO_ENCODER: encoder, AUDIO_ADAPTER: adapter}


def audio_layouts(config: AudioConfig, recipe: Recipe, lengths: Sequence[int]) -> Mapping[str, TfliteLayout]:
    """The layouts of both files; `recipe` is f32, audio-int8 or audio-int4, or covers the same weights.

    Their weights are read through an `AudioSource`.
    """
    return layout_files(audio_signatures(config, lengths), recipe)


def frame_lengths(config: AudioConfig, seconds: Sequence[float]) -> tuple[int, ...]:
    """The lengths in mel frames, rounded up to whole tokens, for sounds of `seconds`; UsageError if one is too long."""
    frames = [math.ceil(round(second * FRAMES_PER_SECOND, 6)) for second in seconds]
    if not frames or min(frames) < 1 or max(frames) > config.max_frames:
        wanted = f"seconds over 0 and up to {config.max_frames / FRAMES_PER_SECOND:g}"
        raise UsageError("audio lengths", found=", ".join(f"{second:g}" for second in seconds), wanted=wanted)
    return tuple(sorted({align_up(count, config.frames_per_token) for count in frames}))


def open_audio(checkpoint: Gemma3nTensors, recipe: Recipe, seconds: Sequence[float] = ()) -> PlannedTower[AudioRecord]:
    """Plan the audio tower, with an encoder for sounds of each length, by default `default_lengths`."""
    config = require_sounds(checkpoint)
    lengths = frame_lengths(config, seconds) if seconds else default_lengths(config)
    record = AudioRecord(
        begin_token_id=config.begin_token_id,
        soft_token_id=config.soft_token_id,
        end_token_id=config.end_token_id,
        vocab_offset=config.vocab_offset,
        vocab_size=config.vocab_size,
        frame_lengths=lengths,
        mel_bins=config.mel_bins,
        frames_per_token=config.frames_per_token,
        soft_tokens=config.soft_tokens,
        feature_size=config.hidden_size,
        padding_token_id=config.padding_token_id,
    )
    parameters = sum(math.prod(shape) for shape in audio_tensors(config).values())
    files = GraphFiles(audio_layouts(config, recipe, lengths), AudioSource(checkpoint, config))
    return PlannedTower(record, recipe, parameters, files)
