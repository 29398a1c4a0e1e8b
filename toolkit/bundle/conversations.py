"""Conversations for comparing chat templates: templates that render all of these alike are taken to be equivalent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

Turn = Mapping[str, object]

_LONG = (
    "The keeper of the light wrote down the weather each evening; 1,024 pages of it were found. "
    "Él decía: «mañana». Солнце взошло. 天気がよい。 f(x) = {x ** 2}; "
) * 120
_WORLD = "مرحبا بالعالم · שלום עולם · नमस्ते दुनिया · 안녕하세요 · 駅はどこですか · 👩‍👩‍👧 e\u0301 · Ξένος · ไทย"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the form that transformers passes to a template, and the tools that the model may call.

    `name`: what is special about the conversation, such as "a system message".
    """

    name: str
    turns: Sequence[Turn]
    tools: Sequence[object] = ()
    """Their descriptions as JSON objects; as texts for the engine's model type gemma3n."""
    thinking: bool = False
    """Whether the template is asked to let the model think first (`enable_thinking`)."""

    def count(self, kind: str) -> int:
        """How many parts of this type (`image`, `audio`) the messages have."""
        return sum(part.get("type") == kind for turn in self.turns for part in parts_of(turn))


def parts_of(turn: Turn) -> Sequence[Mapping[str, object]]:
    """The parts of a message's content; none if it is a text."""
    content = turn.get("content")
    return content if isinstance(content, list) else ()


def _user(content: object) -> Turn:
    return {"role": "user", "content": content}


def _model(content: str) -> Turn:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Turn:
    return {"role": "system", "content": content}


_IMAGE, _SOUND = {"type": "image"}, {"type": "audio"}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


TEXTS: Sequence[Conversation] = (
    Conversation("one turn", [_user("Why is the sky blue?")]),
    Conversation("several turns", [_user(" Hello. "), _model("Hi!\n"), _user("And\nnow?"), _model(""), _user("Bye")]),
    Conversation("a system message", [_system("Be brief."), _user("Où est la gare ?")]),
    Conversation(
        "a system message and code",
        [_system(" Be kind.\n"), _user("{{ 1 }} <b> {% x %}"), _model('a & b\'s "c" \\ d'), _user("```\n\tx\n```\n")],
    ),
    Conversation("many scripts", [_user(_WORLD), _model(_WORLD), _user(_WORLD)]),
    Conversation("an empty message", [_user("")]),
    Conversation("an empty system message", [_system(""), _user(" ")]),
    Conversation("two messages of the user in a row", [_user("One"), _user("Two")]),
    Conversation("a long message", [_user(_LONG)]),
)

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, in °C.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "its name"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}

WITH_TOOLS: Sequence[Conversation] = (
    Conversation("a tool", [_user("Will it rain?")], [_WEATHER]),
    Conversation("a tool and a system message", [_system("Be brief."), _user("Will it rain?")], [_WEATHER]),
    Conversation(
        "a tool's answer",
        [
            _user("Will it rain?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": "get_weather", "content": '{"rain": true}'},
        ],
        [_WEATHER],
    ),
)


THINKING: Sequence[Conversation] = (
    Conversation("a wish for thoughts", [_user("Why is the sky blue?")], thinking=True),
    Conversation("a wish for thoughts and a tool", [_system("Be brief."), _user("Rain?")], [_WEATHER], thinking=True),
    Conversation(
        "an answer after a thought",
        [_user("Hello"), _model("<|channel>thought\nA greeting.<channel|>Hi!"), _user("And now?")],
        thinking=True,
    ),
)


def with_media(groups: Collection[str], *, side_by_side: bool = True) -> list[Conversation]:
    """Conversations with images and sounds, for the towers in `groups`.

    `side_by_side`: include some with images and sounds that have no text between them.
    """
    found = []
    for group, name, part in (("vision", "an image", _IMAGE), ("audio", "a sound", _SOUND)):
        if group in groups:
            found += [
                Conversation(name, [_user([part, _text("What is this?")])]),
                Conversation(f"{name} alone", [_user([part])]),
                Conversation(
                    f"{name} after the text",
                    [_system("Be brief."), _user("Hello"), _model("Hi!"), _user([_text("And this?"), part])],
                ),
            ]
    if side_by_side and found:
        several = [part for group, part in (("vision", _IMAGE), ("audio", _SOUND)) if group in groups] * 2
        found.append(Conversation("images and sounds side by side", [_user([*several, _text("Compare.")])]))
    return found
