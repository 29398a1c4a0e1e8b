"""A context of 32,768 against transformers: every bucket on the way, rings that turn hundreds of times."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import oracle
import pytest
from checkpoints import write_tokenizer
from numpy.typing import NDArray
from oracle_models import OracleConfig

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import Session, SessionSettings

CONTEXT = 32_768
CUTS = (400, 1_500, 5_000, 12_000, 20_000)
"""Within each bucket, and beyond the last of them."""
CHUNK = 500
CONFIG = OracleConfig(
    "long",
    {
        "num_hidden_layers": 5,
        "layer_types": [oracle.S, oracle.S, oracle.F, oracle.S, oracle.F],
        "intermediate_size": [96] * 5,
        "activation_sparsity_pattern": [0.95, 0.8, 0.0, 0.0, 0.0],
        "num_kv_shared_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 64,
        "max_position_embeddings": CONTEXT,
    },
    (2,),
    seed=17,
)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    directory = tmp_path_factory.mktemp("long")
    checkpoint = directory / "checkpoint"
    shutil.copytree(oracle.checkpoint_of(CONFIG), checkpoint)
    write_tokenizer(checkpoint)
    convert(ConvertRequest(checkpoint, directory / "bundle", {"text": "f32"}, context=CONTEXT), gate=None)
    with Session(Bundle(directory / "bundle"), SessionSettings(weight_cache="memory")) as opened_session:
        yield opened_session


def walk(length: int) -> list[int]:
    """A random walk over the vocabulary: neighbours are alike, as in text, and nothing repeats for long."""
    steps = np.random.default_rng(20).integers(-9, 10, length)
    return [2, *(np.cumsum(steps) % 256).tolist()][:length]


class Oracle:
    """transformers over its own cache, some tokens at a time: one pass would take their square in memory."""

    def __init__(self) -> None:
        self._model = oracle.hf_model(oracle.checkpoint_of(CONFIG))
        self._cache = None

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits of what follows them."""
        import torch

        with torch.no_grad():
            for start in range(0, len(ids), CHUNK):
                part = torch.tensor([list(ids[start : start + CHUNK])])
                out = self._model(part, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
                self._cache = out.past_key_values
        logits: NDArray[np.float32] = out.logits[0, -1].numpy()
        return logits


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.reference
def test_a_prompt_of_20000_tokens_gives_the_logits_and_tokens_of_transformers(session: Session) -> None:
    ids, transformers = walk(CUTS[-1]), Oracle()
    whole = oracle.hf_logits(oracle.checkpoint_of(CONFIG), ids[: CUTS[1]])
    for start, end in zip((0, *CUTS), CUTS, strict=False):
        want, logits = transformers.feed(ids[start:end]), session.feed(ids[start:end])
        if end <= len(whole):
            assert np.abs(want - whole[end - 1]).max() < 1e-4, "the oracle's own cache"
        assert np.abs(logits - want).max() < 1e-3, end
    for _ in range(16):
        token = int(np.argmax(want))
        assert int(np.argmax(logits)) == token
        want, logits = transformers.feed([token]), session.decode(token)
