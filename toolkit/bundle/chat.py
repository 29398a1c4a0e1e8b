"""Renders a conversation with the checkpoint's Jinja template, to the text form that the model was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toolkit.base.errors import BundleError, ToolkitError, UsageError, errors_about
from toolkit.base.limited import limited
from toolkit.base.strict_json import read_bounded, shorten

MAX_TEMPLATE_BYTES = 1 << 20
MAX_PROMPT_CHARACTERS = 1 << 24
"""Both are far above those of any real template."""

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
    """A `chat_template.jinja`; rendered in a sandbox, because templates are untrusted programs.

    The sandbox limits neither time nor memory: compile and render untrusted templates within `limited`.
    """

    def __init__(
        self,
        source: str,
        *,
        file: Path | None = None,
        bos_token: str = "<bos>",
        variables: Mapping[str, str] | None = None,
        environment: ImmutableSandboxedEnvironment | None = None,
    ) -> None:
        """`variables`: further special tokens that the template may use, by name.

        `environment`: Jinja's options and globals; the default is those of transformers.
        """
        self._environment = template_environment() if environment is None else environment
        self._source, self._file = source, file
        self._variables = {**(variables or {}), "bos_token": bos_token}
        self._template: jinja2.Template | None = None

    @classmethod
    def open(cls, path: Path, *, bos_token: str = "<bos>") -> ChatTemplate:
        """Read a template file; BundleError if it is missing, not a regular file, too large, or not text."""
        if not os.path.lexists(path):
            raise BundleError(file=path, found="no such file", remedy="use --raw for plain text")
        source = read_template(path, BundleError)
        return cls(source, file=path, bos_token=bos_token)

    def compile(self) -> jinja2.Template:
        """Compile the template; BundleError if it is not a Jinja template."""
        if self._template is None:
            try:
                self._template = self._environment.from_string(self._source)
            except MemoryError:
                raise
            # Constants are computed here, which can raise any exception.
            except Exception as error:
                found = f"not a Jinja template ({shorten(str(error), 200)})"
                raise BundleError("chat template", file=self._file, found=found) from error
        return self._template

    @property
    def source(self) -> str:
        """The text of the template."""
        return self._source

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True, thinking: bool = False) -> str:
        """Render the prompt's text with control tokens spelled out; UsageError if roles do not alternate.

        `generation_prompt` ends it with the beginning of the model's turn; `thinking` as for `render_turns`.
        """
        check_roles(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self.render_turns(turns, generation_prompt=generation_prompt, thinking=thinking)

    def render_turns(
        self,
        turns: Sequence[Mapping[str, object]],
        tools: Sequence[object] = (),
        *,
        generation_prompt: bool = True,
        thinking: bool = False,
    ) -> str:
        """Render messages in the form that templates get, with any roles, and tools if there are any.

        `thinking`: ask the template to let the model think first, as `enable_thinking` does in transformers.
        """
        template = self.compile()
        wishes = {"enable_thinking": True} if thinking else {}
        try:
            text = template.render(
                messages=turns,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **wishes,
                **self._variables,
            )
        except MemoryError:
            raise
        # A template is a program and can raise anything, for example by adding a number to a string.
        except Exception as error:
            raise UsageError(
                "chat template",
                file=self._file,
                found=f"it does not accept these messages ({shorten(str(error), 200)})",
            ) from error
        return self._require_valid(text)

    def _require_valid(self, text: str) -> str:
        """Return a prompt; UsageError if it is too long for any model, or not Unicode."""
        if len(text) > MAX_PROMPT_CHARACTERS:
            found, wanted = f"a prompt of {len(text):,} characters", f"at most {MAX_PROMPT_CHARACTERS:,}"
            raise UsageError("chat template", file=self._file, found=found, wanted=wanted)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"a prompt with half a character (a lone surrogate) at {error.start}"
            raise UsageError("chat template", file=self._file, found=found, wanted="Unicode") from error
        return text


_ANSWER = "An answer of 7 words, as it were."


def turn_end(template: ChatTemplate) -> str | None:
    """What a template writes after the model's answer, ignoring spaces; None if it does not write the answer.

    BundleError if it is not a template, or exceeds the limits of time or memory.
    """
    return limited("chat template", partial(_turn_end, template))


def _turn_end(template: ChatTemplate) -> str | None:
    try:
        text = template.render([Message("user", "Hello"), Message("assistant", _ANSWER)], generation_prompt=False)
    except UsageError:
        return None
    _, answer, rest = text.rpartition(_ANSWER)
    return rest.strip() if answer else None


def free_variables(source: str, file: Path | None = None) -> set[str]:
    """The variables that a template reads but does not set; BundleError if it is not a template."""
    with errors_about(file=file):
        return limited("chat template", partial(_free_variables, source))


def _free_variables(source: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(template_environment().parse(source))
    except MemoryError:
        raise
    except Exception as error:
        found = f"not a Jinja template ({shorten(str(error), 200)})"
        raise BundleError("chat template", found=found) from error


def read_template(path: Path, fault: type[ToolkitError]) -> str:
    """The text of a template file; raises `fault` unless it is a regular file of limited size in UTF-8."""
    return read_bounded_text(path, fault, MAX_TEMPLATE_BYTES)


def read_bounded_text(path: Path, fault: type[ToolkitError], limit: int) -> str:
    """The text of a file; raises `fault` unless it is a regular file of at most `limit` bytes in UTF-8."""
    try:
        return read_bounded(path, fault, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(file=path, found=f"not UTF-8 text ({error.reason})") from error


def bind_variables(source: str, values: Mapping[str, str]) -> str:
    r"""The template's source with assignments of these variables before it.

    >>> bind_variables("{{ eos_token }}", {"eos_token": "<eos>"})
    '{% set eos_token = "<eos>" %}{{ eos_token }}'
    """
    if not values:
        return source
    sets = "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in values.items())
    # Jinja drops the newline after a tag; with it, the template still begins a line, and Jinja strips its spaces
    # before a tag, as it would without the assignments.
    return f"{sets}\n{source}" if source[:1].isspace() else sets + source


def check_roles(messages: Sequence[Message]) -> None:
    """Raise UsageError unless user and assistant messages alternate, after a system message if there is one."""
    turns = list(messages)
    if turns and turns[0].role == "system":
        turns = turns[1:]
    if not turns:
        raise UsageError("conversation", found="no message from the user")
    for index, message in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if message.role != wanted:
            raise UsageError(f"conversation turn {index + 1}", found=f"role {message.role}", wanted=f"role {wanted}")


def template_environment() -> ImmutableSandboxedEnvironment:
    """Jinja with transformers' options, tags and globals, so that templates give the same result as there."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """The tag `{% generation %}`, which marks text to train on; its content is rendered normally."""

    tags = {"generation"}  # noqa: RUF012 (declared so by Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # transformers renders the content as a call, so variables set inside it are not visible outside.
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
    """The filter `tojson` without the HTML escapes that Jinja's own filter adds: models were not trained on them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
