"""`gemma-edge demo`: the whole workflow with a built-in tiny model."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

from converters.convert import Conversion
from converters.families import open_checkpoint
from converters.family import Checkpoint
from converters.gate import judge_towers
from converters.slices import Slice
from converters.verify import VerifyReport
from gemma_edge.api.check import check
from gemma_edge.api.convert import convert
from gemma_edge.api.export import export
from gemma_edge.api.model import Model
from gemma_edge.device_demo import DeviceDemo, measure_on_device, require_places
from gemma_edge.examples import BUILT_IN, DEFAULT, built_in_checkpoint
from gemma_edge.options.media import image_file, sound_file
from gemma_edge.options.outputs import add_force_option
from gemma_edge.options.session import add_machine_arguments, given_machine_option, session_settings
from gemma_edge.terminal import Terminal
from gemma_edge.words.quality import gate_bars, report_text
from toolkit.base.errors import BundleError, QualityError, UsageError
from toolkit.base.outputs import Output
from toolkit.bundle.write import BUNDLE
from toolkit.results.quantities import bytes_text, count_text
from toolkit.runtime.answer import Answer
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.session import SessionSettings

EXAMPLES = (
    "gemma-edge demo",
    "gemma-edge demo --model gemma4",
    'gemma-edge demo -p "The old man" -o tiny-bundle',
    "gemma-edge demo --checkpoint path/to/checkpoint --json",
    "gemma-edge demo --device emulated --report demo.html",
)
_PAGE = "gemma-edge-demo.html"
_PROMPT = "Once upon a time"
_CONTEXT, _PREFILLS, _ANSWER_TOKENS = 1024, (8, 128), 48
_SAMPLES = "samples"
_SYSTEM, _CHAT_TOKENS = "Your name is Ruth.", 200
_ASKED = ("Hello!", "What is your name?", "Tell me a story about a race.", "Who fell?")
_QUESTIONS = {".png": (image_file, "What is this?"), ".wav": (sound_file, "What was said?")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--model", choices=tuple(BUILT_IN), default=DEFAULT,
        help=f"the built-in tiny model: gemma3n has sizes, sees and hears; gemma4 can think (default: {DEFAULT})",
    )  # fmt: skip
    chosen.add_argument("--checkpoint", metavar="DIR", type=Path, help="use another model")
    parser.add_argument(
        "-o", "--output", metavar="BUNDLE", type=Path, help="keep the bundle in this directory (default: remove it)"
    )
    add_force_option(parser, "files and directories that gemma-edge did not write")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help=f"the text to continue (default: {_PROMPT})")
    device = parser.add_argument_group(
        "on a device (where each runner measures as it does by default: --prompt and the options for running cannot be "
        "used with it)"
    )
    device.add_argument(
        "--device", metavar="emulated|SERIAL|HOST:PORT",
        help="push the bundle to a device, measure it with every runner that works there (on a phone, which has no "
        "Python: the program in C, and the flash probe), and write a report; 'emulated' starts an emulated device",
    )  # fmt: skip
    device.add_argument(
        "--report", metavar="FILE.html", type=Path, help="the report to write (default: gemma-edge-demo.html)"
    )
    device.add_argument("--results", metavar="FILE", type=Path, help="also append the records to a file of JSON lines")
    add_machine_arguments(parser)


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Return 0 if all steps succeed; QualityError or BundleError otherwise."""
    path = arguments.checkpoint or built_in_checkpoint(arguments.model)
    prompt = arguments.prompt
    for option in ("report", "results"):
        if arguments.device is None and getattr(arguments, option) is not None:
            raise UsageError(
                f"--{option}", found="there is nothing to measure without --device", remedy="add --device emulated"
            )
    if arguments.output is not None:
        Output(arguments.output, BUNDLE, (path,), arguments.force).require()
    if arguments.device is not None:
        unused = given_machine_option(arguments) if prompt is None else "--prompt"
        if unused is not None:
            found, remedy = "it cannot be used with --device", "leave it out, and measure with gemma-edge bench"
            raise UsageError(unused, found=found, remedy=remedy)
        require_places(_device_demo(arguments, path, arguments.output or path))
    settings = session_settings(arguments)
    with open_checkpoint(path) as checkpoint, _output(arguments.output) as output:
        sizes = three_sizes(checkpoint)
        terminal.say(f"1. {path}: {_sizes_text(checkpoint, sizes)}")
        converted = _convert(checkpoint, sizes, output, settings, terminal, force=arguments.force)
        _require_valid(output)
        terminal.say("3. checked: every hash, bound and reference of the bundle holds")
        if arguments.device is not None:
            return _on_device(_device_demo(arguments, path, output), terminal)
        assert converted.report is not None
        with gate_bars(terminal, notes=True) as judged:
            report = replace(converted.report, towers=judge_towers(output, checkpoint, settings, progress=judged))
        terminal.say(f"4. verified against the checkpoint:\n{_indented(report_text(report))}")
        report.require_passed(output)
        answers = _answers(output, _PROMPT if prompt is None else prompt, settings, terminal)
        step = count(6)
        seen = _senses(output, path / _SAMPLES, settings, terminal, step)
        talked = _talk(output, settings, terminal, step)
        exported = _export(output, terminal, next(step))
    terminal.result(
        {
            "checkpoint": str(path),
            "bundle": None if arguments.output is None else str(output),
            "seconds": converted.seconds,
            "check": {"ok": True},
            "verify": report.to_json(),
            "answers": answers,
            "media": seen,
            "chat": talked,
            "litertlm_bytes": exported,
        },
        f"all steps passed; the bundle is in {output}" if arguments.output else "all steps passed",
    )
    return 0


def _on_device(demo: DeviceDemo, terminal: Terminal) -> int:
    measured = measure_on_device(demo, terminal)
    records = measured.records
    page = "nothing was measured, so there is no page" if measured.page is None else f"the page is {measured.page}"
    terminal.result(
        {
            "device": demo.device,
            "emulated": any(record.device.emulated for record in records),
            "records": len(records),
            "runners": list(dict.fromkeys(record.runner for record in records)),
            "left_out": dict(measured.left_out),
            "report": None if measured.page is None else str(measured.page),
            "results": None if demo.results is None else str(demo.results),
        },
        f"all steps passed; {page}",
    )
    return 0


def _device_demo(arguments: argparse.Namespace, checkpoint: Path, bundle: Path) -> DeviceDemo:
    page = arguments.report or Path(_PAGE)
    return DeviceDemo(bundle, arguments.device, page, arguments.results, checkpoint, arguments.force)


def three_sizes(checkpoint: Checkpoint) -> tuple[Slice, ...]:
    """The whole model, the smallest size, and one in between; fewer if the checkpoint has fewer sizes."""
    by_parameters = sorted(checkpoint.slices.values(), key=lambda part: _effective(checkpoint, part))
    middle = by_parameters[(len(by_parameters) - 1) // 2]
    chosen = (checkpoint.default_slice, middle, by_parameters[0])
    return tuple(dict.fromkeys(chosen))


def _effective(checkpoint: Checkpoint, part: Slice) -> int:
    """The effective parameters of a size, which its name counts."""
    return checkpoint.facts(part, bits_per_weight=8).parameters["text"]


def _convert(
    checkpoint: Checkpoint,
    sizes: tuple[Slice, ...],
    output: Path,
    settings: SessionSettings,
    terminal: Terminal,
    *,
    force: bool,
) -> Conversion:
    def show_failure(report: VerifyReport) -> None:
        if not report.passed:
            terminal.note(report_text(report))

    with terminal.bar("convert") as show, gate_bars(terminal) as judged:
        converted = convert(
            checkpoint,
            output,
            sizes=sizes,
            context=min(_CONTEXT, checkpoint.max_positions),
            prefill_sizes=_PREFILLS,
            force=force,
            session=settings,
            progress=show,
            gate_progress=judged,
            on_report=show_failure,
        )
    stored = sum(file.bytes for file in converted.manifest.files.values())
    runs = "that runs all sizes" if len(sizes) > 1 else f"of size {sizes[0].name}"
    terminal.say(f"2. converted to int8: one bundle of {bytes_text(stored)} {runs}")
    return converted


def _answers(output: Path, prompt: str, settings: SessionSettings, terminal: Terminal) -> dict[str, dict[str, object]]:
    """Continue the prompt with every size, switching one model between them; return the answers by size."""
    answers: dict[str, dict[str, object]] = {}
    with Model(Bundle(output), settings) as model:
        terminal.say(f"5. {prompt!r}, continued{' by each size' if len(model.sizes) > 1 else ''}:")
        for size in model.sizes:
            # So small a model repeats itself if it always chooses the most likely token.
            answer = model.generate(
                prompt, raw=True, size=size, max_tokens=_ANSWER_TOKENS, temperature=0.8, top_k=40, top_p=1.0, seed=1
            )
            if not answer.text.strip():
                raise QualityError(f"size {size}", found="an answer without text")
            terminal.say(f"   {size} ({_speed(answer)}):\n{_indented(prompt + answer.text)}")
            answers[size] = {
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "decode_tokens_per_s": answer.decode_tokens_per_s,
            }
    return answers


def _senses(
    output: Path, samples: Path, settings: SessionSettings, terminal: Terminal, step: Iterator[int]
) -> dict[str, str]:
    """Ask about one image and one sound stored beside the checkpoint; return the answers by file name."""
    bundle, answers = Bundle(output), dict[str, str]()
    towers = {".png": bundle.manifest.vision, ".wav": bundle.manifest.audio}
    files = [next(iter(sorted(samples.glob(f"*{ending}"))), None) for ending, tower in towers.items() if tower]
    if not any(files):
        return {}
    terminal.say(f"{next(step)}. asked about an image and a sound; each tower is loaded only when it is needed:")
    with Model(bundle, settings) as model:
        for path in filter(None, files):
            as_file, question = _QUESTIONS[path.suffix]
            answer = model.generate(question, media=[as_file(str(path))], max_tokens=_ANSWER_TOKENS)
            answers[path.name] = answer.text.strip()
            terminal.say(_indented(f"{path.name}: {question} {answers[path.name]}"))
    return answers


def _talk(
    output: Path, settings: SessionSettings, terminal: Terminal, step: Iterator[int]
) -> list[dict[str, str | None]]:
    """Talk to a model that can think, and let it think before its answers; return the turns."""
    bundle, turns = Bundle(output), list[dict[str, str | None]]()
    if bundle.thoughts(bundle.tokenizer()) is None:
        return turns
    with Model(bundle, settings) as model:
        terminal.say(f"{next(step)}. a chat in which it may think first; the system turn says: {_SYSTEM}")
        chat = model.chat(system=_SYSTEM, max_tokens=_CHAT_TOKENS, temperature=0, thinking=True)
        for asked in _ASKED:
            answer = chat.send(asked)
            turns.append({"user": asked, "thought": answer.thought, "text": answer.text.strip()})
            thought = f"(thinks: {' '.join(answer.thought.split())}) " if answer.thought else ""
            terminal.say(_indented(f"{asked}\n  {thought}{answer.text.strip()}"))
    return turns


def _export(output: Path, terminal: Terminal, step: int) -> int:
    """Export the bundle's default size to a temporary file, check that, and return its bytes."""
    with tempfile.TemporaryDirectory(prefix="gemma-edge-demo-") as scratch:
        path = Path(scratch) / "tiny.litertlm"
        exported = export(output, path)
        _require_valid(path)
    terminal.say(
        f"{step}. exported {exported.size} as one .litertlm of {bytes_text(exported.bytes)} for LiteRT-LM, "
        "and checked it"
    )
    return exported.bytes


def _require_valid(path: Path) -> None:
    faults = check(path)
    if faults:
        raise BundleError(file=path, found=f"{len(faults)} faults", remedy="run gemma-edge check")


@contextmanager
def _output(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gemma-edge-demo-") as scratch:
        yield Path(scratch) / "demo"


def _sizes_text(checkpoint: Checkpoint, sizes: tuple[Slice, ...]) -> str:
    return ", ".join(
        f"{part.name} ({len(part.layers)} layers, {count_text(_effective(checkpoint, part))} effective parameters)"
        for part in sizes
    )


def _speed(answer: Answer) -> str:
    rate = answer.decode_tokens_per_s
    return "" if rate is None else f"{rate:,.0f} tokens/s"


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
