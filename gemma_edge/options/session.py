"""The arguments that `run` and `chat` share, and the settings that they become."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from gemma_edge.api.model import Model
from gemma_edge.options.groups import group_names
from gemma_edge.options.unused import refuse_unused
from gemma_edge.terminal import Terminal
from toolkit.base.activations import ACTIVATIONS
from toolkit.base.errors import UsageError
from toolkit.bundle.chat import MAX_PROMPT_CHARACTERS
from toolkit.bundle.manifest import TEXT_DECODER
from toolkit.media.limits import MAX_PIXELS, MAX_SECONDS
from toolkit.runtime.backends import backend_names, find_backend
from toolkit.runtime.backends.interface import ModelFile
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import Opener
from toolkit.runtime.ple_lookup import DEFAULT_CACHE_BYTES
from toolkit.runtime.sampling import USUAL_TOP_K, USUAL_TOP_P, choose_sampling
from toolkit.runtime.session import SessionSettings, default_threads
from toolkit.runtime.weight_cache import parse_weight_cache

# Smaller models load within a second.
_WORTH_A_WORD_BYTES = 300_000_000
MOST_SECONDS = 1_000_000
"""The longest time that an option takes, eleven days: poll(2) cannot wait for 25."""
LIMITS = (
    "an answer ends after -n tokens, or when it and its prompt fill the bundle's context",
    f"a prompt has at most {MAX_PROMPT_CHARACTERS:,} characters, and fits the context (convert --context)",
    f"an image has at most {MAX_PIXELS:,} pixels, a sound lasts at most {MAX_SECONDS // 60} minutes",
)
"""The limits that the help of `run` and `chat` states."""
_MACHINE = {
    "threads": None,
    "weight_cache": None,
    "backend": backend_names()[0],
    "activations": SessionSettings().activations,
    "ple": "flash",
    "ple_cache_mb": DEFAULT_CACHE_BYTES >> 20,
}
"""The options of `add_machine_arguments`, and their defaults."""
_HERE_ONLY = {**{name: _MACHINE[name] for name in ("weight_cache", "ple", "ple_cache_mb")}, "speculative": False}
"""Options that have no effect on a device, and their defaults."""


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, and the options for running it."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a directory written by gemma-edge convert")
    group = add_machine_arguments(parser)
    group.add_argument(
        "--speculative", action="store_true",
        help="check drafts of the next tokens, several in one step: the same text, faster where text repeats or the "
        "bundle's drafter guesses well (needs a bundle converted with --draft-tokens or --drafter)",
    )  # fmt: skip
    group.add_argument(
        "--thinking", action="store_true",
        help="let the model think before it answers; its thoughts are shown on stderr, not with --quiet, count for -n, "
        "and are not part of the conversation (needs a chat template that knows thoughts, such as Gemma 4's)",
    )  # fmt: skip
    group.add_argument("--size", metavar="NAME", help="one of the bundle's sizes (default: the bundle's default size)")
    group.add_argument(
        "--groups", metavar="NAME[,...]", type=group_names,
        help="parameter groups that may be loaded; text is always loaded (default: all; vision and audio only when "
        "needed)",
    )  # fmt: skip


def add_machine_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options for the machine: threads, backend, and where weights and embeddings are kept."""
    group = parser.add_argument_group("running")
    group.add_argument("--threads", metavar="N", type=positive, help=f"CPU threads (default here: {default_threads()})")
    group.add_argument(
        "--weight-cache",
        metavar="off|memory|DIR",
        help="where to keep the weights, rearranged for this hardware: off rearranges them for each signature, memory "
        "once for each run, and a directory keeps them between runs (default: GEMMA_EDGE_CACHE, else "
        "~/.cache/gemma-edge; beyond 16 GiB, the least recently used files are deleted)",
    )
    group.add_argument(
        "--backend", choices=backend_names(), default=_MACHINE["backend"],
        help="the processor that runs the graphs (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--activations", choices=ACTIVATIONS, default=_MACHINE["activations"],
        help="the precision in which a GPU computes; the encoders of images and sounds always use fp32 "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--ple", choices=("flash", "ram"), default=_MACHINE["ple"],
        help="per-layer embeddings: read each row from the shards when a token needs it, or copy all of them to memory "
        "first (default: flash)",
    )  # fmt: skip
    group.add_argument(
        "--ple-cache-mb", metavar="MB", type=natural, default=_MACHINE["ple_cache_mb"],
        help="memory in MiB for the rows of recent tokens (default: %(default)s)",
    )  # fmt: skip
    return group


def add_sampling_arguments(parser: argparse.ArgumentParser, *, temperature: float, max_tokens: int) -> None:
    """Add the options for sampling, with their defaults where the bundle does not say how to sample."""
    group = parser.add_argument_group("sampling (default: the checkpoint's generation_config.json)")
    group.add_argument(
        "-n", "--max-tokens", metavar="N", type=positive, default=max_tokens,
        help="cut an answer after N tokens (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--temperature", metavar="T", type=number,
        help=f"0 always chooses the most likely token (default without generation_config.json: {temperature})",
    )  # fmt: skip
    group.add_argument(
        "--top-k",
        metavar="K",
        type=natural,
        help=f"sample from the K most likely tokens; 0: from all (default without it: {USUAL_TOP_K})",
    )
    group.add_argument(
        "--top-p", metavar="P", type=number,
        help=f"sample from the most likely tokens whose probabilities add up to P (default without it: {USUAL_TOP_P})",
    )  # fmt: skip
    group.add_argument(
        "--min-p", metavar="P", type=number,
        help="sample only from tokens at least P times as likely as the most likely one "
        "(default without it: 0, from all)",
    )  # fmt: skip
    group.add_argument(
        "--repeat-penalty", metavar="X", type=number,
        help="make tokens of the prompt and of the answer so far less likely, by dividing their logits by X "
        "(default without it: 1, no change)",
    )  # fmt: skip
    group.add_argument(
        "--seed", metavar="S", type=natural, default=0, help="the same seed gives the same text (default: 0)"
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="end the answer when it contains TEXT; may be repeated",
    )
    group.add_argument("--stream", action="store_true", help="with --json, print each piece of an answer as it comes")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that runs the model on a device, and where its library comes from."""
    group = parser.add_argument_group(
        "running on a device (the bundle and the program that runs it are sent there, as far as the device lacks them)"
    )
    group.add_argument(
        "--device", metavar="SERIAL|HOST:PORT",
        help="run on this Android device instead of this computer; of the options above, --weight-cache, --ple, "
        "--ple-cache-mb and --speculative cannot be used with it",
    )  # fmt: skip
    group.add_argument(
        "--library", metavar="FILE", type=Path,
        help="LiteRT's library for the device (default: for Android that of litert-lm-api 0.18.1, downloaded once)",
    )  # fmt: skip


def open_model(
    arguments: argparse.Namespace, terminal: Terminal, stage_ended: Callable[[str], None] = lambda _: None
) -> Model:
    """Open the bundle and check its manifest; the model itself is loaded for its first answer."""
    refuse_unused("--stream", arguments.stream and not terminal.as_json, "without --json")
    settings = replace(session_settings(arguments, size=arguments.size), stage_ended=stage_ended)
    _check_sampling(arguments)
    bundle = Bundle(arguments.bundle)
    if arguments.device is not None:
        return Model(bundle, settings, groups=arguments.groups, opener=_device_opener(arguments, terminal))
    if arguments.library is not None:
        raise UsageError("--library", found="no device to use it on", remedy="add --device SERIAL")
    model = Model(bundle, settings, groups=arguments.groups)
    if TEXT_DECODER in bundle.manifest.files:
        decoder = bundle.described_file(TEXT_DECODER)
        if decoder.size_bytes > _WORTH_A_WORD_BYTES and _is_not_arranged(decoder, settings):
            terminal.note("rearranging the weights for this hardware; later runs find them in the weight cache")
    return model


def _device_opener(arguments: argparse.Namespace, terminal: Terminal) -> Opener:
    name = _given(arguments, _HERE_ONLY)
    if name is not None:
        raise UsageError(name, found="it has no effect on a device", remedy="leave it out, or leave out --device")
    # adb takes time to import.
    from device_harness.native.client import Processor
    from device_harness.native.library import LibraryChoice
    from gemma_edge.api.on_device import DeviceSettings, open_on_device
    from gemma_edge.words.pushing import step_bars

    settings = DeviceSettings(
        threads=arguments.threads,
        processor=Processor("gpu" if arguments.backend == "gpu" else "cpu", arguments.activations),
        library=LibraryChoice(arguments.library),
        pushing=partial(step_bars, terminal),
        note=terminal.note,
    )
    return open_on_device(arguments.device, settings)


def given_machine_option(arguments: argparse.Namespace, *, used: Collection[str] = ()) -> str | None:
    """One of the options of `add_machine_arguments` that was given another value than its default; None without any.

    used: those that are not looked at, because they have an effect.
    """
    return _given(arguments, {name: value for name, value in _MACHINE.items() if name not in used})


def _given(arguments: argparse.Namespace, usual: Mapping[str, object]) -> str | None:
    given = (name for name, value in usual.items() if getattr(arguments, name) != value)
    return next((f"--{name.replace('_', '-')}" for name in given), None)


def _check_sampling(arguments: argparse.Namespace) -> None:
    """UsageError for sampling options out of range, before any file is read."""
    choose_sampling(
        None,
        usual_temperature=0.0,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repeat_penalty=arguments.repeat_penalty,
        seed=arguments.seed,
    )


def _is_not_arranged(decoder: ModelFile, settings: SessionSettings) -> bool:
    """Whether the backend will rearrange the weights now, and keep them."""
    kept = find_backend(settings.backend).kept_file(decoder, settings.backend_options)
    return kept is not None and not os.path.exists(kept)


def session_settings(arguments: argparse.Namespace, *, size: str | None = None) -> SessionSettings:
    """The session settings given by `add_machine_arguments`."""
    return SessionSettings(
        size=size,
        threads=arguments.threads or default_threads(),
        weight_cache=parse_weight_cache(arguments.weight_cache),
        backend=arguments.backend,
        activations=arguments.activations,
        ple_in_ram=arguments.ple == "ram",
        ple_cache_bytes=arguments.ple_cache_mb << 20,
    )


def positive(text: str) -> int:
    """The argparse type of an integer of at least 1."""
    value = _integer(text)
    if value < 1:
        raise UsageError(found=text, wanted="a number of 1 or more")
    return value


def natural(text: str) -> int:
    """The argparse type of an integer of at least 0."""
    value = _integer(text)
    if value < 0:
        raise UsageError(found=text, wanted="a number of 0 or more")
    return value


def number(text: str) -> float:
    """The argparse type of a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(found=repr(text), wanted="a number")
    return value


def positive_number(text: str) -> float:
    """The argparse type of a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise UsageError(found=text, wanted="a number above 0")
    return value


def seconds(text: str) -> float:
    """The argparse type of a time in seconds, from 0 to MOST_SECONDS."""
    value = number(text)
    if not 0 <= value <= MOST_SECONDS:
        raise UsageError(found=text, wanted=f"0 to {MOST_SECONDS:,} seconds")
    return value


def positive_seconds(text: str) -> float:
    """The argparse type of a time in seconds above 0, up to MOST_SECONDS."""
    positive_number(text)
    return seconds(text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(found=repr(text), wanted="a whole number") from None
