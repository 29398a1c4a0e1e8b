"""Chat templates: Gemma's own, roles, and what a broken or hostile template does."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.base.errors import BundleError, UsageError
from toolkit.bundle.chat import ChatTemplate, Message

# Gemma's form as facts about the prompt: <bos>, turns, "model" for the assistant, system text before the first turn.
TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""

USER, ASSISTANT = Message("user", " Hello. "), Message("assistant", "Hi!")


def test_a_turn_is_written_as_gemma_was_trained_on() -> None:
    text = ChatTemplate(TEMPLATE).render([USER])
    assert text == "<bos><start_of_turn>user\nHello.<end_of_turn>\n<start_of_turn>model\n"


def test_a_longer_conversation_begins_with_the_shorter_one() -> None:
    template = ChatTemplate(TEMPLATE)
    longer = template.render([USER, ASSISTANT, Message("user", "More")])
    assert longer.startswith(template.render([USER]) + "Hi!<end_of_turn>\n")


def test_system_text_stands_before_the_first_turn() -> None:
    text = ChatTemplate(TEMPLATE).render([Message("system", "Be brief."), USER], generation_prompt=False)
    assert text == "<bos><start_of_turn>user\nBe brief.\n\nHello.<end_of_turn>\n"


@pytest.mark.parametrize("messages", [[], [ASSISTANT], [USER, USER], [USER, Message("system", "late")]])
def test_roles_that_do_not_alternate_are_refused(messages: list[Message]) -> None:
    with pytest.raises(UsageError, match="conversation"):
        ChatTemplate(TEMPLATE).render(messages)


def test_the_templates_own_objection_reaches_the_user() -> None:
    with pytest.raises(UsageError, match="no jokes"):
        ChatTemplate("{{ raise_exception('no jokes') }}").render([USER])


def test_json_is_not_escaped_for_html() -> None:
    assert ChatTemplate("{{ messages[0].content | tojson }}").render([Message("user", "<é>")]) == '"<é>"'


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(UsageError, match=r"unsafe|undefined"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render([USER])


def test_a_template_that_fails_is_an_error_that_names_it() -> None:
    with pytest.raises(UsageError, match="chat template"):
        ChatTemplate("{{ messages[0].content + 1 }}").render([USER])


def test_a_template_that_does_not_parse_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_text("{% if %}")
    with pytest.raises(BundleError, match=r"chat_template\.jinja"):
        ChatTemplate.open(path).compile()


def test_a_missing_template_names_the_way_without(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="--raw"):
        ChatTemplate.open(tmp_path / "chat_template.jinja")
