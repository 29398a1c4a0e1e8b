"""The audio adapter's graphs against transformers on random towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from audio_oracle import TINY, TOP, VARIANTS, Tower, make_tower, mel_frames, tower
from numpy.typing import NDArray

from converters.gemma3n.graphs.audio.adapter import adapter_graph
from converters.gemma3n.plan.audio import audio_layouts
from converters.gemma3n.plan.audio_source import AudioSource
from converters.gemma3n.recipes import built_in
from toolkit.bundle.manifest import AUDIO_ADAPTER, AUDIO_ENCODER
from toolkit.quant.scheme import Scheme
from toolkit.quant.uniform import dequantize_rows, quantize_rows
from toolkit.tflite.writer import write_tflite

pytestmark = pytest.mark.reference

F32 = NDArray[np.float32]


class Group:
    """The two files of a tower."""

    def __init__(self, directory: Path, subject: Tower, recipe: str = "f32") -> None:
        config = subject.config
        self.lengths = (config.max_frames // 2, config.max_frames)
        for name, layout in audio_layouts(config, built_in(recipe), self.lengths).items():
            write_tflite(directory / name, layout, AudioSource(subject.source, config))
        self.subject = subject
        self.encoder = Interpreter(str(directory / AUDIO_ENCODER))
        self.adapter = Interpreter(str(directory / AUDIO_ADAPTER))

    def soft_tokens(self, mel: F32, length: int) -> F32:
        """What a sound gives in the graphs of a length: f32[soft_tokens, text_hidden]."""
        rows = np.zeros((1, length, mel.shape[1]), np.float32)
        rows[0, : len(mel)] = mel
        mask = (np.arange(length) < len(mel))[None]
        encoded = self.encoder.get_signature_runner(f"encode_{length}")(src_inputs=rows, mask=mask)
        embeddings: F32 = self.adapter.get_signature_runner(f"adapt_{length}")(**encoded)["embeddings"][0]
        return embeddings

    def hard(self, token: int) -> F32:
        ids = np.array([[token]], np.int32)
        embeddings: F32 = self.adapter.get_signature_runner("embed_1")(ids=ids)["embeddings"][0]
        return embeddings


@pytest.fixture(scope="module", params=VARIANTS)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    return Group(tmp_path_factory.mktemp("audio"), tower(request.param))


def largest_error(got: F32, want: F32) -> float:
    """As a share of the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_a_sound_fills_its_places_in_a_prompt_as_in_transformers(group: Group, share: float) -> None:
    longest = group.lengths[-1]
    frames = max(1, int(share * longest))
    mel = mel_frames(frames, group.subject.config.mel_bins)
    want = group.subject.soft_tokens(mel, np.ones(frames, np.bool_))
    for length in group.lengths:
        if frames <= length:
            assert largest_error(group.soft_tokens(mel, length), want) < 1e-5


def test_no_sound_at_all_gives_the_padding_everywhere(group: Group) -> None:
    config = group.subject.config
    padding = group.subject.hard([config.padding_token_id])
    nothing = group.soft_tokens(np.empty((0, config.mel_bins), np.float32), group.lengths[0])
    assert largest_error(nothing, np.repeat(padding, config.soft_tokens, 0)) < 1e-5


def test_a_row_without_a_token_is_the_padding_whatever_the_mask_says(group: Group) -> None:
    config, length = group.subject.config, group.lengths[-1]
    mel = np.zeros((1, length, config.mel_bins), np.float32)
    mel[0, : length // 2] = mel_frames(length // 2, config.mel_bins)
    mask = (np.arange(length) < length // 2)[None]
    encoded = group.encoder.get_signature_runner(f"encode_{length}")(src_inputs=mel, mask=mask)
    adapt = group.adapter.get_signature_runner(f"adapt_{length}")
    always = adapt(mask=np.ones_like(encoded["mask"]), features=encoded["features"])["embeddings"]
    np.testing.assert_array_equal(always, adapt(**encoded)["embeddings"])


def test_every_id_of_the_tower_is_embedded_as_in_transformers(group: Group) -> None:
    config = group.subject.config
    ids = list(range(config.vocab_offset, config.vocab_offset + config.vocab_size))
    got = np.concatenate([group.hard(token) for token in ids])
    assert largest_error(got, group.subject.hard(ids)) < 1e-5


def test_the_end_of_a_sound_needs_no_input(group: Group) -> None:
    end = group.adapter.get_signature_runner("end_of_audio")()["embeddings"][0]
    eoa = TOP["eoa_token_id"]
    assert isinstance(eoa, int)
    np.testing.assert_allclose(end, group.hard(eoa), atol=1e-5)


# Against the same numbers in float only the activations differ, which LiteRT rounds to 8 bits; against the unquantised
# tower the weights differ too.
@pytest.mark.parametrize(
    ("recipe", "scheme", "loss"), [("audio-int8", Scheme("int8"), 0.04), ("audio-int4", Scheme("int4", 32), 0.3)]
)
def test_quantised_towers_compute_with_their_stored_weights(
    tmp_path: Path, recipe: str, scheme: Scheme, loss: float
) -> None:
    group, original = Group(tmp_path, tower(), recipe), tower()
    rounded = {name: round_trip(name, tensor, scheme) for name, tensor in original.tensors.items()}
    mel, there = mel_frames(200, original.config.mel_bins), np.ones(200, np.bool_)
    got = group.soft_tokens(mel, group.lengths[-1])
    assert relative_error(got, make_tower(rounded, **TINY).soft_tokens(mel, there)) < 0.03
    assert 0.001 < relative_error(got, original.soft_tokens(mel, there)) < loss


def round_trip(name: str, tensor: F32, scheme: Scheme) -> F32:
    """A tensor as its recipe stores it."""
    if tensor.ndim != 2 or "pos_proj" in name or name == "embed_audio.embedding.weight":
        return tensor
    outside = "input_proj" in name or "embedding_projection" in name
    return dequantize_rows(quantize_rows(tensor, Scheme("int8") if outside else scheme))


def relative_error(got: F32, want: F32) -> float:
    """Root mean square of the difference, as a share of the wanted values'."""
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def test_the_mask_is_the_adapters_first_input() -> None:
    assert list(adapter_graph(tower().config, 64).inputs) == ["mask", "features"]
