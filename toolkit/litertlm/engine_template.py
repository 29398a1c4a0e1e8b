"""Renders chat templates as LiteRT-LM's engine does, which uses a modified minijinja.

The engine's behaviour was observed with litert-lm-api 0.18.1, and tests compare it with this module: the content of
each message is a list of parts, special tokens are empty texts, a newline at the end of the template stays,
`{% generation %}` is cut out of the source, `none` tests for undefined values, `tojson` has no options and escapes
nothing, and some of minijinja's filters and most methods are missing. minijinja up to 2.18 prints values as the engine
does.
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

# The methods of texts that the engine has, with the numbers of arguments that it takes; of dictionaries, only `items`.
_METHODS = {"strip": (0, 1), "lstrip": (0, 1), "rstrip": (0, 1), "split": (0, 1, 2), "replace": (2,)}
_METHODS |= {"startswith": (1,), "endswith": (1,), "items": (0,)}
# Filters that minijinja's Python binding has and the engine lacks.
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
        """Compile a template within `limited`; BundleError for one that the engine cannot read."""
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
        """The text of a prompt, without the start token that the engine puts before it; UsageError if it fails."""
        turns, tools, thinking = engine_turns(conversation.turns), list(conversation.tools), conversation.thinking
        self._require_known_calls(turns, tools, thinking=thinking)
        # Assigned in the template itself, because the binding gives values from Python their Python forms and methods.
        values: dict[str, object] = {"messages": turns} | ({"tools": tools} if tools else {})
        values |= {"enable_thinking": True} if thinking else {}
        sets = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in values.items())
        source = f"{sets}\n{self._source}" if self._source[:1].isspace() else sets + self._source
        try:
            return self._environment.render_str(source, "template", add_generation_prompt=True, **_EMPTY)
        # raise_exception raises a Python exception, but a panic in minijinja's binding is not a subclass of Exception.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UsageError("chat template", found=shorten(str(error), 200)) from error

    def _require_known_calls(self, turns: Sequence[Turn], tools: Sequence[object], *, thinking: bool) -> None:
        """Raise UsageError if a method is called that the engine lacks; minijinja's binding has more methods."""
        try:
            self._watch.render_turns(turns, tools, thinking=thinking)
        except UsageError as error:
            if isinstance(error.__cause__, _UnknownMethodError):
                raise
            # Any other error is Jinja's objection to something that minijinja may accept.


_EMPTY = {"bos_token": "", "eos_token": "", "pad_token": ""}


def engine_turns(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """Messages as the engine passes them to templates: each content is a list of parts; the last has sorted keys."""
    found = [{**turn, "content": list(parts_of(turn)) or _as_parts(turn.get("content"))} for turn in turns]
    return [*found[:-1], *({key: last[key] for key in sorted(last)} for last in found[-1:])]


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _literal(value: object) -> str:
    """A value as a literal in a template: JSON, which has this form if nothing in it is null."""
    return json.dumps(value, ensure_ascii=False)


def _none_as_undefined(source: str) -> str:
    """The template with the test `none` in the engine's meaning, which is whether a value is undefined.

    >>> _none_as_undefined("{{ x is not none }} is none")
    '{{ x is not undefined }} is none'
    """
    words: list[str] = []
    changed, end, copied = "", 0, 0
    # Texts are not taken from the lexer, which strips spaces around tags and changes line ends.
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
    """Jinja that stops at calls of methods that the engine lacks."""

    def call(self, context: Context, callee: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Called for every call in a template."""
        owner, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        # Jinja adds the variables around the call as arguments of its own.
        count = len(args) + sum(key not in ("_loop_vars", "_block_vars") for key in kwargs)
        if isinstance(owner, str | dict | list | tuple) and count not in _METHODS.get(name, ()):
            raise _UnknownMethodError(f"the engine has no method .{name}() with {count} arguments")
        return super().call(context, callee, *args, **kwargs)


def _watching_environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the tags of transformers, except those that the engine lacks."""
    model = template_environment()
    environment = _WatchingEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(model.globals)
    environment.filters.update(model.filters)
    return environment
