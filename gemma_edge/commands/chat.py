"""`gemma-edge chat`: a conversation with a bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gemma_edge.api.chat import Chat
from gemma_edge.api.model import Model
from gemma_edge.options.media import image_file, sound_file
from gemma_edge.options.session import LIMITS as LIMITS
from gemma_edge.options.session import add_device_argument, add_sampling_arguments, add_session_arguments, open_model
from gemma_edge.saved_chats import read_chat, save_chat
from gemma_edge.standard_input import read_line
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.answers import cut_text, show_answer, speed_text
from toolkit.base.errors import ToolkitError
from toolkit.bundle.tokenizer import require_unicode
from toolkit.runtime.media_prompt import MediaFile, Medium

EXAMPLES = (
    "gemma-edge chat BUNDLE",
    'gemma-edge chat BUNDLE --size E2B --system "Answer in one sentence."',
    "gemma-edge chat BUNDLE --device R5CT1234",
    "printf 'Hello\\nAnd now in French.\\n' | gemma-edge chat BUNDLE --temperature 0",
)
_FILES = {"/image": image_file, "/audio": sound_file}
_HELP = """/system TEXT set the system prompt, from the next message on
/system      show it
/image FILE  send an image with the next message
/audio FILE  send a sound with the next message
/undo        forget the last message and its answer
/reset       forget the conversation
/save FILE   save the conversation
/load FILE   continue a saved one
/size NAME   continue with another size of the bundle
/size        show the size in use, and the others
/quit        quit (or Ctrl-D)
/help        show this help
Alt-Enter starts a new line in a message; Ctrl-C stops an answer, or quits if none is being written."""
_COMMANDS = [line.split()[0] for line in _HELP.splitlines() if line.startswith("/")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_session_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, instructions for the whole conversation")
    # Gemma's own generation_config: temperature 1, top-k 64, top-p 0.95.
    add_sampling_arguments(parser, temperature=1.0, max_tokens=1024)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 at the end of the input or after /quit, 130 after an interrupt."""
    with open_model(arguments, terminal) as model:
        chat = model.chat(
            system=arguments.system,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_p=arguments.min_p,
            repeat_penalty=arguments.repeat_penalty,
            seed=arguments.seed,
            stop=arguments.stop,
            speculative=arguments.speculative,
            thinking=arguments.thinking,
        )
        model.prepare()
        read = _reader(terminal)
        lines = _Lines(model, chat, terminal, pieces=arguments.stream)
        while (line := read()) is not None:
            if not lines.take(line):
                break
    return 0


class _Lines:
    """Handles typed lines: messages, and commands that begin with a slash."""

    def __init__(self, model: Model, chat: Chat, terminal: Terminal, *, pieces: bool) -> None:
        self._model = model
        self._chat = chat
        self._terminal = terminal
        self._pieces = pieces
        self._waiting: list[Medium] = []  # sent with the next message

    def take(self, line: str) -> bool:
        """Handle one message or command; return False for /quit."""
        if not line.strip():
            return True
        command, _, rest = line.strip().partition(" ")
        try:
            if not command.startswith("/"):
                self._answer(line)
            elif command == "/quit" and not rest:
                return False
            else:
                self._command(command, rest.strip())
        except ToolkitError as error:
            # An error in one line does not end the conversation.
            self._terminal.error(error)
        return True

    def _command(self, command: str, rest: str) -> None:
        if command == "/size":
            self._change_size(rest)
        elif command == "/system":
            self._change_system(rest)
        elif command in _FILES and rest:
            self._attach(_FILES[command](rest))
        elif command == "/save" and rest:
            save_chat(Path(rest), self._chat.history)
            self._terminal.note(one_line(f"[saved {rest}]"))
        elif command == "/load" and rest:
            self._chat.restore(read_chat(Path(rest)))
            self._waiting.clear()
            self._terminal.note(one_line(f"[{len(self._chat.history)} messages of {rest}]"))
        elif command == "/undo" and not rest:
            self._terminal.note(
                "[removed the last message and its answer]" if self._chat.undo() else "[no message yet]"
            )
        elif command == "/reset" and not rest:
            self._chat.reset()
            self._waiting.clear()
        else:
            self._terminal.note(_HELP)

    def _answer(self, line: str) -> None:
        message, aside = require_unicode(line, "message"), self._terminal.aside
        stream = self._chat.stream(message, media=self._waiting, on_thought=aside)
        answer = show_answer(stream, self._terminal, pieces=self._pieces)
        self._waiting = []
        if self._terminal.as_json:
            value = {"text": answer.text, "thought": answer.thought, "token_ids": list(answer.token_ids)}
            counts = {"prompt_tokens": answer.prompt_tokens, "reused_tokens": answer.reused_tokens}
            self._terminal.result({**value, **counts, "size": answer.size, "ending": answer.ending}, "")
        self._terminal.note(speed_text(answer))
        if answer.ending == "length":
            self._terminal.note(cut_text(len(answer.token_ids)))

    def _attach(self, file: MediaFile) -> None:
        self._waiting += self._model.read_media([file])
        self._terminal.note(one_line(f"[{file.source!s} will be sent with the next message]"))

    def _change_size(self, name: str) -> None:
        if name:
            self._chat.size = name
        others = [size for size in self._model.sizes if size != self._chat.size]
        self._terminal.note(one_line(f"[size {self._chat.size}; others: {', '.join(others) or 'none'}]"))

    def _change_system(self, text: str) -> None:
        if text:
            self._chat.system = text
        shown = f"system prompt: {self._chat.system}" if self._chat.system else "no system prompt"
        self._terminal.note(one_line(f"[{shown}]"))


def _reader(terminal: Terminal) -> Callable[[], str | None]:
    """Choose how to read the next message, or None at the end: in an editor on a terminal, else from standard input."""
    if not sys.stdin.isatty() or terminal.as_json:
        return read_line
    from gemma_edge.line_editor import LineEditor

    terminal.note("Type /help for a list of commands.")
    return LineEditor(_COMMANDS).read
