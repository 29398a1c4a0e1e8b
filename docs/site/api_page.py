"""The page of the Python API, from the signatures and docstrings of what `gemma_edge` exports."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

import gemma_edge

_ARGUMENTS = re.compile(r"^((?:\w+, )*\w+): ")


def api_page() -> str:
    """Markdown: functions first, in the order of the workflow as the package's docstring names them, then classes."""
    names = sorted(gemma_edge.__all__, key=lambda name: (inspect.isclass(getattr(gemma_edge, name)), _order(name)))
    intro = inspect.cleandoc(gemma_edge.__doc__ or "").partition("\n\n")[2]
    parts = ["# The Python API", intro, "[From Python](docs/python.md) shows how they are used."]
    for name in names:
        value = getattr(gemma_edge, name)
        parts += _class(name, value) if inspect.isclass(value) else _function(f"gemma_edge.{name}", value, "##")
    return "\n\n".join(parts) + "\n"


def _order(name: str) -> tuple[int, str]:
    place = (gemma_edge.__doc__ or "").find(f"`{name}`")
    return (place if place >= 0 else 10**6, name)


def _class(name: str, value: type) -> Iterator[str]:
    yield f"## {name} {{ #{name.lower()} }}"
    yield _text(value)
    if dataclasses.is_dataclass(value):
        yield "Fields: " + ", ".join(f"`{field.name}`" for field in dataclasses.fields(value)) + "."
    for member, found in vars(value).items():
        if not member.startswith("_") and isinstance(found, property):
            yield f"### {name}.{member}"
            yield _text(found)
        elif not member.startswith("_") and inspect.isfunction(found):
            yield from _function(f"{name}.{member}", found, "###")


def _function(name: str, value: Callable[..., object], level: str) -> Iterator[str]:
    title = name.removeprefix("gemma_edge.")
    yield f"{level} {title} {{ #{title.replace('.', '-').lower()} }}"
    yield f"```python\n{_signature(name, inspect.signature(value))}\n```"
    yield _text(value)


def _signature(name: str, signature: inspect.Signature) -> str:
    """A signature on one line, or with an argument on each."""
    arguments: list[str] = []
    for item in (item for item in signature.parameters.values() if item.name != "self"):
        if item.kind is item.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        arguments.append(_argument(item))
    returned = signature.return_annotation
    end = "" if returned is signature.empty else f" -> {returned}"
    line = f"{name}({', '.join(arguments)}){end}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {item}," for item in arguments), f"){end}"])


def _argument(item: inspect.Parameter) -> str:
    """An argument with its type and default; a default that no short text names, such as a function, is `...`."""
    text = item.name if item.annotation is item.empty else f"{item.name}: {item.annotation}"
    if item.default is item.empty:
        return text
    default = repr(item.default)
    return f"{text} = {default if len(default) <= 30 and '<' not in default else '...'}"


def _text(value: object) -> str:
    """A docstring as Markdown: lines `name: text` become a list, examples become code."""
    blocks = inspect.cleandoc(getattr(value, "__doc__", None) or "").split("\n\n")
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    if block.startswith(">>> "):
        return f"```pycon\n{block}\n```"
    lines: list[str] = []
    for line in block.splitlines():
        argument = _ARGUMENTS.match(line)
        if argument:
            names = ", ".join(f"`{name}`" for name in argument[1].split(", "))
            lines.append(f"- {names}: {line[argument.end() :]}")
        else:
            lines.append(textwrap.indent(line.strip(), "  ") if lines and lines[0].startswith("- ") else line)
    return "\n".join(lines)
