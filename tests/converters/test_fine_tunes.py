"""A converted fine-tune answers as trained: ten kinds of fine-tune, trained with peft and transformers on the example.

The greedy answers of transformers (with the adapter beside its weights, as trained), of our session and of Google's
engine are the same text.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oracle
import pytest
from litert_lm_engine import open_engine
from paths import EXAMPLE

import gemma_edge

pytestmark = [pytest.mark.reference, pytest.mark.lm, pytest.mark.slow]

NEW_TOKENS = 24
STEPS = 6
LESSONS = (
    "Arr, says the captain, bring me the map and the lantern, or ye shall all walk the plank before the moon is up.",
    "The old parrot knew three words, and he said all of them at once whenever the ship came near to the harbour.",
)
PROMPTS = (
    "Tell me a story about a ship.",
    "Who are you?",
    "What colour is the sea?",
    "Once upon a time there was a king",
    "Why do birds sing?",
    "Name three animals.",
    "Is the moon far away?",
    "The children went into the forest, and",
    "How do I make bread?",
    "What did the captain say?",
    "Write a short poem.",
    "Where does the river end?",
    "Good morning!",
    "Can you count to five?",
    "My dog is called Max.",
    "What is the name of the old man?",
    "I have lost my way.",
    "Describe a castle.",
    "It was a dark night.",
    "What is a friend?",
)
IN_CI = 2


@dataclass(frozen=True)
class FineTune:
    """A trained model in transformers, and how it is converted: its checkpoint, and adapters."""

    model: Any
    checkpoint: Path
    adapters: Sequence[str] = ()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EXAMPLE)


@pytest.fixture(scope="module")
def lessons(tokenizer: Any) -> list[Any]:
    import torch

    return [torch.tensor([tokenizer(text).input_ids]) for text in LESSONS]


def base_model() -> Any:
    return copy.deepcopy(oracle.hf_model(EXAMPLE)).requires_grad_(False)


def train(model: Any, lessons: Sequence[Any], rate: float) -> None:
    import torch

    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=rate)
    model.train()
    for step in range(STEPS):
        ids = lessons[step % len(lessons)]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def adapter(directory: Path, lessons: Sequence[Any], *, rate: float = 5e-3, **settings: Any) -> Any:
    """A trained adapter, saved; returns the model with it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "up_proj"], **settings}
    )
    model = peft.get_peft_model(base_model(), config)
    train(model, lessons, rate)
    model.save_pretrained(directory)
    return model


def whole(tmp_path: Path, model: Any) -> Path:
    """A checkpoint that transformers saved, with the example's other files."""
    folder = tmp_path / "whole"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(EXAMPLE / name, folder / name)
    return folder


def lora(**settings: Any) -> Callable[[Path, Sequence[Any]], FineTune]:
    def make(tmp_path: Path, lessons: Sequence[Any]) -> FineTune:
        model = adapter(tmp_path / "adapter", lessons, **settings)
        return FineTune(model, EXAMPLE, [str(tmp_path / "adapter")])

    return make


def full(tmp_path: Path, lessons: Sequence[Any]) -> FineTune:
    model = base_model().requires_grad_(True)
    train(model, lessons, 3e-4)
    return FineTune(model, whole(tmp_path, model))


def merged_by_peft(tmp_path: Path, lessons: Sequence[Any]) -> FineTune:
    model = adapter(tmp_path / "adapter", lessons)
    checkpoint = whole(tmp_path, copy.deepcopy(model).merge_and_unload())
    return FineTune(model, checkpoint)


def two_adapters(tmp_path: Path, lessons: Sequence[Any]) -> FineTune:
    import peft

    adapter(tmp_path / "one", lessons)
    adapter(tmp_path / "two", lessons[::-1], target_modules=["o_proj", "down_proj"])
    model = peft.PeftModel.from_pretrained(base_model(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    model.base_model.set_adapter(["one", "two"])
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and "two" in module.scaling:
            module.scale_layer(0.5)
    return FineTune(model.eval(), EXAMPLE, [str(tmp_path / "one"), f"{tmp_path / 'two'}=0.5"])


KINDS: dict[str, Callable[[Path, Sequence[Any]], FineTune]] = {
    "full": full,
    "merged-by-peft": merged_by_peft,
    "lora": lora(),
    "rslora-patterns": lora(use_rslora=True, rank_pattern={"up_proj": 4}, alpha_pattern={"q_proj": 5}),
    "dora": lora(use_dora=True),
    "all-linear": lora(target_modules="all-linear", rate=3e-3),
    "modules-to-save": lora(modules_to_save=["input_layernorm", "per_layer_projection"]),
    "trained-tokens": lora(trainable_token_indices=[5, 9, 200, 1000, 2000]),
    "tied-embedding": lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True, rate=1e-2),
    "two-adapters": two_adapters,
}


def transformers_answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    import torch

    answers = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor([ids]),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=[1, 5],
                pad_token_id=0,
            )
        answers.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
    return answers


@pytest.fixture(scope="module")
def before(tokenizer: Any) -> Iterator[list[str]]:
    """What the example says without any fine-tune."""
    yield transformers_answers(oracle.hf_model(EXAMPLE), tokenizer, PROMPTS[:IN_CI])


def compare(kind: str, tmp_path: Path, tokenizer: Any, lessons: Sequence[Any], prompts: Sequence[str]) -> list[str]:
    """The answers, which are the same everywhere."""
    tuned = KINDS[kind](tmp_path, lessons)
    expected = transformers_answers(tuned.model, tokenizer, prompts)
    bundle, export = tmp_path / "bundle", tmp_path / "bundle.litertlm"
    gemma_edge.convert(
        tuned.checkpoint, bundle, adapters=tuned.adapters, quant="f32", groups=["text"], context=128,
        prefill_sizes=[16], verify=False,
    )  # fmt: skip
    with gemma_edge.load(bundle) as model:
        ours = [model.generate(prompt, max_tokens=NEW_TOKENS, temperature=0).text for prompt in prompts]
    assert ours == expected
    gemma_edge.export(bundle, export)
    with open_engine(export) as engine:
        assert [engine.chat(prompt, NEW_TOKENS) for prompt in prompts] == expected
    return expected


@pytest.mark.parametrize("kind", ["full", "lora", "dora", "trained-tokens", "tied-embedding"])
def test_the_phone_says_what_was_trained(
    tmp_path: Path, kind: str, tokenizer: Any, lessons: list[Any], before: list[str]
) -> None:
    assert compare(kind, tmp_path, tokenizer, lessons, PROMPTS[:IN_CI]) != before


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_the_phone_says_what_was_trained_to_twenty_prompts(
    tmp_path: Path, kind: str, tokenizer: Any, lessons: list[Any]
) -> None:
    answers = compare(kind, tmp_path, tokenizer, lessons, PROMPTS)
    assert len(set(answers)) > len(answers) // 2
