"""A chat template for LiteRT-LM: rendered as its engine renders it, mended where that differs from transformers.

The engine renders with minijinja. What it does otherwise than Jinja was observed with litert-lm-api 0.18.1: the content
of every message is a list of parts, `bos_token` is empty (the engine puts it before the first turn), a newline at the
template's end stays, few of Python's methods are there, no loop controls, and not all of Jinja's filters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from jinja2.ext import LoopControlExtension
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toolkit.base.errors import BundleError, ToolkitError
from toolkit.base.strict_json import shorten
from toolkit.bundle.chat import ChatTemplate, Message, template_environment

# Of the strings' methods, with the numbers of arguments that the engine takes; of dictionaries' only `items`.
_METHODS = {"strip": (0,), "lstrip": (0,), "rstrip": (0,), "split": (0, 1), "replace": (2,), "startswith": (1,)}
_METHODS |= {"endswith": (1,), "items": (0,)}
_NO_FILTERS = ("center", "filesizeformat", "forceescape", "random", "striptags", "urlize", "wordcount", "wordwrap")

# Messages whose parts are all text get it as one text again, as transformers hands it to templates.
_JOIN_PARTS = (
    "{% set plain = namespace(messages=[], content='', text=true) %}"
    "{% for message in messages %}"
    "{% set plain.content = '' %}"
    "{% set plain.text = message.content is defined and message.content is not none"
    " and message.content is not string %}"
    "{% if plain.text %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{% set plain.content = plain.content + part.text %}"
    "{% else %}{% set plain.text = false %}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if plain.text %}{% set plain.messages = plain.messages + [dict(message, content=plain.content)] %}"
    "{% else %}{% set plain.messages = plain.messages + [message] %}{% endif %}"
    "{% endfor %}"
    "{% set messages = plain.messages %}"
)

CONVERSATIONS: Sequence[Sequence[Message]] = (
    (Message("user", "Why is the sky blue?"),),
    (Message("user", " Hello. "), Message("assistant", "Hi!\n"), Message("user", "And\nnow?")),
    (Message("system", "Be brief."), Message("user", "Où est la gare ? 駅はどこ")),
    (
        Message("system", " Be kind. "),
        Message("user", "{{ 1 }} <b>"),
        Message("assistant", "a & b"),
        Message("user", ""),
    ),
    (Message("user", "x" * 20_000),),
)


def engine_template(source: str, *, bos_token: str) -> str:
    """The template that the engine renders as transformers renders this one; BundleError where there is none.

    A template that is rendered alike already is left as it is.
    """
    # Jinja drops one newline at a template's end, and the engine none.
    candidates = [source, source.removesuffix("\n"), _joined(source.removesuffix("\n"))]
    faults = [template_fault(source, candidate, bos_token=bos_token) for candidate in candidates]
    for candidate, fault in zip(candidates, faults, strict=True):
        if fault is None:
            return candidate
    assert faults[-1] is not None
    raise faults[-1]


def rendering_fault(template: str) -> BundleError | None:
    """What is wrong with a finished file's template: it is none, or the engine renders it otherwise than Jinja."""
    try:
        return template_fault(template, template, bos_token="")
    except BundleError as error:
        return error


def template_fault(source: str, exported: str, *, bos_token: str) -> BundleError | None:
    """The first conversation that the engine renders otherwise with `exported` than transformers with `source`."""
    expected = _renderer(ChatTemplate(source, bos_token=bos_token), engine=False)
    try:
        found = _renderer(ChatTemplate(exported, bos_token="", environment=_engine_environment()), engine=True)
    except ToolkitError as error:
        return _fault(error.found)
    for conversation in CONVERSATIONS:
        try:
            wanted = expected(conversation).removeprefix(bos_token)
        except ToolkitError:
            continue  # what transformers refuses, the engine may refuse
        try:
            text = found(conversation).removeprefix(bos_token)
        except ToolkitError as error:
            return _fault(error.found)
        if text != wanted:
            return _fault(*_first_difference(text, wanted))
    return None


def _fault(found: str, wanted: str | None = None) -> BundleError:
    return BundleError(
        "chat template in LiteRT-LM",
        found=found,
        wanted=wanted,
        remedy="change chat_template.jinja in the checkpoint to what the engine knows (docs/export.md)",
    )


def _joined(source: str) -> str:
    """With the parts of each message joined before it begins."""
    # Behind a newline, which the tag before it swallows, the template still begins a line.
    return f"{_JOIN_PARTS}\n{source}" if source[:1].isspace() else _JOIN_PARTS + source


def _renderer(template: ChatTemplate, *, engine: bool) -> Callable[[Sequence[Message]], str]:
    def render(messages: Sequence[Message]) -> str:
        turns = [{"role": m.role, "content": _parts(m) if engine else m.content} for m in messages]
        return template.render_turns(turns)

    return render


def _parts(message: Message) -> object:
    return [{"type": "text", "text": message.text}] if isinstance(message.content, str) else message.content


def _first_difference(found: str, wanted: str) -> tuple[str, str]:
    """Both texts from a little before the place where they part."""
    same = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    start = max(0, same - 20)
    return shorten(repr(found[start : same + 60]), 90), shorten(repr(wanted[start : same + 60]), 90)


class _EngineEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with the methods of values that the engine has, and no others."""

    def call(self, context: Context, callee: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call of a template."""
        owner, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        # Jinja itself adds what stands around a call.
        count = len(args) + sum(key not in ("_loop_vars", "_block_vars") for key in kwargs)
        if isinstance(owner, str | dict | list) and count not in _METHODS.get(name, ()):
            raise jinja2.TemplateError(f"the engine does not know .{name}() with {count} arguments")
        return super().call(context, callee, *args, **kwargs)


def _engine_environment() -> ImmutableSandboxedEnvironment:
    model = template_environment()
    environment = _EngineEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_as_minijinja,
        extensions=[type(item) for item in model.extensions.values() if not isinstance(item, LoopControlExtension)],
    )
    environment.globals.update(model.globals)
    environment.filters["tojson"] = _to_json
    for name in _NO_FILTERS:
        del environment.filters[name]
    return environment


def _as_minijinja(value: object) -> object:
    """How the engine writes a value that is no text."""
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False).replace("null", "none")
    return value


def _to_json(value: object) -> str:
    """Without options, and keys in the engine's order."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(", ", ": "))
