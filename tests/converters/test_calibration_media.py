"""A folder of media to calibrate with: what is taken of it, and one error for each that cannot be used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from towers import write_multimodal_checkpoint

from converters.calibration import media as media_module
from converters.calibration.media import decoded, read_calibration_media, require_locked
from converters.calibration.towers import media_directory
from converters.convert import convert
from converters.request import ConvertRequest
from gemma_edge.cli import main
from toolkit.base.errors import UsageError
from toolkit.bundle.manifest import AudioRecord, VisionRecord

VISION = VisionRecord(0, 1, 2, 2, 1, image_size=64, soft_tokens=4, feature_size=8)
AUDIO = AudioRecord(
    *(0, 1, 2, 2, 1), frame_lengths=(48,), mel_bins=16, frames_per_token=16, soft_tokens=3, feature_size=8,
    padding_token_id=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multimodal_checkpoint(tmp_path_factory.mktemp("multimodal") / "checkpoint")


def picture(path: Path, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def sound(path: Path, seconds: float = 0.5) -> Path:
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, int(16000 * seconds)), 16000)
    return path


def test_files_count_once_whatever_their_names_and_their_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, names in ((one, ("a.png", "b.PNG", "c.png")), (other, ("z.png", "y.png", "x.png"))):
        folder.mkdir()
        for seed, name in enumerate(names):
            picture(folder / "made.png", seed % 2).rename(folder / name)
    assert read_calibration_media(one).record == read_calibration_media(other).record
    assert read_calibration_media(one).record.pictures == 2
    sound(one / "s.wav")
    assert read_calibration_media(one).record.sha256 != read_calibration_media(other).record.sha256


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / ".hidden.png").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for name in ("notes.txt", "x.pdf", "y\x1b[31m.doc"):
        (tmp_path / name).write_text("x")
    assert read_calibration_media(tmp_path).record.pictures == 1
    (warning,) = caplog.messages
    assert "left out: folder.png, notes.txt, x.pdf and 1 more" in warning


def test_a_folder_without_media_or_no_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no pictures or sounds, wanted files that end in \.avif"):
        read_calibration_media(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        read_calibration_media(tmp_path / "missing")
    with pytest.raises(UsageError, match="not a directory"):
        read_calibration_media(picture(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["pipe", "link", "large"])
def test_a_file_that_is_none_is_one_error_that_names_it(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a.png")
    file = tmp_path / "b.wav"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to("b.wav")
    else:
        with open(file, "wb") as opened:
            opened.truncate(media_module.MAX_FILE_BYTES + 1)
    with pytest.raises(UsageError, match=r"b\.wav"):
        read_calibration_media(tmp_path)


def test_more_files_than_anyone_needs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "MAX_FILES", 3)
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    with pytest.raises(UsageError, match="at most 3 files"):
        read_calibration_media(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WAVE"], ids=["empty", "png", "wav"]
)
@pytest.mark.parametrize("name", ["broken.png", "broken.wav"])
def test_a_file_that_is_not_what_its_name_says_is_one_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    media = read_calibration_media(tmp_path)
    with pytest.raises(UsageError, match=name):
        decoded(media, VISION if name.endswith("png") else AUDIO, 10)


def test_a_file_that_changes_in_between_is_one_error(tmp_path: Path) -> None:
    media = read_calibration_media(picture(tmp_path / "a.png").parent)
    picture(tmp_path / "a.png", seed=1)
    with pytest.raises(UsageError, match="a file that has changed"):
        decoded(media, VISION, 10)


def test_pieces_of_a_long_sound_are_taken_from_all_of_it(tmp_path: Path) -> None:
    media = read_calibration_media(sound(tmp_path / "a.wav", seconds=10).parent)
    every, some = decoded(media, AUDIO, 100), decoded(media, AUDIO, 5)
    assert len(every) > 10 and len(some) == 5
    assert [medium.key for medium in some] == [every[i * len(every) // 5].key for i in range(5)]


def test_a_lock_s_media_are_compared(tmp_path: Path) -> None:
    picture(tmp_path / "a.png"), sound(tmp_path / "a.wav")
    media = read_calibration_media(tmp_path)
    assert require_locked(media, media.of(["vision"]).record).files.keys() == {"vision"}, "sounds do not matter to it"
    with pytest.raises(UsageError, match=r"1 pictures and 1 sounds with sha256 .* wanted 2 pictures and 1 sounds"):
        require_locked(media, replace(media.record, pictures=2))


# --- what a conversion can do with it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--groups", "text"], "the pictures are left out, because vision is not converted"),
        (["--groups", "text,audio"], "no sounds, so audio is rounded as without calibration"),
        (["--quant", "f32"], "vision has no quantised matrices"),
        (["--search", "absmax"], "calibration chooses scales by the inputs"),
    ],
)
def test_media_that_nothing_can_be_calibrated_with_are_an_error(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], found: str
) -> None:
    picture(_folder(tmp_path) / "a.png")
    words = ["convert", str(checkpoint), "-o", str(tmp_path / "b"), "--context", "64", "--no-verify", *options]
    assert main([*words, "--calibrate-media", str(_folder(tmp_path))]) == 2
    assert found in capfd.readouterr().err
    assert not (tmp_path / "b").exists() and not media_directory(tmp_path / "b").exists()


def test_the_bundle_must_not_lie_in_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    picture(_folder(tmp_path) / "a.png")
    media = read_calibration_media(_folder(tmp_path))
    with pytest.raises(UsageError, match="media"):
        convert(ConvertRequest(checkpoint, media.folder / "b", context=64, calibration_media=media), gate=None)


@pytest.mark.full
def test_a_tower_without_media_is_named_in_a_warning(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(_folder(tmp_path) / "a.png")
    media = read_calibration_media(_folder(tmp_path))
    found = convert(ConvertRequest(checkpoint, tmp_path / "b", context=64, calibration_media=media), gate=None)
    assert any("no sounds, so audio is rounded as without calibration" in message for message in caplog.messages)
    assert any("1 pictures to calibrate with" in message for message in caplog.messages)
    assert found.calibration_media is not None and found.calibration_media.sounds == 0


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir(exist_ok=True)
    return tmp_path / "media"
