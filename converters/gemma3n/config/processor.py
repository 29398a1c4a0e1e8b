"""Reads how a checkpoint's processor prepares images and sounds, and checks that toolkit/media does the same.

Old releases of transformers write preprocessor_config.json, with the keys for images and sounds in one object; version
5 writes processor_config.json, with an object for each. The keys that transformers' two classes read are compared with
what toolkit/media does; these classes ignore all other keys, and so does this module.
Source: transformers 5.24 models/gemma3n/{processing,feature_extraction}_gemma3n.py, models/siglip.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.base.errors import CheckpointError
from toolkit.base.strict_json import JsonObject, read_json_file

_NESTED, _FLAT = "processor_config.json", "preprocessor_config.json"
_MAX_IMAGE_SIZE = 1 << 14
_BILINEAR = 2
_IMAGE: Mapping[str, tuple[object, ...]] = {
    "image_processor_type": ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"),
    "do_resize": (True,),
    "do_rescale": (True,),
    "rescale_factor": (1 / 255,),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
}
_SOUND: Mapping[str, tuple[object, ...]] = {
    "feature_extractor_type": ("Gemma3nAudioFeatureExtractor",),
    "sampling_rate": (16_000,),
    "frame_length_ms": (32.0, 32),
    "hop_length_ms": (10.0, 10),
    # Lengths in samples, as in published files; transformers computes them from the two values above.
    "frame_length": (512,),
    "hop_length": (160,),
    "fft_length": (1024,),
    "min_frequency": (125.0, 125),
    "max_frequency": (7600.0, 7600),
    "preemphasis": (0.97,),
    "preemphasis_htk_flavor": (True,),
    "fft_overdrive": (True,),
    "dither": (0.0, 0),
    "input_scale_factor": (1.0, 1),
    "mel_floor": (1e-5,),
    "per_bin_mean": (None,),
    "per_bin_stddev": (None,),
    "padding_value": (0.0, 0),
}


def read_image_size(checkpoint: Path, soft_tokens: int) -> int:
    """The side in pixels of the square that images are resized to; CheckpointError without a processor's config."""
    image = _read(checkpoint, "image_processor", "image_seq_length", soft_tokens)
    for key, values in _IMAGE.items():
        image.expect(key, *values)
    # If these are absent, transformers uses its own defaults, which are not those of Gemma 3n.
    for key, value in (("do_normalize", False), ("resample", _BILINEAR)):
        image.value(key)
        image.expect(key, value)
    size = image.child("size")
    height, width = (size.integer(key, 1, _MAX_IMAGE_SIZE) for key in ("height", "width"))
    if height != width:
        image.refuse("size", {"height": height, "width": width}, "a square")
    return height


def require_sound_features(checkpoint: Path, mel_bins: int, soft_tokens: int) -> None:
    """Raise CheckpointError unless the processor computes the same features of a sound as toolkit/media."""
    sound = _read(checkpoint, "feature_extractor", "audio_seq_length", soft_tokens)
    for key, values in _SOUND.items():
        sound.expect(key, *values)
    sound.expect("feature_size", mel_bins)


def _read(checkpoint: Path, part: str, count_key: str, soft_tokens: int) -> JsonObject:
    """Read the keys of one part of the processor; `count_key`, if present, must equal the value in config.json."""
    paths = [path for path in (checkpoint / _NESTED, checkpoint / _FLAT) if path.exists()]
    found = {path.name: JsonObject(read_json_file(path, CheckpointError), str(path), CheckpointError) for path in paths}
    for config in found.values():
        config.expect(count_key, soft_tokens)
    for config in found.values():
        if config.has(part):
            return config.child(part)
    if _FLAT not in found:
        raise CheckpointError(
            file=checkpoint,
            found=f"no {_FLAT}, and no {_NESTED} with {part}, which say how images and sounds are prepared",
            remedy="copy it from the base model, or convert only the language model with --groups text",
        )
    return found[_FLAT]
