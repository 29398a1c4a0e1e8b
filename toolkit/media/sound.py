"""Converts sound of any rate and format to the audio tower's samples: mono, 16 kHz."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit.base.errors import UsageError
from toolkit.media.limits import MAX_SECONDS
from toolkit.media.mel import PIECE_SAMPLES, SAMPLE_RATE_HZ
from toolkit.media.mp3 import piped_mp3
from toolkit.media.source import MediaSource, errors_about_source, open_source

MAX_LEVEL = 2.0**31
"""The largest magnitude of a sample. Full scale is 1, or that of an integer type if a program forgot to scale; the
power of much larger samples would overflow float32."""

_MIN_RATE_HZ, _MAX_RATE_HZ = 1_000, 768_000
_BLOCK_VALUES = 1 << 20
_UNKNOWN_FRAMES = np.iinfo(np.int64).max
"""SF_COUNT_MAX, libsndfile's count for a stream whose end is not known."""

_REMEDY = "give a whole sound in a format such as WAV, FLAC, Ogg or MP3"

# libsndfile's log line for a WAV, AIFF or AU file that is shorter than its header says.
_SHORT = re.compile(r"\b(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)")
_UNKNOWN_BYTES = 0x7FFF0000
"""Sizes in a header from here on are placeholders: a recorder that writes to a pipe cannot go back and fill them in."""


class _ForwardSound(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that never seeks: soundfile would seek around every block, and seeking in an MP3 is inexact."""

    def seekable(self) -> bool:
        return False


def load_sound(source: MediaSource) -> NDArray[np.float32]:
    """Load a sound, given as a path or as a file's bytes, as samples f32[n]: mono, 16 kHz, full scale 1.

    As in transformers' `load_audio`, channels are averaged, then resampled by soxr at its HQ setting. UsageError for
    anything that is not a sound, is empty, is truncated, has non-finite samples, or is longer than MAX_SECONDS.
    """
    with errors_about_source(source, "sound"):
        return _load(source)


def _load(source: MediaSource) -> NDArray[np.float32]:
    try:
        with open_source(source) as file, _open(file) as sound:
            _check_header(sound)
            samples = _resampled(_mono_blocks(sound), sound.samplerate)
    # SoundFileError is libsndfile's; soundfile raises the other two errors for headers that make no sense.
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise UsageError(found=f"cannot be decoded ({_reason(error)})", remedy=_REMEDY) from error
    if not samples.size:
        raise UsageError(found="no samples")
    if not np.isfinite(samples).all():
        raise UsageError(found="samples near the largest float, which are not sound", wanted="full scale at about 1")
    return samples


def split_sound(samples: NDArray[np.float32], longest: int = PIECE_SAMPLES) -> tuple[NDArray[np.float32], ...]:
    """Split into as few pieces of at most `longest` samples as possible; their lengths differ by at most one sample.

    samples: f32[n] at 16 kHz; the pieces are consecutive views of them.

    >>> [len(piece) / 16_000 for piece in split_sound(np.zeros(61 * 16_000, np.float32))]
    [20.333375, 20.3333125, 20.3333125]
    """
    return tuple(np.array_split(samples, max(1, math.ceil(len(samples) / longest))))


@contextmanager
def _open(file: BinaryIO) -> Iterator[_ForwardSound]:
    with _ForwardSound(file.fileno(), closefd=False) as sound:
        if sound.format != "MP3":
            yield sound
            return
    with piped_mp3(file) as pipe, _ForwardSound(pipe, closefd=False) as sound:
        if sound.frames == _UNKNOWN_FRAMES:
            yield sound
            return
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    with _ForwardSound(file.fileno(), closefd=False) as sound:
        yield sound


def _check_header(sound: _ForwardSound) -> None:
    if not _MIN_RATE_HZ <= sound.samplerate <= _MAX_RATE_HZ:
        wanted = f"{_MIN_RATE_HZ:,} to {_MAX_RATE_HZ:,}"
        raise UsageError(found=f"a rate of {sound.samplerate:,} Hz", wanted=wanted)
    short = _SHORT.search(sound.extra_info)
    if short and int(short[2]) < int(short[1]) < _UNKNOWN_BYTES:
        raise UsageError(found=f"{int(short[2]):,} bytes of samples", wanted=f"the {int(short[1]):,} of its header")


def _mono_blocks(sound: _ForwardSound) -> Iterator[NDArray[np.float32]]:
    """Yield blocks f32[n] of limited size, because a header may claim any length."""
    block_frames = max(1, _BLOCK_VALUES // sound.channels)
    done = 0
    while len(block := sound.read(block_frames, dtype="float32", always_2d=True)):
        _check_finite(block, done, sound.samplerate)
        done += len(block)
        if done > MAX_SECONDS * sound.samplerate:
            found = f"over {MAX_SECONDS:,} seconds of sound"
            raise UsageError(found=found, remedy="cut it")
        yield block.mean(axis=1)
    if done < sound.frames < _UNKNOWN_FRAMES:
        raise UsageError(found=f"{done:,} samples", wanted=f"the {sound.frames:,} of its header")


def _check_finite(block: NDArray[np.float32], first_frame: int, rate_hz: int) -> None:
    """Raise UsageError if a sample of `block`, f32[frames, channels], is not finite, or beyond MAX_LEVEL."""
    bad = np.argwhere(~(np.abs(block) <= MAX_LEVEL))  # a comparison with NaN is false
    if len(bad):
        frame, channel = bad[0]
        at = f"{(first_frame + frame) / rate_hz:.3f} s in channel {channel + 1}"
        value = block[frame, channel]
        wanted = "full scale at about 1" if np.isfinite(value) else "a finite number"
        raise UsageError(f"sample at {at}", found=f"{value}", wanted=wanted)


def _resampled(blocks: Iterator[NDArray[np.float32]], rate_hz: int) -> NDArray[np.float32]:
    """Resample to 16 kHz, to ceil(n * 16,000 / rate) samples as in transformers; one block in memory at a time."""
    if rate_hz == SAMPLE_RATE_HZ:
        return np.concatenate([np.empty(0, np.float32), *blocks])
    stream = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, "float32", "HQ")
    count, pieces = 0, []
    for block in blocks:
        count += len(block)
        pieces.append(stream.resample_chunk(block))
    pieces.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    wanted = -(-count * SAMPLE_RATE_HZ // rate_hz)
    samples = np.concatenate(pieces)[:wanted]
    return np.pad(samples, (0, wanted - len(samples)))


def _reason(error: Exception) -> str:
    """libsndfile's own message, without the number of the file descriptor."""
    return error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
