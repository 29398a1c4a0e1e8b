from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import CONFIGS, PREFIXES, Naming, checkpoint_of, hf_greedy, hf_logits, make_checkpoint
from oracle_models import OracleConfig

pytestmark = pytest.mark.reference


def test_every_parameter_is_random() -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    tensors = load_file(checkpoint_of(CONFIGS[0]) / "model.safetensors")
    assert len(tensors) > 100
    for name, tensor in tensors.items():
        assert tensor.std() > 0.02, name
    assert tensors["model.embed_tokens.weight"][0].std() > 0.02
    assert tensors["model.embed_tokens_per_layer.weight"][0].std() > 0.02


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_logits_are_sane_and_the_greedy_path_is_safe_from_rounding(config: OracleConfig) -> None:
    directory = checkpoint_of(config)
    assert 2 < hf_logits(directory, config.ids).std() < 4
    greedy = hf_greedy(directory, config.ids, 64)
    logits = hf_logits(directory, [*config.ids, *greedy])[len(config.ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == greedy
    ordered = np.sort(logits, axis=-1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 0.008
    assert len(set(greedy)) >= 5


@pytest.mark.parametrize("naming", PREFIXES)
def test_naming_shards_and_unused_tensors_do_not_change_the_logits(tmp_path: Path, naming: Naming) -> None:
    ids = [2, 7, 299, 255]
    plain = make_checkpoint(tmp_path / "plain", seed=3)
    other = make_checkpoint(tmp_path / "other", seed=3, naming=naming, shards=3, unused_kv=True)
    np.testing.assert_array_equal(hf_logits(other, ids), hf_logits(plain, ids))


def test_loading_agrees_with_from_pretrained() -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = checkpoint_of(CONFIGS[0])
    model = transformers.Gemma3nForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits = model(torch.tensor([CONFIGS[0].ids])).logits[0].numpy()
    np.testing.assert_allclose(hf_logits(directory, CONFIGS[0].ids), logits, atol=1e-6)
