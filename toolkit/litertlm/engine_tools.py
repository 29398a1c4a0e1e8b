"""Decides whether an app may offer tools with a chat template in LiteRT-LM: only if the engine renders them as Jinja.

What the engine passes to templates was observed with litert-lm-api 0.18.1. With model type generic_model, tools, calls
and answers are as in transformers. With gemma3n, each tool is the text of a Python function, each argument of a call is
JSON in a text, and an answer has no name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from toolkit.base.errors import ToolkitError
from toolkit.base.limited import limited
from toolkit.bundle.chat import free_variables
from toolkit.bundle.conversations import WITH_TOOLS, Conversation, Turn
from toolkit.litertlm.chat_template import EnginePrompts, template_fault
from toolkit.litertlm.engine_template import EngineTemplate
from toolkit.litertlm.schema import ModelType

# The tool in `WITH_TOOLS`; the engine writes no line end after a parameter without a description.
AS_PYTHON = """def get_weather(
    city: str,
    days: int | None = None,
) -> dict:
  \"\"\"Weather of a city, in °C.

  Args:
    city: its name
    days  \"\"\"
"""


def knows_tools(source: str) -> bool:
    """Whether a template reads the tools that the model may call."""
    return "tools" in free_variables(source)


def tool_conversations(model_type: ModelType) -> Sequence[Conversation]:
    """The conversations `WITH_TOOLS` as the engine passes them to templates."""
    if model_type != "gemma3n":
        return WITH_TOOLS
    return [replace(item, turns=list(map(_as_gemma3n, item.turns)), tools=[AS_PYTHON]) for item in WITH_TOOLS]


def _as_gemma3n(turn: Turn) -> Turn:
    found: dict[str, Any] = dict(turn)
    if found["role"] == "tool":
        found.pop("name", None)
    if "tool_calls" in found:
        found["tool_calls"] = [{**call, "function": _with_texts(call["function"])} for call in found["tool_calls"]]
    return found


def _with_texts(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = {key: json.dumps(value, ensure_ascii=False) for key, value in function["arguments"].items()}
    return {**function, "arguments": arguments}


def tools_fault(source: str, exported: str, engine: EnginePrompts) -> str | None:
    """Why an app should not offer tools with the template `exported`, made from `source`; None if it may.

    The engine finds calls in answers only with model types gemma3n, for which it writes tools as Python functions, and
    gemma4 (read in its source).
    """
    if engine.model_type == "generic_model":
        return "LiteRT-LM looks for calls in answers only with --model-type gemma3n or gemma4"
    conversations = tool_conversations(engine.model_type)
    if engine.model_type == "gemma3n":
        fault = limited("chat template", partial(_writing_fault, exported, conversations[0]))
        if fault is not None:
            return fault
    difference = template_fault(source, exported, engine, conversations)
    if difference is None:
        return None
    wanted = "" if difference.wanted is None else f", where Jinja writes {difference.wanted}"
    return f"with {(difference.place or '').rpartition(' with ')[2]} it writes {difference.found}{wanted}"


def _writing_fault(exported: str, conversation: Conversation) -> str | None:
    """Why the template does not write the Python function that describes a tool; None if it does."""
    try:
        text = EngineTemplate(exported).render(conversation)
    except ToolkitError as error:
        return f"LiteRT-LM describes each tool to it as a Python function, where it expects JSON ({error.found})"
    return None if AS_PYTHON in text else "it does not write the Python function by which LiteRT-LM describes a tool"
