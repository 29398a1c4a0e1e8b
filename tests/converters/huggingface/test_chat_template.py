"""Templates and tokenizers as fine-tunes have them: our session's prompts are those of transformers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import EXAMPLE

from converters.huggingface.configs import read_configs
from converters.huggingface.prompt_files import read_prompt_files
from toolkit.base.errors import CheckpointError
from toolkit.bundle.chat import ChatTemplate, Message
from toolkit.bundle.tokenizer import Tokenizer

VOCABULARY, BOS = 4096, 2

CONVERSATIONS = [
    [Message("user", "the cat")],
    [Message("user", " a "), Message("assistant", "b"), Message("user", "c\n")],
    [Message("system", "be kind"), Message("user", "día")],
    [Message("user", "")],
]

LOOP = "{% for m in messages %}"
CHATML = (
    LOOP + "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
TEMPLATES = {
    "eos": "{{ bos_token }}" + LOOP + "{{ m.content }}{{ eos_token }}{% endfor %}",
    "pad and unk": "{{ pad_token }}{{ unk_token }}{{ bos_token }}" + LOOP + "{{ m.content }}{% endfor %}",
    "undefined": "{{ sep_token }}{% if cls_token is defined %}x{% endif %}" + LOOP + "{{ m.content }}{% endfor %}",
    "tools": "{% if tools is not none %}TOOLS{% endif %}{% if documents is not none %}D{% endif %}" + CHATML,
    "generation": LOOP + "{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}",
    "generation scope": "{% set a = 'x' %}{%- generation -%}{% set a = 'y' %}{{ a }}{%- endgeneration -%} {{ a }}",
    "break": LOOP + "{{ m.content }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}",
    "date": "{{ strftime_now('%Y')[:2] }}" + CHATML,
    "json": LOOP + "{{ m | tojson(indent=1, sort_keys=true) }}{% endfor %}",
    "methods": LOOP + "{{ m.get('content').strip().upper() }}{% endfor %}",
    "begins with a newline": "\n{{ eos_token }}\n" + CHATML,
    "begins with a tag and spaces": "  {% if true %}\n{{ eos_token }}{% endif %}" + CHATML,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The tokenizer of the example, without a template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EXAMPLE / name, tmp_path / name)
    return tmp_path


def prompts(directory: Path) -> list[list[int]]:
    """Our session's ids."""
    files = read_prompt_files(directory, VOCABULARY, BOS)
    bundle = directory / "bundle"
    bundle.mkdir()
    files.copy_to(bundle)
    assert files.template is not None
    template, tokenizer = ChatTemplate(files.template), Tokenizer(bundle / "tokenizer.json")
    return [tokenizer.encode(template.render(messages), special=False) for messages in CONVERSATIONS]


def expected(directory: Path) -> list[list[int]]:
    """The ids of transformers."""
    transformers: Any = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    return [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True, return_dict=False
        )
        for messages in CONVERSATIONS
    ]


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.reference
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_with_the_variables_of_transformers(checkpoint: Path, name: str) -> None:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES[name])
    assert prompts(checkpoint) == expected(checkpoint)


@pytest.mark.reference
def test_another_beginning_token_than_the_models_is_written_as_transformers_writes_it(checkpoint: Path) -> None:
    change_json(checkpoint / "tokenizer_config.json", lambda value: value.update(bos_token="<eos>"))
    (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
    found = prompts(checkpoint)
    assert found == expected(checkpoint)
    assert found[0][0] == 1


@pytest.mark.reference
@pytest.mark.parametrize("form", ["list", "object"])
def test_of_named_templates_the_default_one_is_taken(checkpoint: Path, form: str) -> None:
    named = {"tool_use": "T", "default": CHATML}
    stated = [{"name": n, "template": t} for n, t in named.items()] if form == "list" else named
    change_json(checkpoint / "tokenizer_config.json", lambda value: value.update(chat_template=stated))
    assert prompts(checkpoint) == expected(checkpoint)


def test_an_object_of_templates_in_chat_template_json_is_read(checkpoint: Path) -> None:
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": {"default": CHATML}}))
    assert read_prompt_files(checkpoint, VOCABULARY, BOS).template == CHATML


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}], "templates called rag, tool_use"),
        ({"rag": "x"}, "wanted one called default"),
        ([{"name": "rag"}], "a text, or texts with their names"),
        ([{"name": [], "template": "x"}], "a text, or texts with their names"),
        ([{"name": {"a": 1}, "template": "x"}], "a text, or texts with their names"),
        (5, "a text, or texts with their names"),
        (" \n", "an empty template"),
    ],
)
def test_templates_that_transformers_could_not_choose_from_are_refused(
    checkpoint: Path, stated: object, says: str
) -> None:
    change_json(checkpoint / "tokenizer_config.json", lambda value: value.update(chat_template=stated))
    with pytest.raises(CheckpointError, match=says):
        read_prompt_files(checkpoint, VOCABULARY, BOS)


def test_a_checkpoint_without_a_template_gets_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_prompt_files(checkpoint, VOCABULARY, BOS).template is None
    assert "has no chat template" in caplog.text


@pytest.mark.reference
@pytest.mark.parametrize(
    "saved",
    [
        {"truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 65}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "<pad>",
            }
        },
    ],
    ids=["truncation", "padding"],
)  # fmt: skip
def test_truncation_and_padding_that_a_trainer_saved_change_no_prompt(
    checkpoint: Path, saved: dict[str, object]
) -> None:
    (checkpoint / "chat_template.jinja").write_text(CHATML)
    change_json(checkpoint / "tokenizer.json", lambda value: value.update(saved))
    trained = checkpoint / "tokenizer.json"
    assert Tokenizer(trained).encode("the cat and the dog sat there", special=False) == Tokenizer(
        EXAMPLE / "tokenizer.json"
    ).encode("the cat and the dog sat there", special=False)
    assert prompts(checkpoint) == expected(checkpoint)
    written = json.loads((checkpoint / "bundle" / "tokenizer.json").read_text())
    assert written["truncation"] is None and written["padding"] is None


def test_a_tokenizer_without_either_keeps_its_bytes(checkpoint: Path) -> None:
    files = read_prompt_files(checkpoint, VOCABULARY, BOS)
    assert files.tokenizer == (EXAMPLE / "tokenizer.json").read_bytes()


def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n")
    with pytest.raises(CheckpointError, match="AutoTokenizer"):
        read_prompt_files(tmp_path, VOCABULARY, BOS)


def test_an_adapter_beside_full_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: a LoRA adapter beside the weights"):
        read_configs(tmp_path)


def change_two(path: Path, config: dict[str, object], normalizer: dict[str, str]) -> None:
    change_json(path / "tokenizer_config.json", lambda value: value.update(config))
    change_json(path / "tokenizer.json", lambda value: value.update(normalizer=normalizer))


GEMMA_CLASS: dict[str, object] = {"tokenizer_class": "GemmaTokenizer", "extra_special_tokens": {}}
TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "a named token that tokenizer.json lacks": lambda path: change_json(
        path / "tokenizer_config.json", lambda value: value.update(eos_token="<|im_end|>")
    ),
    "an added token of tokenizer_config.json": lambda path: change_json(
        path / "tokenizer_config.json",
        lambda value: value.update(
            added_tokens_decoder={"3328": {"content": "the c", "special": False, "normalized": False}}
        ),
    ),
    "other flags than in tokenizer.json": lambda path: change_json(
        path / "tokenizer_config.json",
        lambda value: value.update(
            added_tokens_decoder={"5": {"content": "<end_of_turn>", "rstrip": True, "lstrip": True, "special": True}}
        ),
    ),
    "a list of special tokens": lambda path: change_json(
        path / "tokenizer_config.json", lambda value: value.update(additional_special_tokens=["be kind"])
    ),
    "Gemma's class and another normalizer": lambda path: change_two(path, GEMMA_CLASS, {"type": "Lowercase"}),
    "Gemma's class": lambda path: change_json(
        path / "tokenizer_config.json", lambda value: value.update(GEMMA_CLASS)
    ),
}  # fmt: skip


def as_transformers(directory: Path) -> list[list[int]]:
    """The ids of transformers with the class that it chooses itself."""
    transformers: Any = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True, return_dict=False
        )
        for messages in CONVERSATIONS
    ]


@pytest.mark.reference
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_the_one_that_transformers_makes_of_all_files(checkpoint: Path, name: str) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ eos_token }}" + CHATML)
    TOKENIZERS[name](checkpoint)
    found = prompts(checkpoint)
    assert found == as_transformers(checkpoint)
    kept = (checkpoint / "bundle" / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
    assert kept == (name == "Gemma's class")
