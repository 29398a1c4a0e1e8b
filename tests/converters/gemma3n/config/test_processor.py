"""What a checkpoint's processor config must say: read where it varies, refused where it asks for other numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from checkpoints import PROCESSOR

from converters.gemma3n.config.processor import read_image_size, require_sound_features
from toolkit.base.errors import CheckpointError

Write = Callable[[Path, Mapping[str, object]], Path]


def flat(directory: Path, values: Mapping[str, object]) -> Path:
    (directory / "preprocessor_config.json").write_text(json.dumps(values))
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma3nProcessor"}))
    return directory


def nested(directory: Path, values: Mapping[str, object]) -> Path:
    parts = {"image_processor": dict(values), "feature_extractor": dict(values)}
    (directory / "processor_config.json").write_text(json.dumps({"image_seq_length": 256, **parts}))
    return directory


@pytest.mark.parametrize("write", [flat, nested])
def test_both_forms_tell_the_size_of_an_image(tmp_path: Path, write: Write) -> None:
    assert read_image_size(write(tmp_path, PROCESSOR), 256) == 768
    require_sound_features(tmp_path, 128, 188)


@pytest.mark.reference
def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import Gemma3nAudioFeatureExtractor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"height": 96, "width": 96}
    image = SiglipImageProcessorPil(size=size, resample=2, do_normalize=False)
    sound = Gemma3nAudioFeatureExtractor(feature_size=16)
    parts = {"image_processor": image, "feature_extractor": sound}
    nested_values = {name: json.loads(part.to_json_string()) for name, part in parts.items()}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested_values))
    assert read_image_size(tmp_path, 9) == 96
    require_sound_features(tmp_path, 16, 188)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"do_normalize": True}, "do_normalize: found true, wanted false"),
        ({"do_normalize": None}, "do_normalize"),
        ({"resample": 3}, "resample"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"height": 768, "width": 512}}, "a square"),
        ({"size": {"shortest_edge": 768}}, "height: missing"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type"),
        ({"image_seq_length": 255}, "image_seq_length"),
    ],
)
@pytest.mark.parametrize("write", [flat, nested])
def test_other_pixels_are_refused(tmp_path: Path, write: Write, changes: dict[str, object], says: str) -> None:
    values = {**PROCESSOR, **changes}
    if write is nested and "image_seq_length" in changes:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=says):
        read_image_size(write(tmp_path, values), 256)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feature_size": 80}, "feature_size: found 80, wanted 128"),
        ({"sampling_rate": 8000}, "sampling_rate"),
        ({"frame_length": 400}, "frame_length: found 400, wanted 512"),
        ({"hop_length": 128}, "hop_length"),
        ({"fft_length": 512}, "fft_length"),
        ({"dither": 1e-4}, "dither"),
        ({"max_frequency": 8000.0}, "max_frequency"),
        ({"per_bin_mean": [0.0] * 128}, "per_bin_mean"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "feature_extractor_type"),
    ],
)
def test_other_features_of_sound_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        require_sound_features(flat(tmp_path, {**PROCESSOR, **changes}), 128, 188)


def test_a_checkpoint_without_a_processor_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json.*--groups"):
        read_image_size(tmp_path, 256)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="with feature_extractor"):
        require_sound_features(tmp_path, 128, 188)
