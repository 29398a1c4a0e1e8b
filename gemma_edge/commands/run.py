"""`gemma-edge run`: answers one prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from gemma_edge.api.model import Model
from gemma_edge.options.media import add_media_arguments
from gemma_edge.options.session import add_device_argument, add_sampling_arguments, add_session_arguments, open_model
from gemma_edge.terminal import Terminal
from gemma_edge.words.answers import memory_text, ple_text, show_answer, speed_text
from toolkit.base.errors import UsageError
from toolkit.bundle.tokenizer import require_unicode
from toolkit.runtime.answer import Answer
from toolkit.runtime.memory import Memory, StagePeaks

EXAMPLES = (
    'gemma-edge run BUNDLE -p "Write a haiku about rain."',
    'gemma-edge run BUNDLE -p "Once upon a time" --raw -n 64',
    "gemma-edge run BUNDLE -p - --size E2B --json < question.txt",
    'gemma-edge run BUNDLE -p "Name a colour." --temperature 1 --seed 7',
    'gemma-edge run BUNDLE -p "Name a colour." --backend gpu',
    'gemma-edge run BUNDLE -p "Name a colour." --device 192.168.1.20:5555',
    'gemma-edge run BUNDLE -p "What is this?" --image photo.jpg',
    'gemma-edge run BUNDLE -p "Is <audio_soft_token> about <image_soft_token>?" --image a.png --audio b.wav',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_session_arguments(parser)
    add_device_argument(parser)
    parser.add_argument(
        "-p", "--prompt", metavar="TEXT", required=True, help="the prompt; - reads it from standard input"
    )
    parser.add_argument("--raw", action="store_true", help="continue the prompt itself, without the chat template")
    parser.add_argument("--ignore-eos", action="store_true", help="do not stop at a stop token")
    add_media_arguments(parser)
    add_sampling_arguments(parser, temperature=0.0)
    parser.set_defaults(max_tokens=128)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0, or 130 after an interrupt, once the text generated so far has been printed."""
    prompt = _read_prompt(arguments.prompt)
    peaks = StagePeaks()
    with open_model(arguments, terminal, peaks.end) as model:
        stream = model.stream(
            prompt,
            media=arguments.media,
            raw=arguments.raw,
            ignore_eos=arguments.ignore_eos,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            stop=arguments.stop,
        )
        answer = show_answer(stream, terminal)
        peaks.end("decode")
        memory = model.memory()
        here = arguments.device is None
        peak = peaks.peak_rss_bytes if here else memory.process.peak_rss_bytes
        if terminal.as_json:
            terminal.result(_as_json(answer, model, memory, peak, peaks.stages if here else {}), "")
        terminal.note(speed_text(answer))
        terminal.note(memory_text(memory, peak, backend=arguments.backend))
        terminal.note(ple_text(model.ple_statistics))
    return 130 if answer.ending == "interrupted" else 0


def _read_prompt(argument: str) -> str:
    if argument != "-":
        return require_unicode(argument, "--prompt")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError("standard input", found=f"not UTF-8 text ({error})") from error
    return require_unicode(text, "standard input").removesuffix("\n")


def _as_json(
    answer: Answer, model: Model, memory: Memory, peak_rss_bytes: int | None, peaks: Mapping[str, int]
) -> dict[str, object]:
    return {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "size": answer.size,
        "ending": answer.ending,
        "prefill_tokens_per_s": answer.prefill_tokens_per_s,
        "decode_tokens_per_s": answer.decode_tokens_per_s,
        "time_to_first_token_s": answer.time_to_first_token_s,
        "media_s": answer.media_s,
        "peak_rss_bytes": peak_rss_bytes,
        "memory": {**memory.to_json(), "peaks": dict(peaks)},
        "ple": model.ple_statistics.to_json(),
        "groups_loaded": list(model.groups_loaded),
    }
