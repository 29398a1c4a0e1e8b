"""Reads messages that are typed at a terminal, with line editing, history and several lines."""

from __future__ import annotations

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output


class LineEditor:
    """Enter sends a message; Alt-Enter (or Escape, then Enter) and pasted line ends start a new line in it.

    The history lasts as long as this process: nothing that is typed is written to disk.
    """

    def __init__(self, commands: list[str], *, keys: Input | None = None, screen: Output | None = None) -> None:
        """commands: words that Tab completes at the start of a message; keys, screen: used instead of the terminal."""
        self._session: PromptSession[str] = PromptSession(
            completer=WordCompleter(commands, sentence=True),
            complete_while_typing=False,
            key_bindings=_keys(),
            prompt_continuation="  ",
            input=keys,
            output=screen,
        )

    def read(self) -> str | None:
        """The next message; None at Ctrl-D. Raises KeyboardInterrupt at Ctrl-C."""
        try:
            return self._session.prompt("> ")
        except EOFError:
            return None


def _keys() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
