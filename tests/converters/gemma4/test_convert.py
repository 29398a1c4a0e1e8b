"""Bundles of random Gemma 4 models against transformers in float32."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_tokenizer
from gemma4_oracle import CONFIGS, QUICK, checkpoint_of, hf_greedy, hf_logits, make_checkpoint
from oracle_models import OracleConfig

from converters.convert import Conversion
from converters.convert import convert as convert_and_judge
from converters.families import open_checkpoint
from converters.gemma4.family import GEMMA4
from converters.request import ConvertRequest
from toolkit.base.errors import SliceError, UsageError
from toolkit.bundle.check import check_directory
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

pytestmark = pytest.mark.reference

SOME = [pytest.param(c, marks=[] if c.name in QUICK else pytest.mark.full, id=c.name) for c in CONFIGS]
SETTINGS = SessionSettings(threads=1, weight_cache="memory")


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="gemma-edge-test-"))


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    yield
    shutil.rmtree(scratch(), ignore_errors=True)
    scratch.cache_clear()


def with_tokenizer(checkpoint: Path) -> Path:
    """The same checkpoint with a tokenizer, which these tests do not use."""
    directory = scratch() / f"{checkpoint.name}-checkpoint"
    if not directory.exists():
        shutil.copytree(checkpoint, directory)
        write_tokenizer(directory)
    return directory


def request(checkpoint: Path, output: Path, text: str = "f32") -> ConvertRequest:
    return ConvertRequest(checkpoint, output, {"text": text}, context=256, prefill_sizes=(4, 16, 64))


def convert(wanted: ConvertRequest) -> Conversion:
    """Without the gate, which has tests of its own."""
    return convert_and_judge(wanted, families=(GEMMA4,), gate=None)


@functools.cache
def bundle_of(config: OracleConfig) -> Path:
    output = scratch() / f"{config.name}-bundle"
    convert(request(with_tokenizer(checkpoint_of(config)), output))
    return output


def logit_error(bundle: Path, ids: Sequence[int], want: np.ndarray) -> float:
    """The largest of all tokens, decoded one by one, and of those that a prefill leaves to decode."""
    with Session(Bundle(bundle), SETTINGS) as session:
        decoded = np.stack([session.decode(token) for token in ids])
        first, prefilled = session.logits_for(ids)
    return float(max(np.abs(decoded - want).max(), np.abs(prefilled - want[first:]).max()))


@pytest.mark.parametrize("config", SOME)
def test_a_float_bundle_gives_the_logits_of_transformers(config: OracleConfig) -> None:
    want = hf_logits(checkpoint_of(config), config.ids)
    assert logit_error(bundle_of(config), config.ids, want) < 2e-4  # bound of the project: 1e-3


@pytest.mark.parametrize("config", SOME)
def test_a_float_bundle_writes_the_64_tokens_of_transformers(config: OracleConfig) -> None:
    tokens: list[int] = []
    with Session(Bundle(bundle_of(config)), SETTINGS) as session:
        logits = session.feed(config.ids)
        while len(tokens) < 64:
            tokens.append(int(np.argmax(logits)))
            logits = session.decode(tokens[-1])
    assert tokens == hf_greedy(checkpoint_of(config), config.ids, 64)


def test_caches_have_the_heads_of_their_layers() -> None:
    text = Bundle(bundle_of(CONFIGS[0])).manifest.text
    # Owners: two sliding layers, a full one, and a sliding one; the window of 4 and the largest prefill make a ring.
    assert [cache.shape for cache in text.kv_caches] == [(1, 2, 68, 8), (1, 2, 68, 8), (1, 2, 256, 16), (1, 2, 68, 8)]
    assert check_directory(bundle_of(CONFIGS[0])) == []


def test_a_context_that_window_and_prefill_cover_needs_no_ring_and_keeps_the_window(tmp_path: Path) -> None:
    config = next(config for config in CONFIGS if config.name == "odd_pattern")
    checkpoint = with_tokenizer(checkpoint_of(config))
    wanted = replace(request(checkpoint, tmp_path / "bundle"), context=40, prefill_sizes=(4, 33))
    text = convert(wanted).manifest.text
    assert [cache.window for cache in text.kv_caches] == [None] * len(text.kv_caches)
    assert logit_error(tmp_path / "bundle", config.ids, hf_logits(checkpoint_of(config), config.ids)) < 2e-4


def test_towers_are_left_out_with_a_word_and_refused_where_they_are_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=0, naming="conditional")
    write_tokenizer(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    towers = {"model.vision_tower.patch_embedder.input_proj.weight": np.ones((4, 4), np.float32)}
    save_file({**tensors, **towers}, checkpoint / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        result = convert(request(checkpoint, tmp_path / "bundle"))
    assert "vision left out: such towers of Gemma4ForConditionalGeneration are not supported yet" in caplog.text
    assert set(result.manifest.groups) == {"text", "token_embedding", "per_layer_embedding"}
    with pytest.raises(UsageError, match="vision"):
        convert(replace(request(checkpoint, tmp_path / "other"), groups=("text", "vision")))
    with open_checkpoint(checkpoint, (GEMMA4,)) as opened:
        assert list(opened.tower_faults()) == ["vision"]


def test_there_are_no_smaller_sizes(tmp_path: Path) -> None:
    with open_checkpoint(with_tokenizer(checkpoint_of(CONFIGS[0])), (GEMMA4,)) as checkpoint:
        assert list(checkpoint.slices) == ["full"]
        assert checkpoint.find_slice("Full") == checkpoint.default_slice
        with pytest.raises(SliceError, match="not a MatFormer"):
            checkpoint.find_slice("E2B")
        with pytest.raises(SliceError, match="not a MatFormer"):
            checkpoint.read_slice(tmp_path / "slice.json")
