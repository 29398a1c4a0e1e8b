"""Sound of every kind as mono samples at 16 kHz, equal to transformers'; one error for what is no sound."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from toolkit.base.errors import ToolkitError, UsageError
from toolkit.media import sound as sound_module
from toolkit.media.mel import log_mel
from toolkit.media.mp3 import after_tags
from toolkit.media.sound import load_sound, split_sound

RATE = 16_000


def tones(seconds: float, rate: int, channels: int = 1) -> NDArray[np.float64]:
    """A tone for each channel, the next an octave higher; f64[frames, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 220 * 2**n * time) for n in range(channels)], axis=1)


def encoded(samples: NDArray[np.generic], rate: int, kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


FILES = {
    "8 kHz": encoded(tones(0.5, 8_000), 8_000, "WAV"),
    "11.025 kHz": encoded(tones(0.5, 11_025), 11_025, "WAV"),
    "16 kHz": encoded(tones(0.5, 16_000), 16_000, "WAV"),
    "44.1 kHz": encoded(tones(0.5, 44_100, 2), 44_100, "WAV"),
    "48 kHz stereo": encoded(tones(0.5, 48_000, 2), 48_000, "WAV"),
    "192 kHz": encoded(tones(0.5, 192_000), 192_000, "WAV", "PCM_24"),
    "an odd rate": encoded(tones(0.5, 12_347), 12_347, "WAV"),
    "six channels": encoded(tones(0.5, 48_000, 6), 48_000, "FLAC"),
    "8 bit": encoded(tones(0.5, 16_000), 16_000, "WAV", "PCM_U8"),
    "24 bit": encoded(tones(0.5, 16_000), 16_000, "WAV", "PCM_24"),
    "32 bit": encoded(tones(0.5, 16_000), 16_000, "WAV", "PCM_32"),
    "float": encoded(tones(0.5, 16_000), 16_000, "WAV", "FLOAT"),
    "double": encoded(tones(0.5, 16_000), 16_000, "WAV", "DOUBLE"),
    "mu-law": encoded(tones(0.5, 8_000), 8_000, "WAV", "ULAW"),
    "ADPCM": encoded(tones(0.5, 8_000), 8_000, "WAV", "IMA_ADPCM"),
    "FLAC": encoded(tones(0.5, 44_100, 2), 44_100, "FLAC"),
    "Vorbis": encoded(tones(0.5, 44_100, 2), 44_100, "OGG", "VORBIS"),
    "Opus": encoded(tones(0.5, 48_000), 48_000, "OGG", "OPUS"),
    "MP3": encoded(tones(0.5, 44_100, 2), 44_100, "MP3"),
    "AIFF": encoded(tones(0.5, 16_000), 16_000, "AIFF", "PCM_24"),
    "CAF": encoded(tones(0.5, 22_050), 22_050, "CAF", "PCM_16"),
    "one sample": encoded(tones(1 / RATE, RATE), RATE, "WAV"),
    "one sample of 8 kHz": encoded(tones(1 / 8000, 8_000), 8_000, "WAV"),
    "over full scale": encoded(3 * tones(0.1, 16_000), 16_000, "WAV", "FLOAT"),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", FILES)
def test_samples_are_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.audio_utils import load_audio

    path = tmp_path / "sound"
    path.write_bytes(FILES[name])
    expected = load_audio(str(path), RATE, backend="soundfile")
    samples = load_sound(path)
    assert samples.dtype == np.float32 and samples.shape == expected.shape
    assert np.abs(samples - expected).max() <= 1e-7


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_keeps_its_pitch_level_and_length_at_every_rate(rate: int) -> None:
    samples = load_sound(encoded(tones(1, rate), rate, "WAV", "FLOAT"))
    assert len(samples) == RATE
    middle = slice(RATE // 10, -RATE // 10)
    assert np.abs(samples[middle] - tones(1, RATE)[middle, 0]).max() < 1e-3


def test_channels_are_averaged() -> None:
    both = tones(0.1, RATE, 2)
    assert np.abs(load_sound(encoded(both, RATE, "WAV", "FLOAT")) - both.mean(axis=1)).max() < 1e-6


def test_blocks_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("48 kHz stereo", "16 kHz", "ADPCM", "MP3", "Vorbis", "Opus", "FLAC"):
        monkeypatch.undo()
        whole = load_sound(FILES[name])
        monkeypatch.setattr(sound_module, "_BLOCK_VALUES", 1000)
        assert np.array_equal(load_sound(FILES[name]), whole), name


def test_a_path_a_name_and_bytes_are_the_same_sound(tmp_path: Path) -> None:
    """Also under a suffix that means headerless samples to soundfile."""
    path = tmp_path / "sound.raw"
    path.write_bytes(FILES["FLAC"])
    samples = load_sound(FILES["FLAC"])
    assert np.array_equal(load_sound(path), samples)
    assert np.array_equal(load_sound(str(path)), samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_sample_that_is_not_finite_is_refused_where_it_stands(value: float, rate: int) -> None:
    samples = tones(0.5, rate, 2)
    samples[rate // 4, 1] = value
    with pytest.raises(UsageError, match=rf"sample at 0\.250 s in channel 2: found {value}, wanted a finite number$"):
        load_sound(encoded(samples, rate, "WAV", "FLOAT"))


@pytest.mark.parametrize("rate", [8_000, 16_000])
@pytest.mark.parametrize("value", [3.4e38, 3e38, -1e20, 2.0**32])
def test_samples_whose_power_has_no_float_are_refused_by_file_and_place(
    value: float, rate: int, tmp_path: Path
) -> None:
    """They gave mel features, and then logits, that were not finite."""
    samples = np.zeros(rate, np.float32)
    samples[rate // 2 :] = value
    path = tmp_path / "loud.wav"
    path.write_bytes(encoded(samples, rate, "WAV", "FLOAT"))
    with pytest.raises(UsageError, match=r"loud\.wav, sample at 0\.500 s in channel 1.*full scale at about 1"):
        load_sound(path)


@pytest.mark.parametrize("level", [1.0, 32768.0, 2.0**31])
def test_samples_of_any_usual_scale_give_finite_features(level: float) -> None:
    samples = np.float32(level) * tones(0.5, 16_000, 1)[:, 0]
    loaded = load_sound(encoded(samples, 16_000, "WAV", "FLOAT"))
    assert np.isfinite(log_mel(loaded)[0]).all()


def test_a_sound_without_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    for rate in (16_000, 48_000):
        path.write_bytes(encoded(np.zeros(0), rate, "WAV"))
        with pytest.raises(UsageError) as caught:
            load_sound(path)
        assert str(caught.value) == f"{path}: no samples"


def test_files_that_are_no_sound_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    for content in (b"", b"hello, world", bytes(5000), b"RIFF\x00\x00\x00\x00WAVE"):
        path.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            load_sound(path)
        assert str(caught.value).startswith(f"{path}: cannot be decoded (")
        assert str(caught.value).endswith("); give a whole sound in a format such as WAV, FLAC, Ogg or MP3")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_sound(tmp_path / "none.wav")
    with pytest.raises(UsageError, match="not a regular file"):
        load_sound(tmp_path)


@pytest.mark.parametrize(
    "name", ["16 kHz", "8 kHz", "float", "24 bit", "mu-law", "FLAC", "Vorbis", "Opus", "MP3", "AIFF"]
)
def test_a_sound_cut_short_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"of its header|cannot be decoded"):
        load_sound(FILES[name][: len(FILES[name]) // 2])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFFFFF - 36])
def test_a_recording_from_a_pipe_is_read_to_its_end(size: int) -> None:
    """Its writer could not go back to fill in the size."""
    data = FILES["16 kHz"]
    at = data.index(b"data") + 4
    piped = data[:4] + struct.pack("<I", size) + data[8:at] + struct.pack("<I", size) + data[at + 4 :]
    assert np.array_equal(load_sound(piped), load_sound(data))


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_a_rate_that_no_recorder_has_is_refused(rate: int) -> None:
    data = FILES["16 kHz"]
    at = data.index(b"fmt ") + 12
    with pytest.raises(UsageError, match=r"Hz, wanted 1,000 to 768,000"):
        load_sound(data[:at] + struct.pack("<I", rate) + data[at + 4 :])


def test_sound_of_over_an_hour_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_module, "MAX_SECONDS", 1)
    monkeypatch.setattr(sound_module, "_BLOCK_VALUES", 1000)
    assert len(load_sound(encoded(tones(1, 8_000), 8_000, "WAV"))) == RATE
    with pytest.raises(UsageError, match="over 1 seconds of sound; cut it"):
        load_sound(encoded(np.zeros(8001), 8_000, "WAV"))


def mp3_frames(data: bytes) -> list[bytes]:
    """MPEG-2 layer III at 16 kHz: 72 bytes for each kbit/s over 16, and one of padding."""
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    frames = []
    while data:
        size = 72 * rates[data[2] >> 4] // 16 + (data[2] >> 1 & 1)
        frames.append(data[:size])
        data = data[size:]
    return frames


def variable_mp3(*, tag_bytes: int = 0) -> tuple[bytes, int]:
    """Two near-silent seconds and two loud ones without a header that tells their length; and the samples in it."""
    noise = np.random.default_rng(0).standard_normal(4 * RATE) * np.repeat([0.001, 0.3], 2 * RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    header, *frames = mp3_frames(buffer.getvalue())
    assert b"Xing" in header
    size = bytes(tag_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))
    tag = b"ID3\x04\x00\x00" + size + bytes(tag_bytes) if tag_bytes else b""
    return tag + b"".join(frames), 576 * len(frames)


@pytest.mark.parametrize("tag_bytes", [0, 300_000])
def test_an_mp3_that_does_not_tell_its_length_is_read_to_its_end(tag_bytes: int) -> None:
    data, count = variable_mp3(tag_bytes=tag_bytes)
    with soundfile.SoundFile(io.BytesIO(data)) as guess:
        assert abs(guess.frames - count) > RATE, "libsndfile has learnt to tell: piped_mp3 may go"
    samples = load_sound(data)
    assert count - 2 * 576 < len(samples) <= count
    assert np.abs(samples[-RATE:]).max() > 0.3


def test_tags_are_passed_over(tmp_path: Path) -> None:
    tag = b"ID3\x04\x00\x10\x00\x00\x01\x01" + bytes(129 + 10)
    path = tmp_path / "tagged"
    path.write_bytes(tag + tag[:5] + b"\x00" + tag[6:-10] + b"sound")
    with path.open("rb") as file:
        assert after_tags(file.fileno()) == 2 * len(tag) - 10


@pytest.mark.parametrize(("count", "pieces"), [(1, 1), (480_000, 1), (480_001, 2), (960_000, 2), (960_160, 3)])
def test_pieces_are_few_equal_and_together_the_whole(count: int, pieces: int) -> None:
    samples = np.arange(count, dtype=np.float32)
    split = split_sound(samples)
    lengths = [len(piece) for piece in split]
    assert len(split) == pieces and max(lengths) <= 480_000 and max(lengths) - min(lengths) <= 1
    assert np.array_equal(np.concatenate(split), samples)
    assert all(np.shares_memory(piece, samples) for piece in split)


@given(st.binary(max_size=300))
def test_noise_raises_nothing_else(data: bytes) -> None:
    try:
        samples = load_sound(data)
    except ToolkitError:
        return
    assert samples.ndim == 1 and np.isfinite(samples).all()


@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_damage_raises_nothing_else(name: str, data: st.DataObject) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    try:
        samples = load_sound(bytes(content))
    except ToolkitError:
        return
    assert samples.ndim == 1 and len(samples) and np.isfinite(samples).all()
