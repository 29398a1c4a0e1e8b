"""A conversation as the text that the model was trained on: the checkpoint's own Jinja template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toolkit.base.errors import BundleError, UsageError

Role = Literal["system", "user", "assistant"]

_PART_TYPES = {"vision": "image", "audio": "audio"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str
    media: tuple[Literal["vision", "audio"], ...] = ()
    """What stands before the text; the template writes a placeholder for each."""

    @property
    def content(self) -> str | list[dict[str, str]]:
        """The message's content, in the form in which transformers passes it to templates."""
        if not self.media:
            return self.text
        parts = [{"type": _PART_TYPES[group]} for group in self.media]
        return [*parts, {"type": "text", "text": self.text}] if self.text else parts


class ChatTemplate:
    """A `chat_template.jinja`, rendered in a sandbox: templates are other people's programs."""

    def __init__(
        self,
        source: str,
        *,
        file: Path | None = None,
        bos_token: str = "<bos>",
        environment: ImmutableSandboxedEnvironment | None = None,
    ) -> None:
        """By default as transformers renders it; `environment` renders otherwise."""
        environment = template_environment() if environment is None else environment
        self._file = file
        self._bos_token = bos_token
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError("chat template", file=file, found=f"not a Jinja template ({error})") from error

    @classmethod
    def open(cls, path: Path, *, bos_token: str = "<bos>") -> ChatTemplate:
        """BundleError when the file is missing or is no template."""
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise BundleError(file=path, found="no such file", remedy="use --raw for plain text") from error
        except UnicodeDecodeError as error:
            raise BundleError(file=path, found=f"not UTF-8 text ({error.reason})") from error
        return cls(source, file=path, bos_token=bos_token)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The prompt's text, control tokens spelled out; UsageError when roles do not alternate.

        `generation_prompt` ends it where the model is to go on.
        """
        _check_roles(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self.render_turns(turns, generation_prompt=generation_prompt)

    def render_turns(self, turns: Sequence[Mapping[str, object]], *, generation_prompt: bool = True) -> str:
        """The same of messages as templates see them, whatever their roles."""
        try:
            return self._template.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                bos_token=self._bos_token,
            )
        # A template is a program: it can raise anything, adding a number to a text for example.
        except Exception as error:
            raise UsageError(
                "chat template", file=self._file, found=f"it does not accept these messages ({error})"
            ) from error


def free_variables(source: str, file: Path | None = None) -> set[str]:
    """Names that a template reads and does not set; BundleError where it is no template."""
    try:
        return meta.find_undeclared_variables(template_environment().parse(source))
    except jinja2.TemplateError as error:
        raise BundleError("chat template", file=file, found=f"not a Jinja template ({error})") from error


def bind_variables(source: str, values: Mapping[str, str]) -> str:
    r"""The template, with these variables set before it begins.

    >>> bind_variables("{{ eos_token }}", {"eos_token": "<eos>"})
    '{% set eos_token = "<eos>" %}{{ eos_token }}'
    """
    if not values:
        return source
    sets = "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in values.items())
    # A newline after a tag is dropped; behind it the template still begins a line, whose spaces before a tag are too.
    return f"{sets}\n{source}" if source[:1].isspace() else sets + source


def _check_roles(messages: Sequence[Message]) -> None:
    """An optional system message, then user and assistant in turns."""
    turns = list(messages)
    if turns and turns[0].role == "system":
        turns = turns[1:]
    if not turns:
        raise UsageError("conversation", found="no message of the user")
    for index, message in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if message.role != wanted:
            raise UsageError(f"conversation turn {index + 1}", found=f"role {message.role}", wanted=f"role {wanted}")


def template_environment() -> ImmutableSandboxedEnvironment:
    """Options, tags and globals as transformers gives them, so that a template means the same here."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; what stands in it is rendered as if it stood alone."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # transformers makes a call of it, so that variables set in it end with it.
        return nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
