"""Log-mel features of the audio tower, equal to transformers' Gemma3nAudioFeatureExtractor (its defaults)."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import UsageError

SAMPLE_RATE_HZ = 16_000
"""`sampling_rate` in preprocessor_config.json of google/gemma-3n-E2B-it."""

PIECE_SAMPLES = 30 * SAMPLE_RATE_HZ
"""The longest sound for one placeholder: transformers drops the rest (Gemma3nAudioFeatureExtractor)."""

NUM_MELS = 128
FRAME_SAMPLES = 512
HOP_SAMPLES = 160
MIN_SAMPLES = FRAME_SAMPLES + 1
"""As in transformers, frames are cut one sample longer than needed here; other kinds of pre-emphasis would use it."""
FFT_SIZE = 1024
PRE_EMPHASIS = 0.97
MIN_HZ, MAX_HZ = 125.0, 7600.0
FLOOR = 1e-5

_PAD_MULTIPLE = 128


def log_mel(samples: NDArray[np.float32], bins: int = NUM_MELS) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features f32[frames, bins] and a mask bool[frames], false where a frame starts in the padding after the sound.

    `samples`: f32[n] at 16 kHz, n from 513 to 480,000 (30 s, 2,997 frames). UsageError for any other n, for which
    transformers would give no frame, or drop the rest of the sound.
    """
    _check(samples)
    count = len(samples)
    padded = np.pad(samples.astype(np.float32, copy=False), (0, -count % _PAD_MULTIPLE))
    frames = np.lib.stride_tricks.sliding_window_view(padded, MIN_SAMPLES)[::HOP_SAMPLES]
    spectrum = np.fft.rfft(_pre_emphasised(frames) * _window(), n=FFT_SIZE, axis=-1)
    mel = np.abs(spectrum) @ mel_filters(bins)
    mask = np.arange(len(frames)) * HOP_SAMPLES < count
    return np.log(np.maximum(mel, FLOOR)).astype(np.float32), mask


def num_frames(num_samples: int) -> int:
    """The number of frames of a sound, including those that start in its padding.

    >>> num_frames(513), num_frames(480_000)
    (1, 2997)
    """
    padded = num_samples + -num_samples % _PAD_MULTIPLE
    return max(0, (padded - MIN_SAMPLES) // HOP_SAMPLES + 1)


def max_samples(frames: int) -> int:
    """The length in samples of the longest sound of at most `frames` frames and 30 s.

    >>> max_samples(1), max_samples(112), max_samples(3008)
    (640, 18432, 480000)
    """
    padded = (MIN_SAMPLES + frames * HOP_SAMPLES - 1) // _PAD_MULTIPLE * _PAD_MULTIPLE
    return min(padded, PIECE_SAMPLES)


@functools.cache
def mel_filters(bins: int = NUM_MELS) -> NDArray[np.float64]:
    """Triangular filters f64[513, bins] of height 1 on HTK's mel scale, from 125 to 7,600 Hz; read-only."""
    low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (MIN_HZ, MAX_HZ))
    corners = 700.0 * (10 ** (np.linspace(low, high, bins + 2) / 2595.0) - 1.0)
    lines = np.arange(FFT_SIZE // 2 + 1)[:, np.newaxis] * (SAMPLE_RATE_HZ / FFT_SIZE)
    width = np.diff(corners)
    rising = (lines - corners[:-2]) / width[:-1]
    falling = (corners[2:] - lines) / width[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)
    return filters


def _pre_emphasised(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pre-emphasis as in HTK: y0 = 0.03 x0, y_j = x_j - 0.97 x_{j-1}; f32[frames, 513] to f32[frames, 512]."""
    first = frames[:, :1] * (1.0 - PRE_EMPHASIS)
    return np.concatenate([first, frames[:, 1:-1] - PRE_EMPHASIS * frames[:, :-2]], axis=1)


def _window() -> NDArray[np.float32]:
    """The periodic Hann window, f32[512]."""
    phase = 2 * np.pi * np.arange(FRAME_SAMPLES, dtype=np.float32) / FRAME_SAMPLES
    return (0.5 * (1 - np.cos(phase))).astype(np.float32)


def _check(samples: NDArray[np.float32]) -> None:
    if samples.ndim != 1:
        raise UsageError("sound", found=f"samples of shape {samples.shape}", wanted="one channel")
    found = f"{len(samples):,} samples ({len(samples) / SAMPLE_RATE_HZ:.3f} s)"
    if len(samples) < MIN_SAMPLES:
        raise UsageError("sound", found=found, wanted=f"at least {MIN_SAMPLES}", remedy="append silence")
    if len(samples) > PIECE_SAMPLES:
        raise UsageError("sound", found=found, wanted=f"at most {PIECE_SAMPLES:,} (30 s)", remedy="split it")
    if not np.isfinite(samples).all():
        raise UsageError("sound", found="samples that are not finite")
