"""The towers' gate: valid bundles pass, float ones within rounding, and towers of another checkpoint do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from towers import write_multimodal_checkpoint

from converters.families import open_checkpoint
from converters.verify_towers import compare, sample_image, sample_sound, verify_tower
from gemma_edge.cli import main
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest import AudioRecord, VisionRecord
from toolkit.bundle.manifest_json import read_manifest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.media_prompt import TOWERS, TowerName

SMALL = ["--context", "64", "--prefill", "4,16", "--no-verify", "-q"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal_checkpoint(tmp_path_factory.mktemp("multimodal") / "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("group", TOWERS)
def test_float_towers_differ_by_rounding_alone(checkpoint: Path, tmp_path: Path, group: TowerName) -> None:
    assert main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), "--quant", "f32", *SMALL]) == 0
    (tmp_path / "scratch").mkdir()
    with open_checkpoint(checkpoint) as opened:
        report = verify_tower(Bundle(tmp_path / "bundle"), group, opened, tmp_path / "scratch", threads=1)
    assert report.passed and report.limit == 1e-3
    assert report.relative_error < 1e-4 and report.cosine_min > 0.9999


@pytest.mark.slow
def test_verify_judges_the_towers_too(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(checkpoint), "-o", str(tmp_path / "bundle"), *SMALL]) == 0
    capfd.readouterr()
    arguments = ["verify", str(tmp_path / "bundle"), "--tokens", "16", "--weight-cache", "memory", "--json"]
    main([*arguments, "--checkpoint", str(checkpoint)])
    towers = json.loads(capfd.readouterr().out)["towers"]
    assert towers.keys() == {"vision", "audio"}
    assert all(1e-4 < tower["relative_error"] < tower["limit"] == 0.2 for tower in towers.values())
    main([*arguments, "--checkpoint", str(checkpoint), "--groups", "text,audio"])
    assert json.loads(capfd.readouterr().out)["towers"].keys() == {"audio"}
    other = write_multimodal_checkpoint(tmp_path / "other", seed=1)
    assert main([*arguments, "--checkpoint", str(other)]) == 1
    towers = json.loads(capfd.readouterr().out)["towers"]
    assert all("wanted at most 0.2" in tower["failures"][0] for tower in towers.values())


@pytest.mark.full
def test_verify_judges_the_towers_on_your_own_files(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, rng = tmp_path / "bundle", np.random.default_rng(0)
    assert main(["convert", str(checkpoint), "-o", str(bundle), *SMALL]) == 0
    pictures = [tmp_path / f"{i}.png" for i in range(3)]
    for picture in pictures:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(picture)
    soundfile.write(tmp_path / "sound.wav", rng.uniform(-0.3, 0.3, 16000 * 2), 16000)
    arguments = ["verify", str(bundle), "--checkpoint", str(checkpoint), "--tokens", "16", "--json"]
    arguments += ["--weight-cache", "memory"]
    files = ["--image", *map(str, pictures), "--audio", str(tmp_path / "sound.wav")]
    capfd.readouterr()
    main([*arguments, *files])
    towers = json.loads(capfd.readouterr().out)["towers"]
    vision = read_manifest(bundle).vision
    assert vision is not None
    assert towers["vision"]["samples"] == 3 and towers["vision"]["soft_tokens"] == 3 * vision.soft_tokens
    assert towers["audio"]["samples"] >= 1
    assert all(tower["relative_error"] < tower["limit"] for tower in towers.values())
    assert main([*arguments, *files, "--groups", "text,vision"]) == 2
    assert "audio" in capfd.readouterr().err


def test_rows_that_are_not_finite_fail() -> None:
    wanted = [np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)]
    found = [wanted[0], np.full((2, 4), np.nan, np.float32)]
    report = compare(found, wanted, limit=0.2)
    assert not report.passed and report.samples == 2 and report.soft_tokens == 5
    assert report.to_json()["relative_error"] is None
    with pytest.raises(UsageError, match="as the checkpoint's tower gives"):
        compare(found[:1], wanted, limit=0.2)


def test_samples_are_the_same_every_time() -> None:
    vision = VisionRecord(0, 1, 2, 2, 1, image_size=64, soft_tokens=4, feature_size=8)
    audio = AudioRecord(
        *(0, 1, 2, 2, 1), frame_lengths=(48,), mel_bins=16, frames_per_token=16, soft_tokens=3, feature_size=8,
        padding_token_id=2,
    )  # fmt: skip
    assert sample_image(vision).key == sample_image(vision).key
    sound = sample_sound(audio)
    assert sound.key == sample_sound(audio).key and len(sound.values) == 48
