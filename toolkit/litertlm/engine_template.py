"""Renders chat templates as LiteRT-LM's engine does, which uses minijinja and changes some of it.

What the engine does was observed with litert-lm-api 0.18.1, and is compared with it in tests: the content of each
message is a list of parts, special tokens are empty texts, a newline at the template's end stays, `{% generation %}` is
cut out of the source, `none` is the test for undefined values, `tojson` has no options and escapes nothing, and some
of minijinja's filters and most methods are missing. minijinja up to 2.18 writes values as the engine does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import minijinja
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toolkit.base.errors import BundleError, UsageError
from toolkit.base.strict_json import shorten
from toolkit.bundle.chat import ChatTemplate, template_environment
from toolkit.bundle.conversations import Conversation, Turn, parts_of

# Methods with the numbers of arguments that the engine takes: of texts, and `items` of dictionaries.
_METHODS = {"strip": (0, 1), "lstrip": (0, 1), "rstrip": (0, 1), "split": (0, 1, 2), "replace": (2,)}
_METHODS |= {"startswith": (1,), "endswith": (1,), "items": (0,)}
# What minijinja's binding for Python has, and the engine has not.
_NO_FILTERS: tuple[str, ...] = (
    "datetimeformat", "dateformat", "filesizeformat", "pluralize", "random", "striptags", "timeformat", "truncate",
    "urlencode", "wordcount", "wordwrap",
)  # fmt: skip
_NO_GLOBALS = ("cycler", "joiner", "lipsum", "now", "randrange")
_GENERATION_TAGS = ("{% generation %}", "{% endgeneration %}")
_FUEL = 20_000_000  # instructions: a second or two


class EngineTemplate:
    """A chat template in the engine."""

    def __init__(self, source: str) -> None:
        """BundleError for a template that the engine cannot read. Use it within `limited`."""
        for tag in _GENERATION_TAGS:
            source = source.replace(tag, "")
        self._watch = ChatTemplate(source, bos_token="", environment=_watching_environment())
        try:
            self._watch.compile()
        except BundleError as error:
            raise BundleError(found=error.found) from error
        self._source = _none_as_undefined(source)
        self._environment = _minijinja()

    def render(self, conversation: Conversation) -> str:
        """The prompt's text, without the start token that the engine puts before it; UsageError where it fails."""
        turns, tools, thinking = engine_turns(conversation.turns), list(conversation.tools), conversation.thinking
        self._require_known_calls(turns, tools, thinking=thinking)
        # Values of the template itself, since the binding gives those of Python their Python forms and methods.
        values: dict[str, object] = {"messages": turns} | ({"tools": tools} if tools else {})
        values |= {"enable_thinking": True} if thinking else {}
        sets = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in values.items())
        source = f"{sets}\n{self._source}" if self._source[:1].isspace() else sets + self._source
        try:
            return self._environment.render_str(source, "template", add_generation_prompt=True, **_EMPTY)
        # A template that calls raise_exception raises what Python does, and minijinja's binding panics as no Exception.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UsageError("chat template", found=shorten(str(error), 200)) from error

    def _require_known_calls(self, turns: Sequence[Turn], tools: Sequence[object], *, thinking: bool) -> None:
        """UsageError for a call of a method that the engine lacks; minijinja's binding has more of them."""
        try:
            self._watch.render_turns(turns, tools, thinking=thinking)
        except UsageError as error:
            if isinstance(error.__cause__, _UnknownMethodError):
                raise
            # Otherwise Jinja's objection to what minijinja may take.


_EMPTY = {"bos_token": "", "eos_token": "", "pad_token": ""}


def engine_turns(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """Messages as the engine hands them to templates: each content is a list of parts, the last has sorted keys."""
    found = [{**turn, "content": list(parts_of(turn)) or _as_parts(turn.get("content"))} for turn in turns]
    return [*found[:-1], *({key: last[key] for key in sorted(last)} for last in found[-1:])]


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _literal(value: object) -> str:
    """A literal of a template; JSON is one where nothing is null."""
    return json.dumps(value, ensure_ascii=False)


def _none_as_undefined(source: str) -> str:
    """The template with the test `none` as the engine has it: it asks whether a value is undefined.

    >>> _none_as_undefined("{{ x is not none }} is none")
    '{{ x is not undefined }} is none'
    """
    words: list[str] = []
    changed, end, copied = "", 0, 0
    # Not the lexer's own texts, which lack spaces that a tag strips and have other line ends.
    for _, kind, text in jinja2.Environment().lex(source):
        start = source.find(text, end)
        end = max(end, start + len(text)) if start >= 0 else end
        if kind == "name" and text in ("none", "None") and (words[-1:] == ["is"] or words[-2:] == ["is", "not"]):
            changed += source[copied:start] + "undefined"
            copied = end
        if kind != "whitespace":
            words.append(text if kind == "name" else "")
    return changed + source[copied:]


def _minijinja() -> minijinja.Environment:
    environment = minijinja.Environment(
        filters={"tojson": _to_json},
        globals={"raise_exception": _raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)},
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_escape_callback=lambda name: False,
        pycompat=True,
        fuel=_FUEL,
    )
    for name in _NO_FILTERS:
        environment.remove_filter(name)
    for name in _NO_GLOBALS:
        environment.remove_global(name)
    return environment


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


class _UnknownMethodError(jinja2.TemplateError):
    pass


class _WatchingEnvironment(ImmutableSandboxedEnvironment):
    """Jinja that stops at methods which the engine does not have."""

    def call(self, context: Context, callee: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Any call of a template."""
        owner, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        # Jinja itself adds what stands around a call.
        count = len(args) + sum(key not in ("_loop_vars", "_block_vars") for key in kwargs)
        if isinstance(owner, str | dict | list | tuple) and count not in _METHODS.get(name, ()):
            raise _UnknownMethodError(f"the engine does not know .{name}() with {count} arguments")
        return super().call(context, callee, *args, **kwargs)


def _watching_environment() -> ImmutableSandboxedEnvironment:
    """The tags of transformers' Jinja, except for those that the engine lacks."""
    model = template_environment()
    environment = _WatchingEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(model.globals)
    environment.filters.update(model.filters)
    return environment
