"""`gemma-edge chat`: a conversation with a bundle."""

from __future__ import annotations

import argparse
import sys

from gemma_edge.api.chat import Chat
from gemma_edge.api.model import Model
from gemma_edge.options.media import image_file, sound_file
from gemma_edge.options.session import add_device_argument, add_sampling_arguments, add_session_arguments, open_model
from gemma_edge.terminal import Terminal, one_line
from gemma_edge.words.answers import show_answer, speed_text
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
_HELP = """/reset      forget the conversation
/image FILE send an image with the next message
/audio FILE send a sound with the next message
/size NAME  continue with another size of the bundle
/size       show the size in use, and the others
/quit       quit (or Ctrl-D)
/help       show this help
Ctrl-C ends an answer, or quits if there is none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_session_arguments(parser)
    add_device_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt, instructions for the whole conversation")
    # Gemma's own generation_config: temperature 1, top-k 64, top-p 0.95.
    add_sampling_arguments(parser, temperature=1.0)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 at the end of the input or after /quit, 130 after an interrupt."""
    with open_model(arguments, terminal) as model:
        chat = model.chat(
            system=arguments.system,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            stop=arguments.stop,
        )
        model.prepare()
        if sys.stdin.isatty():
            terminal.note("Type /help for a list of commands.")
        lines = _Lines(model, chat, terminal)
        while (line := _read_line(terminal)) is not None:
            if not lines.take(line):
                break
    return 0


class _Lines:
    """Handles typed lines: messages, and commands that begin with a slash."""

    def __init__(self, model: Model, chat: Chat, terminal: Terminal) -> None:
        self._model = model
        self._chat = chat
        self._terminal = terminal
        self._waiting: list[Medium] = []  # to be sent with the next message

    def take(self, line: str) -> bool:
        """Handle one line; return False for /quit."""
        words = line.split(maxsplit=1)
        if not words:
            return True
        try:
            if not words[0].startswith("/"):
                self._answer(line)
            elif words[0] == "/reset" and len(words) == 1:
                self._chat.reset()
                self._waiting.clear()
            elif words[0] in _FILES and len(words) == 2:
                self._attach(_FILES[words[0]](words[1].strip()))
            elif words[0] == "/size":
                self._change_size(words[1:])
            elif words[0] == "/quit" and len(words) == 1:
                return False
            else:
                self._terminal.note(_HELP)
        except ToolkitError as error:
            # An error in one line does not end the conversation.
            self._terminal.log("error", str(error))
        return True

    def _answer(self, line: str) -> None:
        answer = show_answer(self._chat.stream(require_unicode(line, "message"), media=self._waiting), self._terminal)
        self._waiting = []
        if self._terminal.as_json:
            value = {"text": answer.text, "token_ids": list(answer.token_ids), "prompt_tokens": answer.prompt_tokens}
            self._terminal.result({**value, "reused_tokens": answer.reused_tokens, "size": answer.size}, "")
        self._terminal.note(speed_text(answer))

    def _attach(self, file: MediaFile) -> None:
        self._waiting += self._model.read_media([file])
        self._terminal.note(one_line(f"[{file.source!s} will be sent with the next message]"))

    def _change_size(self, name: list[str]) -> None:
        if name:
            self._chat.size = name[0].strip()
        others = [size for size in self._model.sizes if size != self._chat.size]
        self._terminal.note(one_line(f"[size {self._chat.size}; others: {', '.join(others) or 'none'}]"))


def _read_line(terminal: Terminal) -> str | None:
    """Read the next line of standard input; None at its end."""
    try:
        if sys.stdin.isatty() and not terminal.as_json:
            return input("> ")
        line = sys.stdin.readline()
    except EOFError:
        return None
    return line.rstrip("\n") if line else None
