"""Chat templates in Google's engine: exported, they give the prompts of transformers, or the export says why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from litert_lm_engine import LmEngine, open_engine
from paths import EXAMPLE

from converters.convert import convert
from converters.request import ConvertRequest
from toolkit.base.errors import BundleError, ToolkitError, UsageError
from toolkit.bundle.chat import ChatTemplate
from toolkit.bundle.conversations import TEXTS, Conversation, Turn
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.check import check
from toolkit.litertlm import export_sections
from toolkit.litertlm.chat_template import EnginePrompts, ExportedTemplate, engine_template, template_fault
from toolkit.litertlm.engine_template import EngineTemplate
from toolkit.litertlm.export import export_litertlm

LOOP = "{% for m in messages %}"
END = "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
GEMMA = (EXAMPLE / "chat_template.jinja").read_text()

MENDED = {
    "a trimmed text": LOOP + "<{{ m['role'] }}>{{ m['content'] | trim }}" + END,
    "a sum": LOOP + "{{ '<' + m.role + '>' + m.content + '\n' }}" + END,
    "strip": LOOP + "{{ m.content.strip() }}|" + END,
    "strip of some characters": LOOP + "{{ m.content.strip('a') }}" + END,
    "its own start token": "<bos>" + LOOP + "{{ m.role }}{% for p in m.content %}{{ p.text }}{% endfor %}" + END,
    "its own start token before texts": "<bos>" + LOOP + "{{ m.role + m.content }}" + END,
    "generation with spaces cut": LOOP + "{%- generation -%} {{ m.content + '' }} {%- endgeneration -%}" + END,
    "generation on its own lines": LOOP + "\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n" + END,
    "upper": LOOP + "{{ m.content | upper }}" + END,
    "tilde and a slice": LOOP + "{{ m.content[1:] ~ '|' }}" + END,
    "replace": LOOP + "{{ m.content.replace('a', 'b') }}" + END,
    "a test of strings": LOOP + "{% if m.content is string %}{{ m.content }}{% endif %}" + END,
    "a system message set apart": "{% if messages[0].role == 'system' %}{{ messages[0].content ~ '\n' }}"
    "{% set messages = messages[1:] %}{% endif %}" + LOOP + "{{ m.role + m.content }}" + END,
    "begins with a line": "\n  {% if true %}\nx{% endif %}" + LOOP + "{{ m.content + '' }}" + END,
    "ends with a line": LOOP + "{{ m.content + '' }}" + END + "\n",
    "get": LOOP + "{{ m.get('content') + (m.get('reasoning') or m.get('x', {}).get('y', '-')) }}" + END,
    "upper as a method": LOOP + "{{ m.content.upper()[:3] + m.role.lower() }}" + END,
    "generation": LOOP + "{% generation %}{{ m.content + '' }}{% endgeneration %}" + END,
}
REFUSED = {
    "keys": (LOOP + "{{ m.keys() | join }}" + END, r"has no method \.keys\(\)"),
    "replace, once": (LOOP + "{{ m.content.replace('a', 'b', 1) }}" + END, r"\.replace\(\) with 3"),
    "none in a value": (LOOP + "{{ {'a': none}.a is none }}" + END, "found 'false.*wanted 'True"),
    "break": (LOOP + "{{ m.content }}{% break %}" + END, "break"),
    "continue": (LOOP + "{% if not m.content %}{% continue %}{% endif %}x" + END, "continue"),
    "a filter": (LOOP + "{{ m.content | wordcount }}" + END, "wordcount"),
    "Python's None": (LOOP + "{{ m.nothing is none }}" + END, "found 'true.*wanted 'False"),
    "a list": (LOOP + "{{ [m.role] }}" + END, """found '\\["user.*wanted "\\['user"""),
    "options of tojson": (LOOP + "{{ m.content | tojson(indent=1) }}" + END, "indent"),
}
BOTH = {
    "Gemma's own": GEMMA,
    "without content": "{{ bos_token }}x" + END.replace("{% endfor %}", ""),
}
NO_BOS = GEMMA.replace("{{- bos_token -}}\n", "")
# Whatever the engine does with these, EngineTemplate does too.
EXPRESSIONS = [
    "{{ 1.0 }} {{ 3/2 }} {{ 7//2 }} {{ -7 % 3 }} {{ 2**10 }} {{ 'a' * 3 }} {{ [1, 2] | join(',') }} {{ 0.1 + 0.2 }}",
    "{{ [true, none, 'a', \"b'c\"] }} {{ {'b': 1, 'a': 2} }} {{ true ~ 'x' ~ none }} {{ 1 is integer }}",
    "{{ 'é<&' | tojson }} {{ {'b': [1, {'c': 2}], 'a': true} | tojson }} {{ messages | tojson }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ undefined_one }}|{{ undefined_one ~ 'x' }}|{{ undefined_one is none }}",
    "{{ none is none }}|{{ [none][0] is none }}|{{ [none][0] is not none }}",
    "{{ undefined_one.x }}",
    "{{ messages[5] }}|{{ messages[0].x }}|{{ messages[-1].role }}|{{ messages[0]['content'] | trim }}",
    "{{ messages[0].content + 'x' }}",
    "{{ messages[0].content ~ 'x' }}|{{ messages[0].content is string }}|{{ 'role' in messages[0] }}",
    "{{ messages[0].get('role') }}",
    "{{ {'a': 1}.keys() }}",
    "{{ 'a'.upper() }}",
    "{{ 'aXb'.split('X')[0] }}{{ ' a '.strip() }}{{ 'abanana'.strip('a') }}",
    "{{ 'xa'.lstrip('x') }}{{ 'ax'.rstrip('x') }}",
    "{{ 'aa'.replace('a', 'b') }}{{ 'abc'.startswith('a') }}{{ 'abc'.endswith('c') }}",
    "{{ 'aa'.replace('a', 'b', 1) }}",
    "{% for key, value in {'b': 1, 'a': 2}.items() %}{{ key }}{{ value }}{% endfor %}",
    "{% for a in [1, 2] %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.cycle('x', 'y') }}"
    "{% endfor %}",
    "{% for a in [1, 2] %}{% continue %}{% endfor %}",
    "{% for a in [1, 2, 3] if a > 1 %}{{ a }}{% else %}n{% endfor %}",
    "{% macro f(x, y=2) %}{{ x }}{{ y }}{{ messages | length }}{% endmacro %}{{ f('a') }}",
    "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{% set a, b = 1, 2 %}{{ b }}",
    "{% set messages = messages[1:] %}{{ messages | length }}{% set x %}ab{% endset %}{{ x | upper }}",
    "{% generation %}{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
    "{%- generation -%}x{%- endgeneration -%}",
    "a\n  {% generation %}\n  b  \n{% endgeneration %}\n  c",
    "\n  {% if true %}\nx{% endif %}\n", "a\n\n", "x {%- if true %} y {%- endif %}",
    "a\r\n{% if true %}\r\nb{% endif %}", "{#- c -#} x", "{%+ if true %} y {% endif %}",
    "{{ 'x' | wordwrap }}", "{{ 'a b' | urlencode }}", "{{ joiner() }}", "{{ 'a b c' | wordcount }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | list }}",
    "{{ messages | groupby('role') }}", "{{ {'a': 1} | dictsort }}", "{{ '%s-%s' | format('a', 'b') }}",
    "{{ tools is defined }}{{ tools is not none }}{% if tools %}T{% endif %}{{ documents is defined }}{{ bos_token }}|",
    "{{ raise_exception('no') }}", "{{ strftime_now('%Y') }}", "{{ 'a' if false }}|", "{{ 5 | int + '6' | int }}",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompting() -> Prompting:
    """The example's tokenizer, text alone."""
    return Prompting.with_towers(Tokenizer(EXAMPLE / "tokenizer.json"), 2, None, None)


def test_a_template_that_reads_parts_is_left_as_it_is(prompting: Prompting) -> None:
    assert engine_template(GEMMA, prompting, "gemma3n") == ExportedTemplate(GEMMA, start_token=True)
    assert engine_template(NO_BOS, prompting, "gemma3n") == ExportedTemplate(NO_BOS, start_token=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MENDED)
def test_a_template_that_the_engine_renders_otherwise_is_mended(name: str, prompting: Prompting) -> None:
    source = MENDED[name]
    exported = engine_template(source, prompting, "gemma3n")
    engine = EnginePrompts(prompting, "gemma3n", exported.start_token)
    assert exported.source != source
    assert template_fault(source, source, engine) is not None
    assert template_fault(source, exported.source, engine) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_does_not_know_is_refused_by_name(name: str, prompting: Prompting) -> None:
    source, says = REFUSED[name]
    with pytest.raises(BundleError, match=f"chat template in LiteRT-LM.*: .*{says}"):
        engine_template(source, prompting, "gemma3n")


def test_a_difference_names_the_conversation_and_shows_both_texts(prompting: Prompting) -> None:
    source = GEMMA.replace("'user'", "'user' ") + "{% if messages[0].role == 'system' %}{{ [1, none] }}{% endif %}"
    with pytest.raises(BundleError) as caught:
        engine_template(source, prompting, "gemma3n")
    assert caught.value.place == "chat template in LiteRT-LM with a system message"
    assert "[1, none]" in caught.value.found and "[1, None]" in str(caught.value.wanted)


def test_a_method_that_no_conversation_reaches_is_mended_or_does_no_harm(prompting: Prompting) -> None:
    source = GEMMA + "{% if tools %}{{ tools[0].get('name') }}{{ tools[0].keys() }}{% endif %}"
    found = engine_template(source, prompting, "gemma3n").source
    assert found == GEMMA + "{% if tools %}{{ tools[0]['name'] }}{{ tools[0].keys() }}{% endif %}"


def test_what_transformers_refuses_the_engine_may_refuse(prompting: Prompting) -> None:
    refusing = "{%- if messages | length > 1 -%}{{ raise_exception('one turn') }}{%- endif -%}"
    exported = "{%- if messages | length > 1 -%}otherwise{%- endif -%}" + GEMMA
    assert template_fault(refusing + GEMMA, exported, EnginePrompts(prompting, "gemma3n")) is None
    assert template_fault(GEMMA, exported, EnginePrompts(prompting, "gemma3n")) is not None


def test_tokens_are_compared_and_not_texts(prompting: Prompting) -> None:
    """A text that spells the same with other tokens is another prompt."""
    split = replace(prompting, encode=lambda text: [ord(letter) for letter in text], decode=lambda ids: "")
    engine = EnginePrompts(split, "gemma3n", False)
    fault = template_fault("a" + LOOP + END, "b" + LOOP + END, engine)
    assert fault is not None and fault.found.startswith("tokens [98, ") and str(fault.wanted).startswith("tokens [97, ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "place"),
    [
        (MENDED["a sum"], "section LlmMetadataProto jinja_prompt_template, chat template in LiteRT-LM with one turn"),
        pytest.param(
            "<bos>" + GEMMA,
            "section LlmMetadataProto jinja_prompt_template, chat template in LiteRT-LM",
            marks=pytest.mark.full,
        ),
        pytest.param(GEMMA.replace("<end_of_turn>", "<eos>"), None, marks=pytest.mark.full),
        (GEMMA.replace("<end_of_turn>", "<start_of_turn>"), "section LlmMetadataProto stop_tokens"),
    ],
    ids=["rendered otherwise", "start token twice", "another stop token", "no stop token"],
)
def test_check_finds_what_the_engine_does_otherwise(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, place: str | None
) -> None:
    path = tmp_path / "x.litertlm"
    export_litertlm(bundle, path)
    assert check(path) == []
    exported = ExportedTemplate(template, start_token=True)
    monkeypatch.setattr(export_sections, "engine_template", lambda source, prompting, model_type: exported)
    export_litertlm(bundle, path)
    assert [fault.fault for fault in check(path)] == ([] if place is None else [place])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "bundle"
    request = ConvertRequest(
        EXAMPLE, path, groups=("text",), sizes=("small",), context=512, prefill_sizes=(8, 64)
    )  # fmt: skip
    convert(request, gate=None)
    return path


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[LmEngine]:
    """Google's engine; each conversation has a template of its own."""
    path = bundle.parent / "x.litertlm"
    export_litertlm(bundle, path)
    with open_engine(path) as opened:
        yield opened


def rendered(engine: LmEngine, template: str, turns: Sequence[Turn]) -> str | None:
    """What Google's engine makes of a template; None where it fails."""
    messages = [dict(turn) for turn in turns]
    options = {"messages": messages[:-1] or None, "chat_template": template}
    with engine.engine.create_conversation(**options) as conversation:
        return conversation.render_message_to_string(messages[-1]) or None


def ours(template: str, turns: Sequence[Turn]) -> str | None:
    try:
        return EngineTemplate(template).render(Conversation("x", turns)) or None
    except ToolkitError:
        return None


@pytest.mark.lm
@pytest.mark.parametrize("name", [*MENDED, *BOTH])
def test_an_exported_template_gives_the_engine_the_prompts_of_transformers(
    engine: LmEngine, prompting: Prompting, name: str
) -> None:
    source = (MENDED | BOTH)[name]
    exported = engine_template(source, prompting, "gemma3n")
    model = ChatTemplate(source, bos_token="<bos>")
    for conversation in TEXTS:
        try:
            wanted = model.render_turns(conversation.turns)
        except UsageError:
            continue
        found = rendered(engine, exported.source, conversation.turns) or ""
        assert exported.start_token * "<bos>" + found == wanted, conversation.name


@pytest.mark.lm
@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_does_fail_at_what_is_refused(engine: LmEngine, name: str) -> None:
    source, turns = REFUSED[name][0], TEXTS[0].turns
    assert rendered(engine, source, turns) != ChatTemplate(source, bos_token="").render_turns(turns)


@pytest.mark.lm
@pytest.mark.parametrize("template", EXPRESSIONS)
def test_templates_are_rendered_as_the_engine_renders_them(engine: LmEngine, template: str) -> None:
    turns = [{"role": "user", "content": "a Banana"}]
    assert ours(template, turns) == rendered(engine, template, turns)


@pytest.mark.lm
@pytest.mark.parametrize(("start_token", "tokens"), [(True, 4), (False, 3)])
def test_the_engine_writes_its_start_token_even_if_the_template_has(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_token: bool, tokens: int
) -> None:
    path = tmp_path / "x.litertlm"
    exported = ExportedTemplate("<bos>{{ messages[0].content[0].text }}", start_token)
    monkeypatch.setattr(export_sections, "engine_template", lambda source, prompting, model_type: exported)
    export_litertlm(bundle, path)
    with open_engine(path) as opened, opened.engine.create_conversation(max_output_tokens=1) as conversation:
        conversation.send_message("<start_of_turn>hi")
        assert conversation.token_count == tokens + 1  # and one of the answer
