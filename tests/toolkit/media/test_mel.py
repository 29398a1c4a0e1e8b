"""Log-mel features are those of transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.base.errors import UsageError
from toolkit.media.mel import FFT_SIZE, log_mel, mel_filters, num_frames

LENGTHS = (513, 640, 641, 799, 800, 801, 16_000, 16_001, 47_999, 160_000, 479_999, 480_000)


def noise(count: int, scale: float = 0.1) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(count).standard_normal(count)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor() -> Any:
    pytest.importorskip("transformers")
    from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor

    return Gemma3nAudioFeatureExtractor()


SOUNDS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[Any]]] = {
    "noise": lambda t: noise(len(t)),
    "loud": lambda t: noise(len(t), 3.0),
    "hardly any": lambda t: noise(len(t), 1e-7),
    "silence": lambda t: 0 * t,
    "a tone": lambda t: 0.5 * np.sin(2 * np.pi * 440 * t),
    "a constant": lambda t: 0 * t + 0.25,
    "a click": lambda t: (t == 0.1).astype(np.float32),
    "a sweep": lambda t: np.sin(2 * np.pi * 4000 * t * t),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", SOUNDS)
def test_features_are_transformers(name: str, extractor: Any) -> None:
    samples = SOUNDS[name](np.arange(16_000) / 16_000).astype(np.float32)
    features, mask = log_mel(samples)
    expected = extractor(samples)
    assert features.dtype == np.float32 and mask.dtype == np.bool_
    assert np.abs(features - expected["input_features"][0]).max() < 1e-5
    assert np.array_equal(mask, expected["input_features_mask"][0])


@pytest.mark.reference
@pytest.mark.parametrize("count", LENGTHS)
def test_features_and_mask_of_every_length_are_transformers(count: int, extractor: Any) -> None:
    samples = noise(count)
    features, mask = log_mel(samples)
    expected = extractor(samples)
    assert features.shape == (num_frames(count), 128) == expected["input_features"][0].shape
    assert np.abs(features - expected["input_features"][0]).max() < 1e-5
    assert np.array_equal(mask, expected["input_features_mask"][0])


@pytest.mark.reference
def test_filters_are_transformers(extractor: Any) -> None:
    assert np.abs(mel_filters() - extractor.mel_filters).max() < 1e-12


def test_thirty_seconds_take_little_more_than_their_fourier_transforms() -> None:
    """Beside each other, so that both are slow on a busy machine; the best of five."""
    samples = noise(480_000)
    frames = np.ones((num_frames(len(samples)), FFT_SIZE))
    features, transforms = [], []
    for _ in range(5):
        times = [time.process_time()]
        for work in (lambda: log_mel(samples), lambda: np.fft.rfft(frames, axis=-1)):
            work()
            times.append(time.process_time())
        features.append(times[1] - times[0])
        transforms.append(times[2] - times[1])
    assert min(features) < 20 * min(transforms)


def test_a_tone_is_loudest_in_the_filter_around_it() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    loudest = log_mel(tone)[0].mean(axis=0).argmax()
    assert mel_filters()[64, loudest] == mel_filters()[64].max()  # bin 64 of 1,024 at 16 kHz is 1,000 Hz


def test_silence_lies_on_the_floor() -> None:
    assert np.array_equal(np.unique(log_mel(np.zeros(1000, np.float32))[0]), [np.float32(np.log(1e-5))])


def test_the_mask_ends_with_the_sound() -> None:
    assert log_mel(noise(801))[1].tolist() == [True, True, True]
    assert log_mel(noise(800))[1].tolist() == [True, True, True]
    assert log_mel(noise(513))[1].tolist() == [True]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), r"found 0 samples \(0.000 s\), wanted at least 513; append silence"),
        (np.zeros(512, np.float32), r"found 512 samples \(0.032 s\), wanted at least 513"),
        (np.zeros(480_001, np.float32), r"found 480,001 samples .*, wanted at most 480,000 \(30 s\); split it"),
        (np.zeros((600, 2), np.float32), r"found samples of shape \(600, 2\), wanted one channel"),
        (np.full(600, np.nan, np.float32), r"not finite"),
        (np.full(600, np.inf, np.float32), r"not finite"),
    ],
)
def test_what_has_no_features_is_refused(samples: NDArray[np.float32], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        log_mel(samples)
