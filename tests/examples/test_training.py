"""What trains the tiny Gemma 4: the forward pass is transformers', the chats are the chat template's."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY

SCRIPTS = [REPOSITORY / "examples" / name for name in ("tiny_gemma4", "tiny_gemma3n")]
pytestmark = pytest.mark.reference


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts can be imported by their bare names, as they import each other."""
    for folder in reversed(SCRIPTS):
        monkeypatch.syspath_prepend(folder)
    yield


@pytest.fixture
def first_weights() -> Any:
    """The weights that training begins with, every one of them disturbed: a layer_scalar of one would hide an error."""
    torch, train4 = importlib.import_module("torch"), importlib.import_module("train4")
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) * tensor.abs().mean()
        for name, tensor in train4.first_weights(SCRIPTS[1], 1).items()
    }


@pytest.mark.slow
def test_the_logits_in_training_are_those_of_transformers(first_weights: Any, tmp_path: Path) -> None:
    train4 = importlib.import_module("train4")
    train4.export(tmp_path, first_weights)
    assert train4.difference_from_transformers(tmp_path) < 3e-5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Gemma4ForCausalLM"]
    assert config["use_double_wide_mlp"] and config["num_kv_shared_layers"] == 4
    assert {part["head_dim"] for part in config["per_layer_config"].values()} == {128}


def test_wide_heads_attend_as_the_narrow_ones_that_they_came_from() -> None:
    """But for the slow frequencies, at positions where these have hardly turned: at the first ones."""
    torch, model, model4 = (importlib.import_module(name) for name in ("torch", "model", "model4"))
    carry_over = importlib.import_module("carry_over")
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(2, 1, 4, 64, generator=generator)
    wide = torch.zeros(2, 1, 4, 128)
    wide[..., carry_over.wide_places()] = narrow
    scores = [
        model.rotate(pair, *table)
        for pair, table in (
            (narrow, model.rope_table(4, 1e6, narrow.device)),
            (wide, model4.rope_table(4, "full_attention", narrow.device)),
        )
    ]
    narrow_scores, wide_scores = (pair[0] @ pair[1].mT for pair in scores)
    assert (narrow_scores - wide_scores).abs().max() < 0.05 * narrow_scores.abs().max()
    weight = torch.rand(64, generator=generator)
    normed = model.rms(narrow, weight)
    widened = model.rms(wide, carry_over.widen_norm(weight))
    assert torch.allclose(widened[..., carry_over.wide_places()], normed, atol=1e-4)


def test_chats_are_what_the_template_makes_of_them() -> None:
    chats4 = importlib.import_module("chats4")
    chats = chats4.Chats(random.Random(0), ["boat (noun): a small vessel. “He rowed a boat”."])
    drawn = [chats.draw() for _ in range(60)]
    thoughtful = [sample for sample in drawn if 0.0 in sample.shares]
    assert 15 < len(thoughtful) < 45
    think, opening, closing = (chats.tokenizer.convert_tokens_to_ids(t) for t in ("<|think|>", "<|channel>", "<turn|>"))
    for sample in drawn:
        learned = [id_ for id_, share in zip(sample.ids, sample.shares, strict=True) if share]
        asks, thinks = think in sample.ids, opening in learned
        assert asks == thinks == (sample in thoughtful)
        assert sample.ids.count(opening) == learned.count(opening) == int(thinks)
        assert not thinks or learned.count(closing) == 1
        assert "Gemma 3n" not in chats.tokenizer.decode(sample.ids)


def test_the_tokenizer_has_the_entries_of_gemma_3n_and_the_control_tokens_of_gemma_4() -> None:
    tokenizer4 = importlib.import_module("tokenizer4")
    ours, theirs = (json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) for folder in SCRIPTS)
    assert ours == tokenizer4.build()
    vocabulary = ours["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(3080))
    changed = {token for token, id_ in vocabulary.items() if theirs["model"]["vocab"].get(token) != id_}
    assert changed == {token["content"] for token in ours["added_tokens"][4:]}


def test_a_worker_trains_weights_of_its_own(tmp_path: Path) -> None:
    """Tensors that a process is started with lie in memory that all workers share."""
    torch, trainer = importlib.import_module("torch"), importlib.import_module("trainer")
    given = {"model.norm.weight": torch.ones(4), "model.embed_tokens.weight": torch.ones(3, 4)}
    for tensor in given.values():
        tensor.share_memory_()
    state = trainer.State(tmp_path / "on.pt", given)
    state.gradients.fill_(1.0)
    state.optimizer.step(1.0)
    assert all((tensor == 1.0).all() for tensor in given.values())
    assert all((tensor != 1.0).all() for tensor in state.weights.values())


def test_a_step_of_the_last_part_changes_what_the_next_smaller_size_has_not() -> None:
    torch, train_on, model = (importlib.import_module(name) for name in ("torch", "train_on", "model"))
    large, smaller = model.SIZES[-1], model.SIZES[-2]
    before = {
        "model.embed_tokens.weight": torch.zeros(8, 4),
        "model.layers.3.self_attn.q_proj.weight": torch.zeros(4, 4),
        **{f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(512, 4) for i in large.layers},
        **{f"model.layers.{i}.mlp.down_proj.weight": torch.zeros(4, 512) for i in large.layers},
    }
    weights = {name: tensor + 1 for name, tensor in before.items()}
    train_on.restore_all_but(weights, before, large)
    for name, tensor in weights.items():
        expected = torch.zeros_like(tensor)
        if "mlp" in name:
            width = smaller.ffn_sizes[smaller.layers.index(int(name.split(".")[2]))]
            (expected if "up_proj" in name else expected.T)[width:] = 1
        assert torch.equal(tensor, expected), name


def test_texts_are_made_once_though_two_ask_at_the_same_time(tmp_path: Path) -> None:
    data, made = importlib.import_module("data"), list[int]()

    def make() -> list[int]:
        made.append(1)
        return made

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: data.cached(tmp_path / "texts.json", make), range(8)))
    assert texts == ["[1]"] * 8 and len(made) == 1


def test_a_held_out_word_has_no_meaning_that_training_has() -> None:
    prose = importlib.import_module("prose")
    words = [prose.Document("wordnet", f"word{i}", "x (noun): a small boat. “He rowed.”.") for i in range(200)]
    own = "y (noun): a tall tree."
    held_out = next(word for word in words if word.held_out)
    words.append(prose.Document("wordnet", held_out.key, f"{held_out.text}\n{own}"))
    left = [d for d in prose.without_trained_meanings(words) if d.held_out]
    assert [d.text for d in left] == [own]


def test_a_run_that_goes_on_from_before_its_last_point_draws_no_point_twice(tmp_path: Path) -> None:
    torch, trainer = importlib.import_module("torch"), importlib.import_module("trainer")
    state = trainer.State(tmp_path / "on.pt", {"model.norm.weight": torch.ones(4)})
    for step in (0, 100, 200, 150, 250):
        state.step = step
        trainer.add_to_curve(tmp_path, state, {"prose": 1.0})
    points = [json.loads(line)["step"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert points == [0, 100, 150, 250]
