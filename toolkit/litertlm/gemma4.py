"""The engine's model type gemma4: which bundles it is for, and how such a model writes thoughts and calls of tools.

The engine's built-in spellings are others (read in its source), so a file must state those that the model knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolkit.bundle.thoughts import THOUGHTS, Channel, asks_for_thoughts


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How a model of type gemma4 writes calls of tools. Field names are the engine's."""

    code_fence_start: str
    code_fence_end: str
    open_quote: str
    close_quote: str
    function_response_start: str


CALLS = CallSyntax(
    code_fence_start="<|tool_call>",
    code_fence_end="<tool_call|>",
    open_quote='<|"|>',
    close_quote='<|"|>',
    function_response_start="<|tool_response>",
)


def text_model_type(architecture: str) -> Literal["gemma3n", "gemma4"]:
    """The engine's model type for the text of a checkpoint of this architecture.

    >>> text_model_type("Gemma4ForConditionalGeneration"), text_model_type("Gemma3nForCausalLM")
    ('gemma4', 'gemma3n')
    """
    return "gemma4" if architecture.startswith("Gemma4") else "gemma3n"


def thoughts_of(template: str, model_type: str) -> Channel | None:
    """The channel of thoughts, if a model of this type thinks and its chat template can ask it to."""
    return THOUGHTS if model_type == "gemma4" and asks_for_thoughts(template) else None
