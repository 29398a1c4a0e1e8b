"""Chat templates in Google's engine: exported, they give the prompts of transformers, or the export says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from litert_lm_engine import open_engine
from paths import EXAMPLE

from converters.convert import ConvertRequest, convert
from toolkit.base.errors import BundleError
from toolkit.bundle.chat import ChatTemplate, Message
from toolkit.check import check
from toolkit.litertlm import export
from toolkit.litertlm.chat_template import engine_template, template_fault

LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
GEMMA = (EXAMPLE / "chat_template.jinja").read_text()

MENDED = {
    "a trimmed text": LOOP + "<{{ m['role'] }}>{{ m['content'] | trim }}" + END,
    "a sum": LOOP + "{{ '<' + m.role + '>' + m.content + '\n' }}" + END,
    "strip": LOOP + "{{ m.content.strip() }}|" + END,
    "upper": LOOP + "{{ m.content | upper }}" + END,
    "tilde and a slice": LOOP + "{{ m.content[1:] ~ '|' }}" + END,
    "replace": LOOP + "{{ m.content.replace('a', 'b') }}" + END,
    "a test of strings": LOOP + "{% if m.content is string %}{{ m.content }}{% endif %}" + END,
    "a system message set apart": "{% if messages[0].role == 'system' %}{{ messages[0].content ~ '\n' }}"
    "{% set messages = messages[1:] %}{% endif %}" + LOOP + "{{ m.role + m.content }}" + END,
    "begins with a line": "\n  {% if true %}\nx{% endif %}" + LOOP + "{{ m.content + '' }}" + END,
    "ends with a line": LOOP + "{{ m.content + '' }}" + END + "\n",
    "generation": LOOP + "{% generation %}{{ m.content + '' }}{% endgeneration %}" + END,
}
REFUSED = {
    "get": (LOOP + "{{ m.get('content') }}" + END, r"does not know \.get\(\)"),
    "upper as a method": (LOOP + "{{ m.content.upper() }}" + END, r"\.upper\(\)"),
    "strip of some characters": (LOOP + "{{ m.content.strip('a') }}" + END, r"\.strip\(\) with 1"),
    "break": (LOOP + "{{ m.content }}{% break %}" + END, "break"),
    "continue": (LOOP + "{% if not m.content %}{% continue %}{% endif %}x" + END, "continue"),
    "a filter": (LOOP + "{{ m.content | wordcount }}" + END, "wordcount"),
    "Python's None": (LOOP + "{{ m.nothing is none }}" + END, "found 'false.*wanted 'False"),
    "options of tojson": (LOOP + "{{ m.content | tojson(indent=1) }}" + END, "indent"),
}
BOTH = {
    "Gemma's own": GEMMA,
    "without content": "{{ bos_token }}x" + END.replace("{% endfor %}", ""),
}


def test_a_template_that_reads_parts_is_left_as_it_is() -> None:
    for source in BOTH.values():
        assert engine_template(source, bos_token="<bos>") == source


@pytest.mark.parametrize("name", MENDED)
def test_a_template_that_wants_texts_gets_them(name: str) -> None:
    source = MENDED[name]
    assert template_fault(source, source, bos_token="<bos>") is not None
    exported = engine_template(source, bos_token="<bos>")
    assert template_fault(source, exported, bos_token="<bos>") is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_does_not_know_is_refused_by_name(name: str) -> None:
    source, says = REFUSED[name]
    with pytest.raises(BundleError, match=f"chat template in LiteRT-LM: .*{says}"):
        engine_template(source, bos_token="<bos>")


def test_a_method_that_no_conversation_reaches_does_no_harm() -> None:
    source = GEMMA + "{% if tools %}{{ tools[0].get('name') }}{% endif %}"
    assert engine_template(source, bos_token="<bos>") == source


def test_check_finds_a_template_that_the_engine_renders_otherwise(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.litertlm"
    export.export_litertlm(bundle, path)
    assert check(path) == []
    monkeypatch.setattr(export, "engine_template", lambda source, bos_token: MENDED["a sum"])
    export.export_litertlm(bundle, path)
    assert [fault.fault for fault in check(path)] == ["section LlmMetadataProto jinja_prompt_template"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "bundle"
    request = ConvertRequest(
        EXAMPLE, path, groups=("text",), sizes=("small",), context=512, prefill_sizes=(8, 64)
    )  # fmt: skip
    convert(request, gate=None)
    return path


def rendered(bundle: Path, template: str, monkeypatch: pytest.MonkeyPatch, system: str | None) -> str:
    """What Google's engine makes of a template."""
    monkeypatch.setattr(export, "_chat_template", lambda parts: template)
    monkeypatch.setattr(export, "engine_template", lambda source, bos_token: source)
    path = bundle.parent / "x.litertlm"
    export.export_litertlm(bundle, path)
    messages = None if system is None else [{"role": "system", "content": system}]
    with open_engine(path) as engine, engine.engine.create_conversation(messages=messages) as conversation:
        text: Any = conversation.render_message_to_string({"role": "user", "content": "a Banana\n"})
    return str(text)


@pytest.mark.lm
@pytest.mark.parametrize("system", [None, "be kind"])
@pytest.mark.parametrize("name", [*MENDED, *BOTH])
def test_an_exported_template_gives_the_engine_the_prompt_of_transformers(
    bundle: Path, name: str, system: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (MENDED | BOTH)[name]
    messages = [Message("user", "a Banana\n")]
    if system is not None:
        messages.insert(0, Message("system", system))
    wanted = ChatTemplate(source, bos_token="").render(messages)
    assert rendered(bundle, engine_template(source, bos_token=""), monkeypatch, system) == wanted


@pytest.mark.lm
@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_does_fail_at_what_is_refused(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = REFUSED[name][0]
    wanted = ChatTemplate(source, bos_token="").render([Message("user", "a Banana\n")])
    assert rendered(bundle, source, monkeypatch, None) != wanted
