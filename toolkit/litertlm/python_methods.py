"""Rewrites calls of Python's methods in a chat template for LiteRT-LM's engine, which lacks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from toolkit.base.errors import BundleError
from toolkit.base.strict_json import shorten

_FILTERS = ("upper", "lower")
"""Methods of texts without arguments, for which there are filters."""
_METHODS = ("get", *_FILTERS)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_WORDS = frozenset(
    ("and", "or", "not", "in", "is", "if", "else", "elif", "for", "set", "call", "filter", "with", "import", "from")
)
"""Names that begin no call: what follows them in parentheses is an expression."""


def without_methods(source: str) -> str:
    """The template with `x['a']` for `x.get('a')`, and filters for methods that the engine lacks.

    A missing key then gives an undefined value, which is false like the None of `get`. BundleError for a text that is
    not a template.

    >>> without_methods("{{ m.get('a') or m.get('b', [1]).get(2) }} .get('c')")
    "{{ m['a'] or (m['b']|default([1]))[2] }} .get('c')"
    >>> without_methods("{{ (a + b).upper()[0] }}{{ f(x).y['z'].lower() }}")
    "{{ ((a + b)|upper)[0] }}{{ (f(x).y['z']|lower) }}"
    """
    try:
        lexed = list(jinja2.Environment().lex(source))
    except jinja2.TemplateError as error:
        raise BundleError(found=f"not a Jinja template ({shorten(str(error), 200)})") from error
    pieces: list[_Piece] = []
    end = 0
    for _, kind, text in lexed:
        # Not the lexer's own texts alone, which lack spaces that a tag strips and have other line ends.
        start = source.find(text, end)
        if start < 0:
            return source
        if start > end:
            pieces.append(_Piece("whitespace", source[end:start]))
        end = start + len(text)
        pieces.append(_Piece(kind, text))
        if text == ")":
            _rewrite_call(pieces)
    return "".join(piece.text for piece in pieces) + source[end:]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token of a template, the space between two, or an expression that has been rewritten."""

    kind: str
    text: str


def _rewrite_call(pieces: list[_Piece]) -> None:
    """Rewrite the call that the last piece closes, if it calls one of the methods."""
    opened = _opener(pieces, len(pieces) - 1)
    name = _before(pieces, opened)
    dot = _before(pieces, name)
    if dot < 0 or pieces[dot].text != "." or pieces[name].text not in _METHODS or pieces[name].kind != "name":
        return
    last = _before(pieces, dot)
    if last < 0 or not (_may_be_called(pieces[last]) or pieces[last].text == "}"):
        return
    start = _chain_start(pieces, last)
    owner = "".join(piece.text for piece in pieces[start:dot])
    arguments = _arguments(pieces[opened + 1 : -1])
    if pieces[name].text == "get" and len(arguments) == 1:
        written = f"{owner}[{arguments[0]}]"
    elif pieces[name].text == "get" and len(arguments) == 2:
        written = f"({owner}[{arguments[0]}]|default({arguments[1]}))"
    elif pieces[name].text in _FILTERS and not arguments:
        written = f"({owner}|{pieces[name].text})"
    else:
        return
    pieces[start:] = [_Piece("expression", written)]


def _opener(pieces: Sequence[_Piece], closer: int) -> int:
    """The index of the bracket that is closed; -1 without one."""
    depth = 0
    for index in range(closer, -1, -1):
        piece = pieces[index]
        if piece.kind == "operator" and piece.text in _PAIRS:
            depth += 1
        elif piece.kind == "operator" and piece.text in _PAIRS.values():
            depth -= 1
            if depth == 0:
                return index
    return -1


def _before(pieces: Sequence[_Piece], index: int) -> int:
    """The index of the last piece before one that is no space; -1 without one."""
    index -= 1
    while index >= 0 and pieces[index].kind == "whitespace":
        index -= 1
    return index


def _chain_start(pieces: Sequence[_Piece], last: int) -> int:
    """Where an expression of names, calls and subscripts begins, of which `last` is the last piece."""
    while True:
        piece = pieces[last]
        if piece.kind == "operator" and piece.text in _PAIRS:
            last = _opener(pieces, last)
            before = _before(pieces, last)
            if piece.text != "}" and before >= 0 and _may_be_called(pieces[before]):
                last = before
                continue
        before = _before(pieces, last)
        if before >= 0 and pieces[before].kind == "operator" and pieces[before].text == ".":
            last = _before(pieces, before)
            continue
        return last


def _may_be_called(piece: _Piece) -> bool:
    if piece.kind == "name":
        return piece.text not in _WORDS
    return piece.kind in ("string", "expression") or piece.text in (")", "]")


def _arguments(pieces: Sequence[_Piece]) -> list[str]:
    """The texts of a call's arguments."""
    found, depth = [""], 0
    for piece in pieces:
        if piece.kind == "operator":
            depth += (piece.text in _PAIRS.values()) - (piece.text in _PAIRS)
        if piece.kind == "operator" and piece.text == "," and depth == 0:
            found.append("")
        else:
            found[-1] += piece.text
    texts = [text.strip() for text in found]
    return texts if any(texts) else []
