"""Renders a conversation with the checkpoint's Jinja template to the text form that the model was trained on."""

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
    """The images and sounds before the text; the template writes a placeholder for each."""

    @property
    def content(self) -> str | list[dict[str, str]]:
        """The message's content, in the form in which transformers passes it to templates."""
        if not self.media:
            return self.text
        parts = [{"type": _PART_TYPES[group]} for group in self.media]
        return [*parts, {"type": "text", "text": self.text}] if self.text else parts


class ChatTemplate:
    """A `chat_template.jinja`; rendered in a sandbox, because templates are programs by others."""

    def __init__(
        self,
        source: str,
        *,
        file: Path | None = None,
        bos_token: str = "<bos>",
        variables: Mapping[str, str] | None = None,
        environment: ImmutableSandboxedEnvironment | None = None,
    ) -> None:
        """`variables`: further special tokens that the template may name.

        `environment`: Jinja with other options or globals than transformers, which is the default.
        """
        environment = template_environment() if environment is None else environment
        self._file = file
        self._variables = {**(variables or {}), "bos_token": bos_token}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BundleError("chat template", file=file, found=f"not a Jinja template ({error})") from error

    @classmethod
    def open(cls, path: Path, *, bos_token: str = "<bos>") -> ChatTemplate:
        """Read a template file; BundleError if it is missing or is not a template."""
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise BundleError(file=path, found="no such file", remedy="use --raw for plain text") from error
        except UnicodeDecodeError as error:
            raise BundleError(file=path, found=f"not UTF-8 text ({error.reason})") from error
        return cls(source, file=path, bos_token=bos_token)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """Render the prompt's text with control tokens spelled out; UsageError if roles do not alternate.

        `generation_prompt` ends it with the beginning of the model's turn.
        """
        _check_roles(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self.render_turns(turns, generation_prompt=generation_prompt)

    def render_turns(
        self,
        turns: Sequence[Mapping[str, object]],
        tools: Sequence[object] = (),
        *,
        generation_prompt: bool = True,
    ) -> str:
        """The same of messages as templates see them, whatever their roles, and with tools if there are any."""
        try:
            return self._template.render(
                messages=turns,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        # A template is a program and can raise anything, for example by adding a number to a string.
        except Exception as error:
            raise UsageError(
                "chat template", file=self._file, found=f"it does not accept these messages ({error})"
            ) from error


_ANSWER = "An answer of 7 words, as it were."


def turn_end(template: ChatTemplate) -> str | None:
    """What a template writes behind the model's answer, spaces aside; None where it shows no answer."""
    try:
        text = template.render([Message("user", "Hello"), Message("assistant", _ANSWER)], generation_prompt=False)
    except UsageError:
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    return rest.strip() if answer else None


def free_variables(source: str, file: Path | None = None) -> set[str]:
    """The variables that a template reads and does not set; BundleError if it is not a template."""
    try:
        return meta.find_undeclared_variables(template_environment().parse(source))
    except jinja2.TemplateError as error:
        raise BundleError("chat template", file=file, found=f"not a Jinja template ({error})") from error


def bind_variables(source: str, values: Mapping[str, str]) -> str:
    r"""Put assignments of these variables before the template.

    >>> bind_variables("{{ eos_token }}", {"eos_token": "<eos>"})
    '{% set eos_token = "<eos>" %}{{ eos_token }}'
    """
    if not values:
        return source
    sets = "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in values.items())
    # Jinja drops the newline after a tag; with it, the template still begins a line, and Jinja strips its spaces
    # before a tag, as it would without the assignments.
    return f"{sets}\n{source}" if source[:1].isspace() else sets + source


def _check_roles(messages: Sequence[Message]) -> None:
    """UsageError unless there is an optional system message, then user and assistant in turns."""
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
    """Jinja with the options, tags and globals of transformers, so that templates give the same result."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """The tag `{% generation %}`, which marks text to train on; its content is rendered normally."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # transformers renders it as a call, so variables set inside are not visible outside.
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
    """The filter `tojson` without HTML escapes, which Jinja's own adds and models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
