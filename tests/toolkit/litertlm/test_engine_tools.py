"""Tools in chat templates: as the engine gives them to templates, and what is said where it renders them otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
from litert_lm_engine import LmEngine, open_engine
from paths import EXAMPLE

import gemma_edge
from toolkit.bundle.conversations import WITH_TOOLS
from toolkit.bundle.prompting import Prompting
from toolkit.bundle.tokenizer import Tokenizer
from toolkit.litertlm.chat_template import EnginePrompts
from toolkit.litertlm.engine_template import EngineTemplate
from toolkit.litertlm.engine_tools import knows_tools, tool_conversations, tools_fault
from toolkit.litertlm.schema import ModelType

TOOLS = "{{ bos_token }}{% for tool in tools or [] %}[{{ tool if tool is string else tool | tojson }}]\n{% endfor %}"
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.name }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}"
    "{% for key, value in call.function.arguments.items() %}({{ key }}={{ value }}){% endfor %}{% endfor %}\n"
    "{% endfor %}"
)
WHOLE = TOOLS + "{% for m in messages %}{{ m.content | tojson }}{{ (m.tool_calls or []) | tojson }}{% endfor %}"


@pytest.fixture(scope="module")
def prompting() -> Prompting:
    """The example's tokenizer, text alone."""
    return Prompting.with_towers(Tokenizer(EXAMPLE / "tokenizer.json"), 2, None, None)


def test_a_template_that_reads_no_tools_knows_none() -> None:
    assert knows_tools(TOOLS) and not knows_tools(TURNS) and not knows_tools("{% set tools = 1 %}{{ tools }}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TOOLS + TURNS, None),
        (TURNS, "does not write the Python function"),
        ("{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}" + TURNS, "where it expects JSON"),
        (
            TOOLS + TURNS.replace("{{ value }}", "{{ [value] }}"),
            "with a tool's answer it writes .*, where Jinja writes",
        ),
        (TOOLS + TURNS + "{% if messages[2] %}{{ messages[2].keys() }}{% endif %}", r"a tool's answer.*\.keys\(\)"),
    ],
    ids=["offered", "no tools", "JSON", "a list", "a method"],
)
def test_tools_are_offered_only_if_the_engine_writes_them_as_jinja(
    template: str, says: str | None, prompting: Prompting
) -> None:
    found = tools_fault(template, template, EnginePrompts(prompting, "gemma3n"))
    if says is None:
        assert found is None
    else:
        assert re.search(says, found or "")


def test_a_model_type_without_calls_in_answers_is_offered_no_tools(prompting: Prompting) -> None:
    found = tools_fault(TOOLS + TURNS, TOOLS + TURNS, EnginePrompts(prompting, "generic_model"))
    assert found is not None and "--model-type gemma3n" in found


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "gemma3n" else pytest.mark.full) for name in get_args(ModelType)],
)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelType, LmEngine]]:
    """The example's text in Google's engine, as each type of model."""
    folder = tmp_path_factory.mktemp("tools")
    gemma_edge.convert(
        EXAMPLE, folder / "b", groups=["text"], sizes=["small"], context=64, prefill_sizes=[8], verify=False
    )  # fmt: skip
    gemma_edge.export(folder / "b", folder / "x.litertlm", model_type=request.param)
    with open_engine(folder / "x.litertlm") as opened:
        yield request.param, opened


@pytest.mark.lm
@pytest.mark.slow
def test_the_engine_gives_templates_tools_as_the_gate_does(engine: tuple[ModelType, LmEngine]) -> None:
    model_type, opened = engine

    class Weather(opened.module.Tool):  # type: ignore[misc, name-defined]
        def get_tool_description(self) -> Any:
            return WITH_TOOLS[0].tools[0]

        def execute(self, param: Mapping[str, Any]) -> Any:
            raise NotImplementedError

    for given, taken in zip(WITH_TOOLS, tool_conversations(model_type), strict=True):
        turns = [dict(turn) for turn in given.turns]
        for template in (TOOLS + TURNS, WHOLE):
            options = {"messages": turns[:-1] or None, "tools": [Weather()], "chat_template": template}
            with opened.engine.create_conversation(**options) as conversation:
                found = conversation.render_message_to_string(turns[-1])
            assert found == EngineTemplate(template).render(taken), (given.name, template)
