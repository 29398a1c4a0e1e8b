"""The NumPy reference of Gemma 4 against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gemma4_oracle import CONFIGS, QUICK, checkpoint_of, hf_greedy, hf_logits, make_checkpoint
from oracle_models import OracleConfig

from converters.gemma4.checkpoint import Gemma4Tensors
from converters.gemma4.reference import forward
from converters.huggingface.configs import read_configs

pytestmark = pytest.mark.reference


def reference(directory: Path, ids: list[int]) -> np.ndarray:
    with Gemma4Tensors(read_configs(directory)) as checkpoint:
        return forward(checkpoint, [np.array(ids, np.int32)])[0]


SOME = [pytest.param(c, marks=[] if c.name in QUICK else pytest.mark.full, id=c.name) for c in CONFIGS]


@pytest.mark.parametrize("config", SOME)
def test_logits_and_greedy_tokens_agree_with_transformers(config: OracleConfig) -> None:
    directory = checkpoint_of(config)
    greedy = hf_greedy(directory, config.ids, 64)
    ids = [*config.ids, *greedy]
    found, wanted = reference(directory, ids), hf_logits(directory, ids)
    # Bound of the project: 1e-3.
    assert np.abs(found - wanted).max() < 2e-4
    # As every prefix agrees, so do the tokens that the reference would choose one after the other.
    assert found[len(config.ids) - 1 : -1].argmax(-1).tolist() == greedy


def test_published_prefixes_and_unused_keys_and_values_change_nothing(tmp_path: Path) -> None:
    ids = list(CONFIGS[0].ids)
    plain = make_checkpoint(tmp_path / "plain", seed=3)
    published = make_checkpoint(tmp_path / "published", seed=3, naming="conditional", unused_kv=True, shards=3)
    np.testing.assert_array_equal(reference(plain, ids), reference(published, ids))
