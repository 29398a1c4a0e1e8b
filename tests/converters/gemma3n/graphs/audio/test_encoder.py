"""The audio encoder's graphs against transformers on random towers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from audio_oracle import TINY, VARIANTS, Tower, hf_audio_config, make_tower, mel_frames, tower
from numpy.typing import NDArray

from converters.gemma3n.config.audio import audio_tensors
from converters.gemma3n.graphs.audio.encoder import encoder_graph
from converters.gemma3n.plan.audio_source import AudioSource
from converters.gemma3n.recipes import built_in
from toolkit.tflite.graph import Signature
from toolkit.tflite.writer import distinct_weights, layout_tflite, write_tflite

pytestmark = pytest.mark.reference

F32 = NDArray[np.float32]
LENGTHS = (1, 16, 17, 64, 97, 128)
LONGEST = LENGTHS[-1]
VOCABULARY = {key: TINY[key] for key in ("vocab_size", "vocab_offset")}


class Encoder:
    """Encoders of some lengths in one file."""

    def __init__(self, path: Path, subject: Tower, lengths: tuple[int, ...]) -> None:
        signatures = [Signature(f"encode_{n}", encoder_graph(subject.config, n)) for n in lengths]
        schemes = built_in("f32").plan(distinct_weights(signatures))
        write_tflite(path, layout_tflite(signatures, schemes), AudioSource(subject.source, subject.config))
        self.subject = subject
        self._interpreter = Interpreter(str(path))

    def run(self, frames: int, mel: F32, *, fill: float = 0.0) -> tuple[F32, NDArray[np.bool_]]:
        """Features and mask of a sound in the first rows of the graph of `frames`; the rows after it hold `fill`."""
        rows = np.full((1, frames, mel.shape[1]), fill, np.float32)
        rows[0, : len(mel)] = mel
        mask = (np.arange(frames) < len(mel))[None]
        outputs = self._interpreter.get_signature_runner(f"encode_{frames}")(src_inputs=rows, mask=mask)
        return outputs["features"][0], outputs["mask"][0]

    def mel(self, frames: int) -> F32:
        return mel_frames(frames, self.subject.config.mel_bins)


@pytest.fixture(scope="module", params=VARIANTS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(tmp_path_factory.mktemp("audio") / "encoder.tflite", tower(request.param), LENGTHS)


def error(got: F32, want: F32) -> float:
    """The largest difference, as a share of the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("frames", LENGTHS)
def test_a_sound_that_fills_the_graph_gives_transformers_features(encoder: Encoder, frames: int) -> None:
    mel = encoder.mel(frames)
    features, mask = encoder.run(frames, mel)
    want, valid = encoder.subject.encode(mel, np.ones(frames, np.bool_))
    assert valid.all() and mask.tolist() == valid.tolist()
    assert error(features, want) < 1e-5


# 1 to 20 and around it: every remainder by the 16 frames of a token, with the last step read to its end and beyond.
@pytest.mark.parametrize("frames", [*range(1, 21), 47, 49, 60, 65, 96, 100, 113, 127])
@pytest.mark.parametrize("fill", [0.0, 9.0])
def test_frames_that_are_not_there_change_nothing(encoder: Encoder, frames: int, fill: float) -> None:
    mel = encoder.mel(frames)
    features, mask = encoder.run(LONGEST, mel, fill=fill)
    want, valid = encoder.subject.encode(mel, np.ones(frames, np.bool_))
    assert mask.sum() == len(valid) and mask[: len(valid)].all()
    assert error(features[: len(want)], want) < 1e-5
    assert not features[len(want) :].any()


def test_the_published_architecture_has_the_published_parameters() -> None:
    tensors = audio_tensors(hf_audio_config(**VOCABULARY)[1])
    assert sum(math.prod(shape) for name, shape in tensors.items() if name.startswith("audio_tower")) == 681_348_640


@pytest.mark.full
def test_blocks_of_the_published_widths_give_transformers_features(tmp_path: Path) -> None:
    """Two of twelve blocks, one that others follow and the last: each has 56 million parameters."""
    published = make_tower(**VOCABULARY, conf_num_hidden_layers=2)
    encoder = Encoder(tmp_path / "encoder.tflite", published, (112,))
    mel = encoder.mel(97)  # one second
    features, mask = encoder.run(112, mel)
    want, valid = published.encode(mel, np.ones(97, np.bool_))
    assert mask.tolist() == valid.tolist() and len(valid) == 7
    assert error(features, want) < 5e-5
